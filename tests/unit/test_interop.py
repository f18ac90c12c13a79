"""Hugging Face folders: tensors and configs in both directions, old names, dtypes, shards.

Tensors come from the frozen references of tests/parity, which have the names of transformers and a
second, independent mapping to our names.
"""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import interop
from bigjax.errors import UserError
from bigjax.models import gpt
from tests.parity import test_bert, test_gpt

BERT = dict(
    model_type="bert",
    hidden_act="gelu",
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.2,
    pad_token_id=0,
)
LABELS = {"0": "good", "1": "bad", "2": "ugly"}
ENCODER = ("bert.embeddings.", "bert.encoder.")
# class of transformers: (frozen reference, more of config.json, prefixes of its tensors' names)
CASES = {
    "BertForPreTraining": ("bert_pretraining", BERT, (*ENCODER, "bert.pooler.", "cls.")),
    "BertForMaskedLM": ("bert_pretraining", BERT, (*ENCODER, "cls.predictions.")),
    "BertModel": ("bert_pretraining", BERT, (*ENCODER, "bert.pooler.")),
    "BertForSequenceClassification": ("bert_classifier", {**BERT, "id2label": LABELS}, ("",)),
    "BertForTokenClassification": ("bert_tagger", {**BERT, "id2label": LABELS}, ("",)),
    "BertForQuestionAnswering": ("bert_span", BERT, ("",)),
    "GPT2LMHeadModel": ("gpt2", dict(model_type="gpt2", resid_pdrop=0.0), ("",)),
    "GPT2Model": ("gpt2", dict(model_type="gpt2"), ("",)),
    "LlamaForCausalLM": ("llama", dict(model_type="llama", rope_scaling=None), ("",)),
    "LlamaForCausalLM, tied": ("llama3", dict(model_type="llama"), ("",)),
}


def stored(case: str) -> tuple[dict, dict, dict]:
    """config.json, {their name: array}, {our name: array} of a case."""
    reference, more, prefixes = CASES[case]
    with np.load(test_gpt.HERE / f"{reference}.npz") as f:
        config = {**json.loads(str(f["config"])), **more, "architectures": [case.split(",")[0]]}
        theirs = {k.removeprefix("params/"): f[k] for k in f if k.startswith("params/")}
    # Convert all tensors of the reference, then keep those of this class.
    family, _, head = reference.partition("_")
    if family == "bert":
        convert = lambda x: test_bert.converted(head, config, x)
    else:
        convert = lambda x: test_gpt.MAPS[family](config, x)[1]
    ours = convert(theirs)
    theirs = {k: x for k, x in theirs.items() if k.startswith(prefixes)}
    kept = {float(x.reshape(-1)[0]) for x in theirs.values()}
    if family == "bert":  # no tensor holds several parameters: its first number identifies it
        ours = {k: x for k, x in ours.items() if float(x.reshape(-1)[0]) in kept}
    if case in ("BertModel", "GPT2Model"):
        theirs = {k.split(".", 1)[1]: x for k, x in theirs.items()}
    return config, theirs, ours


def write_folder(folder, config: dict, tensors: dict, name: str = "model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {k: np.ascontiguousarray(x) for k, x in tensors.items()},
        folder / name,
        metadata={"format": "pt"},
    )
    return folder


def write_again(imported: interop.Imported, folder, **more):
    arguments = dict(
        family=imported.family,
        architecture=imported.architecture,
        model=imported.model,
        params={n: imported.load(n) for n in imported.names},
        task=imported.task,
        dtype=imported.dtype,
        dtypes=imported.dtypes,
        config=imported.config,
    )
    interop.write(folder, **{**arguments, **more})
    return folder


def loaded(imported: interop.Imported) -> dict:
    return {name: imported.load(name) for name in imported.names}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_an_import_and_export_keeps_tensors_and_config(tmp_path, case):
    config, theirs, ours = stored(case)
    imported = interop.read(write_folder(tmp_path / "in", config, theirs))
    assert (
        imported.architecture == case.split(",")[0]
        and not imported.missing
        and not imported.unknown
    )
    assert_same(loaded(imported), ours)
    assert imported.shapes == {name: x.shape for name, x in ours.items()}
    write_again(imported, tmp_path / "out")
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), theirs)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "in" / "model.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    # A new config, written without the original, has the same content.
    again = interop.read(write_again(imported, tmp_path / "new", config=None))
    assert again.model == imported.model and again.task == imported.task
    assert_same(loaded(again), ours)


def test_model_and_task_follow_from_config_json(tmp_path):
    read = lambda case: interop.read(write_folder(tmp_path / case, *stored(case)[:2]))
    imported = read("BertForSequenceClassification")
    assert imported.model == dict(
        name="bert",
        vocab_size=61,
        max_len=32,
        n_types=2,
        d_model=24,
        n_layers=2,
        n_heads=3,
        d_ff=40,
        activation="gelu_exact",
        norm_eps=1e-3,
        dropout=0.1,
        attention_dropout=0.2,
    )
    assert imported.task == dict(name="classify", kind="classify", labels=("good", "bad", "ugly"))
    assert read("BertForTokenClassification").task == dict(
        name="tag", labels=("good", "bad", "ugly")
    )
    assert read("BertForPreTraining").task == dict(name="mlm_nsp", pairs="nsp")
    assert read("BertModel").task == dict(name="mlm_nsp", pairs="none")
    assert read("BertForQuestionAnswering").task == dict(name="answer")
    fields, model = test_gpt.reference("llama3").fields, read("LlamaForCausalLM, tied").model
    assert {k: model[k] for k in fields} == fields and model["name"] == "gpt"
    fields, model = test_gpt.reference("gpt2").fields, read("GPT2LMHeadModel").model
    assert {k: model[k] for k in fields} == fields
    assert model["d_ff"] == 96 and model["dropout"] == 0.0 and model["tie_embeddings"]


def test_a_classifier_with_one_output_is_a_regression(tmp_path):
    config, theirs, _ = stored("BertForSequenceClassification")
    theirs |= {f"classifier.{k}": theirs[f"classifier.{k}"][:1] for k in ("weight", "bias")}
    config["id2label"] = {"0": "LABEL_0"}
    imported = interop.read(write_folder(tmp_path / "in", config, theirs))
    assert imported.task == dict(name="classify", kind="regress", labels=("LABEL_0",))
    again = interop.read(write_again(imported, tmp_path / "out", config=None))
    assert again.task == imported.task


def test_rope_parameters_of_transformers_5(tmp_path):
    config, theirs, _ = stored("LlamaForCausalLM")
    del config["rope_theta"], config["rope_scaling"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    imported = interop.read(write_folder(tmp_path / "in", config, theirs))
    assert imported.model["rope_theta"] == 5e5
    write_again(imported, tmp_path / "out", model={**imported.model, "rope_theta": 7e5})
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        **config,
        "rope_parameters": {"rope_type": "default", "rope_theta": 7e5},
    }


@pytest.mark.parametrize("case", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_an_untied_or_tied_output_layer(tmp_path, case):
    config, theirs, ours = stored(case)
    embed = "transformer.wte.weight" if case.startswith("GPT2") else "model.embed_tokens.weight"
    own = np.random.default_rng(0).normal(size=theirs[embed].shape).astype(np.float32)
    untied = {**config, "tie_word_embeddings": False}
    untied = interop.read(
        write_folder(tmp_path / "untied", untied, {**theirs, "lm_head.weight": own})
    )
    np.testing.assert_array_equal(untied.load("head/kernel"), own.T)
    tied = {**config, "tie_word_embeddings": True}
    rest = {k: x for k, x in theirs.items() if k != "lm_head.weight"}
    imported = interop.read(
        write_folder(tmp_path / "copy", tied, {**rest, "lm_head.weight": theirs[embed]})
    )
    assert "head/kernel" not in imported.names and not imported.unknown and not imported.missing
    only = {k: x for k, x in rest.items() if k != embed} | {"lm_head.weight": theirs[embed]}
    imported = interop.read(write_folder(tmp_path / "only", tied, only))
    np.testing.assert_array_equal(imported.load("embed/embedding"), theirs[embed])
    with pytest.raises(UserError, match="lm_head.weight differs from .*tie_word_embeddings"):
        interop.read(write_folder(tmp_path / "bad", tied, {**rest, "lm_head.weight": own}))


def test_old_names_and_buffers(tmp_path):
    config, theirs, ours = stored("BertForPreTraining")
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for k, x in theirs.items()
    }
    assert sum("gamma" in k for k in old) == 6
    old |= {
        "bert.embeddings.position_ids": np.arange(32)[None],
        "cls.predictions.decoder.weight": theirs["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": theirs["cls.predictions.bias"],
    }
    imported = interop.read(write_folder(tmp_path / "bert", config, old))
    assert not imported.unknown
    assert_same(loaded(imported), ours)
    config, theirs, ours = stored("GPT2LMHeadModel")
    old = {k.removeprefix("transformer."): x for k, x in theirs.items()}
    old |= {
        "h.0.attn.bias": np.ones((1, 1, 32, 32), np.uint8),
        "h.0.attn.masked_bias": np.float32(-1e4)[None],
    }
    imported = interop.read(write_folder(tmp_path / "gpt2", config, old))
    assert not imported.unknown
    assert_same(loaded(imported), ours)
    config, theirs, _ = stored("LlamaForCausalLM")
    theirs["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    assert not interop.read(write_folder(tmp_path / "llama", config, theirs)).unknown


def test_unknown_and_missing_tensors_and_other_heads(tmp_path):
    config, theirs, _ = stored("BertForPreTraining")
    config["architectures"] = ["BertForMaskedLM"]
    del theirs["bert.encoder.layer.1.output.dense.bias"]
    theirs["adapter.weight"] = np.ones(3, np.float32)
    imported = interop.read(write_folder(tmp_path / "in", config, theirs))
    assert imported.missing == ["stack/layer_1/mlp/down/bias"] and imported.unknown == [
        "adapter.weight"
    ]
    assert {"pooler/kernel", "nsp/bias"} <= set(imported.names)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision(tmp_path, dtype):
    config, theirs, ours = stored("GPT2LMHeadModel")
    half = {k: x.astype(dtype) for k, x in theirs.items()}
    imported = interop.read(write_folder(tmp_path / "in", config, half))
    assert imported.dtype == np.dtype(dtype).name and not imported.dtypes
    assert_same(loaded(imported), {k: x.astype(dtype) for k, x in ours.items()})
    wide = {k: x.astype(np.float32) for k, x in loaded(imported).items()}
    write_again(imported, tmp_path / "out", params=wide)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "in" / "model.safetensors"
    ).read_bytes()


def test_mixed_types(tmp_path):
    config, theirs, _ = stored("LlamaForCausalLM")
    mixed = {k: x if "norm" in k else x.astype(ml_dtypes.bfloat16) for k, x in theirs.items()}
    imported = interop.read(write_folder(tmp_path / "in", config, mixed))
    assert imported.dtype == "float32" and imported.dtypes["final_norm/scale"] == "float32"
    assert imported.dtypes["stack/layer_0/mlp/up/kernel"] == "bfloat16"
    assert_same(load_file(write_again(imported, tmp_path / "out") / "model.safetensors"), mixed)


def test_shards(tmp_path):
    config, theirs, ours = stored("LlamaForCausalLM")
    imported = interop.read(write_folder(tmp_path / "in", config, theirs))
    write_again(imported, tmp_path / "out", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_parameters": sum(x.size for x in theirs.values()),
        "total_size": sum(x.nbytes for x in theirs.values()),
    }
    names = sorted(set(index["weight_map"].values()))
    assert len(names) == 6 and names[0] == "model-00001-of-00006.safetensors"
    shards = [load_file(tmp_path / "out" / name) for name in names]
    assert all(sum(x.nbytes for x in shard.values()) <= 20_000 for shard in shards)
    assert_same({k: x for shard in shards for k, x in shard.items()}, theirs)
    assert_same(loaded(interop.read(tmp_path / "out")), ours)


def test_a_changed_model_changes_only_its_keys(tmp_path):
    config, theirs, _ = stored("GPT2LMHeadModel")
    imported = interop.read(write_folder(tmp_path / "in", {**config, "embd_pdrop": 0.3}, theirs))
    assert "embd_pdrop" in imported.notes[1]
    write_again(imported, tmp_path / "out", model={**imported.model, "dropout": 0.2})
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        **config,
        "resid_pdrop": 0.2,
        "embd_pdrop": 0.2,
    }


GPT = dict(name="gpt", **dataclasses.asdict(gpt.Config(d_model=8, n_heads=2)))
LLAMA = {**GPT, "position": "rotary", "norm": "rmsnorm", "bias": False, "activation": "swiglu"}


def test_the_family_follows_from_the_model():
    assert interop.family_of(GPT).name == "gpt2" and interop.family_of(LLAMA).name == "llama"
    assert interop.family_of({"name": "bert"}).name == "bert"
    for change, words in (
        ({"norm": "layernorm"}, "model.norm='layernorm'"),
        ({"parallel_block": True}, "model.parallel_block=True"),
        ({"bias": True}, "model.bias=True"),
    ):
        with pytest.raises(UserError, match=words):
            interop.family_of({**LLAMA, **change})
    for change, words in (
        ({"n_kv_heads": 1}, "model.n_kv_heads=1"),
        ({"activation": "swiglu"}, "model.activation='swiglu'"),
        ({"head_dim": 8}, "model.head_dim=8"),
    ):
        with pytest.raises(UserError, match=words):
            interop.family_of({**GPT, **change})
    with pytest.raises(UserError, match="'seqgan.model' has no counterpart"):
        interop.family_of({"name": "seqgan.model"})


def test_the_class_follows_from_the_heads():
    bert = interop.family_of({"name": "bert"})
    of = lambda *names: bert.architecture_of(["embed/embedding", *names])
    assert of("mlm/bias", "nsp/bias") == "BertForPreTraining"
    assert of("mlm/bias") == "BertForMaskedLM"
    assert of("classifier/bias", "pooler/bias") == "BertForSequenceClassification"
    assert of("tagger/bias") == "BertForTokenClassification" and of() == "BertModel"
    assert of("span/bias") == "BertForQuestionAnswering"
