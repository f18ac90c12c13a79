"""Hugging Face folders of T5, its encoder alone, T5 1.1 and Marian: fields and tensors both ways.

Tensors come from the frozen references of tests/parity, which have the names of transformers.
"""

import json

from flax.core import meta
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import interop
from bigjax.errors import UserError
from bigjax.interop.mapping import Family
from bigjax.models import t5
from bigjax.train import export_model, import_model
from bigjax.trees import named_leaves
from tests.parity import test_t5
from tests.unit.test_interop import write_again, write_folder

T5, MARIAN = t5.HUGGING_FACE
CLASSES = {
    "t5": "T5ForConditionalGeneration",
    "t5_1_1": "T5ForConditionalGeneration",
    "marian": "MarianMTModel",
}
OF_2017 = dict(position="sinusoidal_halves", norm_eps=1e-5, output_bias=True, key_bias=True)
LEFT_OVER = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def stored(case: str) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and tensors of a frozen reference."""
    with np.load(test_t5.HERE / f"{case}.npz") as f:
        config = {**json.loads(str(f["config"])), "architectures": [CLASSES[case]]}
        return config, {k.removeprefix("params/"): f[k] for k in f if k.startswith("params/")}


def model_of(preset: str, **more) -> dict:
    return {"name": "t5", **vars(t5.Config(**{**t5.PRESETS[preset], **more}))}


def test_the_family_of_each_preset_and_its_fields_both_ways():
    for preset in t5.PRESETS:
        of_2017 = preset.startswith("transformer")
        model = model_of(preset, **(OF_2017 if of_2017 else {}))
        family = interop.family_of(model)
        assert family is (MARIAN if of_2017 else T5), preset
        config = family.put_fields(model, None)
        fields = family.model_fields(json.loads(json.dumps(config)))
        assert fields == {k: model[k] for k in fields}, preset
        assert family.put_fields(model, config) == config
        rest = set(model) - set(fields) - {"name", "dtype", "param_dtype", "scan", "remat"}
        rest -= {"attention", *(("relative_buckets", "relative_distance") if of_2017 else ())}
        assert rest == ({"head_dim"} if of_2017 else {"key_bias"})  # follow from the others


def test_a_model_without_a_class_is_refused_by_its_keys():
    with pytest.raises(UserError, match="for marian, model.position='sinusoidal' .*halves"):
        interop.family_of(model_of("transformer-base"))
    with pytest.raises(UserError, match="model.post_norm=True"):
        interop.family_of(model_of("small", post_norm=True))
    with pytest.raises(UserError, match="model.scale_logits=True .must be False"):
        interop.family_of(model_of("small", tie_embeddings=False))


@pytest.mark.parametrize("case", CLASSES)
def test_entries_are_the_parameters_of_the_model(case):
    config, theirs = stored(case)
    family: Family = test_t5.FAMILIES[config["model_type"]]
    c = t5.Config(**family.model_fields(config), scan=False)
    one = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(t5.Model(c).init, jax.random.key(0), one, one)["params"]
    expected = {n: x.shape for n, x in named_leaves(meta.unbox(shapes)).items()}
    entries = family.entries(CLASSES[case], vars(c), 2)
    assert {n: shape for e in entries for n, shape in e.parts} == expected
    assert {e.name: e.shape for e in entries} == {n: x.shape for n, x in theirs.items()}


@pytest.mark.parametrize("case", CLASSES)
def test_a_folder_is_written_again_byte_for_byte(tmp_path, case):
    config, theirs = stored(case)
    imported = interop.read(write_folder(tmp_path / "in", config, theirs))
    assert not imported.missing and not imported.unknown and imported.task == {"name": "seq2seq"}
    own = test_t5.reference(case)
    assert {n: imported.load(n).tolist() for n in imported.names} == {
        n: x.tolist() for n, x in own.params.items()
    }
    write_again(imported, tmp_path / "out")
    file = "model.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "in" / file).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    new = interop.read(write_again(imported, tmp_path / "new", config=None))
    assert new.model == imported.model and new.architecture == imported.architecture


def test_copies_and_left_over_tensors_of_older_versions(tmp_path):
    for case, shared in (("t5", "shared.weight"), ("marian", "model.shared.weight")):
        config, theirs = stored(case)
        prefix = "model." if case == "marian" else ""
        copies = [f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
        old = {**theirs, **dict.fromkeys([*copies, "lm_head.weight"], theirs[shared])}
        if case == "t5":
            old[LEFT_OVER] = np.ones((16, 3), np.float32)
        else:
            old["model.encoder.embed_positions.weight"] = np.ones((40, 24), np.float32)
        imported = interop.read(write_folder(tmp_path / case, config, old))
        assert not imported.unknown and not imported.missing
        assert len(imported.layout.copies) == 3 and len(imported.layout.buffers) == 1
    old["lm_head.weight"] = old["lm_head.weight"] + 1
    with pytest.raises(UserError, match="lm_head.weight differs from model.shared.weight"):
        interop.read(write_folder(tmp_path / "differs", config, old))


def test_the_output_layer_of_a_folder_that_transformers_5_saved(tmp_path):
    """Its config.json says that it is tied; another lm_head.weight in the files that it is not."""
    config, theirs = stored("t5_1_1")
    published = interop.read(write_folder(tmp_path / "published", config, theirs))
    config |= {"tie_word_embeddings": True, "scale_decoder_outputs": False}
    own = interop.read(write_folder(tmp_path / "own", config, theirs))
    assert own.model == published.model
    assert not own.model["tie_embeddings"] and not own.model["scale_logits"] and not own.missing
    assert own.family.put_fields(own.model, config) == config
    tied = {n: x for n, x in theirs.items() if n != "lm_head.weight"}
    tied = interop.read(write_folder(tmp_path / "tied", config, tied))
    assert tied.model["tie_embeddings"] and not tied.model["scale_logits"] and not tied.missing
    assert interop.family_of(model_of("small", scale_logits=False)) is T5
    new = T5.put_fields(tied.model, None)
    assert new["tie_word_embeddings"] and new["scale_decoder_outputs"] is False
    assert T5.model_fields(new) == {k: v for k, v in tied.model.items() if k != "name"}


def test_the_class_of_an_export_follows_from_its_heads():
    assert T5.architecture_of(["embed/embedding", "encoder/x"]) == "T5EncoderModel"
    for names in (["decoder/x"], ["decoder/x", "head/kernel"]):
        assert T5.architecture_of([*names, "encoder/x"]) == "T5ForConditionalGeneration"


def test_a_new_config_of_marian_has_its_padding_in_the_vocabulary():
    config = MARIAN.put_fields(model_of("transformer-base", **OF_2017, start_id=9), None)
    assert config["pad_token_id"] == config["decoder_start_token_id"] == 9


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"num_decoder_layers": None}, dict(n_layers=3, n_decoder_layers=3)),
        ({"num_decoder_layers": 2}, dict(n_layers=3, n_decoder_layers=2)),
        ({"decoder_start_token_id": None, "pad_token_id": 7}, dict(start_id=7, max_len=512)),
        ({"decoder_start_token_id": 2, "n_positions": 99}, dict(start_id=2, max_len=99)),
        ({"feed_forward_proj": "gated-gelu"}, dict(activation="geglu", tie_embeddings=True)),
        ({"feed_forward_proj": "gated-silu"}, dict(activation="swiglu")),
        ({"feed_forward_proj": "gelu"}, dict(activation="gelu_exact")),
        ({"feed_forward_proj": "gelu_new"}, dict(activation="gelu")),
        ({"feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new"}, {}),
    ],
)
def test_what_keys_of_t5_mean(changes, expected):
    config = {**stored("t5")[0], **changes}
    fields = T5.model_fields(config)
    assert {k: fields[k] for k in expected} == expected
    assert T5.put_fields(fields, config) == config
    assert T5.model_fields(T5.put_fields(fields, None)) == fields
    changed = T5.put_fields({**fields, "activation": "relu"}, config)
    assert changed["feed_forward_proj"] == "relu" and T5.model_fields(changed)


@pytest.mark.parametrize(
    "case, changes, message",
    [
        (
            "t5",
            {"feed_forward_proj": "gated-relu"},
            "feed_forward_proj is 'gated-relu'.*gated-silu",
        ),
        ("t5", {"feed_forward_proj": None}, "feed_forward_proj is None"),
        ("t5", {"feed_forward_proj": "gelu", "dense_act_fn": "relu"}, "dense_act_fn is 'relu'"),
        ("t5", {"is_gated_act": True}, "is_gated_act is True"),
        ("t5", {"is_decoder": True}, "is_decoder is True"),
        ("t5", {"decoder_start_token_id": "0"}, "decoder_start_token_id is '0'"),
        ("t5", {"num_decoder_layers": 0}, "num_decoder_layers is 0"),
        ("t5", {"scale_decoder_outputs": 1}, "scale_decoder_outputs is 1"),
        ("t5_1_1", {"scale_decoder_outputs": True}, "scale_decoder_outputs is True.*of its own"),
        ("t5_1_1", {"tie_word_embeddings": "false"}, "without quotes"),
        ("marian", {"decoder_attention_heads": 4}, "encoder_attention_heads is 3.*heads 4"),
        ("marian", {"decoder_ffn_dim": 4}, "encoder_ffn_dim is 36 and decoder_ffn_dim 4"),
        ("marian", {"activation_function": "tanh"}, "activation_function is 'tanh'"),
        ("marian", {"normalize_before": True}, "normalize_before is True"),
        ("marian", {"normalize_embedding": True}, "normalize_embedding is True"),
        ("marian", {"add_final_layer_norm": True}, "add_final_layer_norm is True"),
        ("marian", {"static_position_embeddings": False}, "static_position_embeddings is False"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder"),
        ("marian", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ("marian", {"decoder_vocab_size": 5}, "decoder_vocab_size is 5"),
    ],
)
def test_configs_that_are_refused(case, changes, message):
    config = {**stored(case)[0], **changes}
    with pytest.raises(UserError, match=message):
        test_t5.FAMILIES[config["model_type"]].model_fields(config)


def test_an_encoder_alone_gets_a_decoder_from_the_seed_and_is_exported_unchanged(tmp_path):
    config, theirs = stored("t5")
    config |= {"architectures": ["T5EncoderModel"], "is_encoder_decoder": False}
    kept = {n: x for n, x in theirs.items() if not n.startswith("decoder")}
    folder, run = write_folder(tmp_path / "in", config, kept), tmp_path / "run"
    (folder / "source.spm").write_bytes(b"any")
    lines: list[str] = []
    import_model.import_run(folder, run, lines.append)
    (line,) = [x for x in lines if "drawn from the seed" in x]
    assert "decoder/stack" in line and "encoder" not in line
    export_model.export_run(run, tmp_path / "out", log=lines.append)
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path
    assert len([*(tmp_path / "out").iterdir()]) == 3
    (run / "huggingface.json").unlink()
    export_model.export_run(run, tmp_path / "new", log=lines.append)
    new = interop.read(tmp_path / "new")
    assert new.architecture == CLASSES["t5"] and not new.missing
    np.testing.assert_array_equal(new.load("embed/embedding"), theirs["shared.weight"])
