"""Hugging Face folders that are refused: damaged, unsupported models, existing targets."""

import json

import numpy as np
import pytest

from bigjax import interop
from bigjax.errors import UserError
from bigjax.interop import files
from tests.unit.test_interop import loaded, stored, write_again, write_folder


def test_an_index_that_does_not_match_the_files(tmp_path):
    imported = interop.read(write_folder(tmp_path / "in", *stored("LlamaForCausalLM")[:2]))
    folder = write_again(imported, tmp_path / "out", max_shard_bytes=20_000)
    path = folder / "model.safetensors.index.json"
    text = path.read_text()
    path.write_text(text.replace('.norm.weight": "model-00006', '.norm.weight": "model-00001'))
    with pytest.raises(UserError, match="model.norm.weight is in model-00001"):
        interop.read(folder)
    path.write_text(text)
    (folder / "model-00002-of-00006.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00006"):
        interop.read(folder)
    path.write_text(text[:100])
    with pytest.raises(UserError, match="model.safetensors.index.json cannot be read"):
        interop.read(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-1],
        lambda b: b[:100],
        lambda b: b"",
        lambda b: b + b"x",
        lambda b: b[:20] + b"\xff" + b[21:],
        lambda b: b"\xff" * 8 + b[8:],
    ],
)
def test_a_damaged_file(tmp_path, damage):
    folder = write_folder(tmp_path / "in", *stored("GPT2LMHeadModel")[:2])
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="model.safetensors.*truncated or damaged"):
        interop.read(folder)


REFUSED = {
    "model type": ("GPT2LMHeadModel", {"model_type": "bloom"}, "'bloom'.*BertForMaskedLM"),
    "architecture": (
        "GPT2LMHeadModel",
        {"architectures": ["GPT2DoubleHeadsModel"]},
        "GPT2DoubleHeadsModel.*GPT2LMHeadModel",
    ),
    "no architecture": ("GPT2LMHeadModel", {"architectures": None}, "architectures is empty"),
    "rope scaling": (
        "LlamaForCausalLM",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
        "rope_scaling lacks low_freq_factor",
    ),
    "old rope scaling": (
        "LlamaForCausalLM",
        {"rope_scaling": {"type": "dynamic", "factor": 2}},
        "rope_scaling.*dynamic.*default, linear",
    ),
    "rope parameters": ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
    "attention bias": ("LlamaForCausalLM", {"attention_bias": True}, "attention_bias is True"),
    "mlp bias": ("LlamaForCausalLM", {"mlp_bias": True}, "mlp_bias is True"),
    "llama activation": ("LlamaForCausalLM", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "quantised": ("LlamaForCausalLM", {"quantization_config": {"bits": 4}}, "quantization_config"),
    "gpt2 activation": (
        "GPT2LMHeadModel",
        {"activation_function": "tanh"},
        "activation_function is 'tanh'.*gelu_new",
    ),
    "gpt2 attention": (
        "GPT2LMHeadModel",
        {"scale_attn_by_inverse_layer_idx": True},
        "scale_attn_by_inverse_layer_idx",
    ),
    "bert positions": ("BertModel", {"position_embedding_type": "relative_key"}, "relative_key"),
    "a decoder": ("BertModel", {"is_decoder": True}, "is_decoder"),
    "untied bert": ("BertForMaskedLM", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    "many labels": (
        "BertForSequenceClassification",
        {"problem_type": "multi_label_classification"},
        "multi_label",
    ),
    "labels with gaps": (
        "BertForSequenceClassification",
        {"id2label": {"0": "a", "2": "b"}},
        "id2label",
    ),
    "a size as a string": ("BertModel", {"hidden_size": "24"}, "hidden_size is '24'"),
    "an infinite rate": ("GPT2LMHeadModel", {"resid_pdrop": 1e999}, "resid_pdrop is inf"),
    "a rate of NaN": (
        "GPT2LMHeadModel",
        {"layer_norm_epsilon": float("nan")},
        "layer_norm_epsilon is nan",
    ),
    "a rate of 400 digits": ("LlamaForCausalLM", {"rms_norm_eps": 10**400}, "rms_norm_eps is 1000"),
    "a flag as a string": (
        "GPT2LMHeadModel",
        {"tie_word_embeddings": "false"},
        "tie_word_embeddings is 'false'; it must be true or false",
    ),
    "a flag as a number": (
        "LlamaForCausalLM",
        {"tie_word_embeddings": 0},
        "embeddings is 0; it must",
    ),
    "a list of activations": (
        "GPT2LMHeadModel",
        {"activation_function": ["gelu"]},
        r"activation_function is \['gelu'\]",
    ),
    "no layers": ("GPT2LMHeadModel", {"n_layer": 0}, "n_layer is 0"),
    "heads": ("BertModel", {"num_attention_heads": 5}, "num_attention_heads=5"),
    "vocabulary": (
        "BertModel",
        {"vocab_size": 60},
        r"embeddings.word_embeddings.weight has shape \(61, 24\).* \(60, 24\)",
    ),
    "number of labels": (
        "BertForSequenceClassification",
        {"id2label": {"0": "a", "1": "b"}},
        r"classifier.bias has shape \(3,\).* \(2,\)",
    ),
    "width of llama": (
        "LlamaForCausalLM",
        {"num_key_value_heads": 4},
        r"k_proj.weight has shape \(16, 32\).* \(32, 32\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    name, change, message = REFUSED[case]
    config, theirs, _ = stored(name)
    with pytest.raises(UserError, match=message):
        interop.read(write_folder(tmp_path / "in", {**config, **change}, theirs))


def test_a_folder_without_config_or_weights(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        interop.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match="config.json"):
        interop.read(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(stored("GPT2Model")[0]))
    with pytest.raises(UserError, match="it has no weights"):
        interop.read(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pytorch_model.bin.*convert"):
        interop.read(tmp_path)
    assert interop.is_huggingface(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {"name": "gpt"}, "train": {}}')
    assert not interop.is_huggingface(tmp_path) and not interop.is_huggingface(tmp_path / "x")


def test_integer_weights_are_refused(tmp_path):
    config, theirs, _ = stored("GPT2Model")
    theirs["wpe.weight"] = theirs["wpe.weight"].astype(np.int8)
    with pytest.raises(UserError, match="wpe.weight has dtype I8.*bfloat16"):
        interop.read(write_folder(tmp_path / "in", config, theirs))


def test_the_same_tensor_under_two_names(tmp_path):
    config, theirs, _ = stored("BertModel")
    theirs["embeddings.LayerNorm.gamma"] = theirs["embeddings.LayerNorm.weight"]
    with pytest.raises(UserError, match="LayerNorm.gamma"):
        interop.read(write_folder(tmp_path / "in", config, theirs))


def test_write_refuses_mismatches_and_leaves_no_files(tmp_path):
    imported = interop.read(write_folder(tmp_path / "in", *stored("BertModel")[:2]))
    params = loaded(imported)
    with pytest.raises(UserError, match="BertForMaskedLM needs .*mlm/bias"):
        write_again(imported, tmp_path / "out", architecture="BertForMaskedLM")
    with pytest.raises(UserError, match=r"pooler/bias has shape \(3,\).* \(24,\)"):
        write_again(imported, tmp_path / "out", params={**params, "pooler/bias": np.ones(3)})
    with pytest.raises(UserError, match="float64"):
        write_again(imported, tmp_path / "out", dtype="float64")
    with pytest.raises(UserError, match="not an empty folder"):
        write_again(imported, tmp_path / "in")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    (tmp_path / "out").mkdir()
    write_again(imported, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_numbers_too_large_for_float16(tmp_path):
    imported = interop.read(write_folder(tmp_path / "in", *stored("GPT2LMHeadModel")[:2]))
    params = loaded(imported)
    params["final_norm/scale"] = params["final_norm/scale"] * 1e6
    with pytest.raises(UserError, match="transformer.ln_f.weight.*float16"):
        write_again(imported, tmp_path / "out", params=params, dtype="float16")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_largest_float32_is_too_large_for_bfloat16(tmp_path):
    imported = interop.read(write_folder(tmp_path / "in", *stored("GPT2LMHeadModel")[:2]))
    params = loaded(imported)
    largest = np.full_like(params["final_norm/scale"], np.finfo(np.float32).max)
    params["final_norm/scale"] = largest
    with pytest.raises(UserError, match="ln_f.weight.* 3.40282e.38, beyond the 3.38953e.38 of bf"):
        write_again(imported, tmp_path / "out", params=params, dtype="bfloat16")
    params["final_norm/scale"] = largest.astype(np.float64) * 10
    with pytest.raises(UserError, match="ln_f.weight.*of float32"):
        write_again(imported, tmp_path / "out", params=params, dtype="float32")


def test_shard_sizes_are_positive(tmp_path):
    with pytest.raises(UserError, match="max_shard_bytes"):
        files.write_tensors(tmp_path, [], 0, {})
