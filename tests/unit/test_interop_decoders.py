"""Folders of decoders of Hugging Face: tensors and configs in both directions, and what is refused.

Tensors and configs come from the frozen references of tests/parity, whose logits show that the
tables are right.
"""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from bigjax import interop
from bigjax.errors import UserError
from bigjax.models import gpt
from bigjax.train import export_model, import_model
from tests.parity.test_decoders import CASES, reference
from tests.unit.test_interop import assert_same, loaded, write_again, write_folder

LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)


def folder_of(path, case: str, without=(), **changes):
    """A folder with the reference's tensors; its config.json without some keys, and with others."""
    config = {k: v for k, v in reference(case).config.items() if k not in without}
    return write_folder(path, {**config, **changes}, reference(case).tensors)


def config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_an_import_and_export_keeps_tensors_and_config(tmp_path, case):
    ref = reference(case)
    folder = folder_of(tmp_path / "in", case)
    imported = interop.read(folder)
    assert not imported.missing and not imported.unknown and not imported.notes
    assert_same(loaded(imported), ref.params)
    back = write_again(imported, tmp_path / "out")
    for name in ("model.safetensors", "config.json"):
        same = (back / name).read_bytes() == (folder / name).read_bytes()
        assert same or config_of(back) == ref.config, name
    assert (back / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    # A new config, written without the original, describes the same model.
    model = {"name": "gpt", **dataclasses.asdict(ref.model)}
    assert interop.family_of(model, first=ref.family.name) is ref.family
    again = interop.read(write_again(imported, tmp_path / "new", config=None, model=model))
    assert gpt.Config(**without_name(again.model)) == ref.model
    assert_same(loaded(again), ref.params)


def without_name(model: dict) -> dict:
    return {key: value for key, value in model.items() if key != "name"}


V4 = {  # case: keys of transformers 5, their form in transformers 4
    "llama31": (
        ("rope_parameters",),
        dict(
            rope_theta=10000.0,
            rope_scaling=dict(LLAMA3, rope_type="llama3", original_max_position_embeddings=64),
        ),
    ),
    "mistral": (("rope_parameters",), dict(rope_theta=10000.0)),
    "qwen3": (("rope_parameters", "layer_types"), dict(rope_theta=10000, rope_scaling=None)),
    "gemma2": (("rope_parameters", "layer_types"), dict(rope_theta=10000.0)),
    "gemma3": (
        ("rope_parameters", "layer_types", "_sliding_window_pattern"),
        dict(
            rope_theta=10000.0,
            rope_local_base_freq=100.0,
            rope_scaling=dict(rope_type="linear", factor=4.0),
            sliding_window_pattern=6,
        ),
    ),
    "phi3": (
        ("rope_parameters",),
        dict(
            rope_scaling=dict(type="su", short_factor=[1.0, 1.5], long_factor=[2.0, 6.0]),
            rope_theta=10000.0,
        ),
    ),
    "gpt_neox": (("rope_parameters",), dict(rotary_emb_base=10000, rotary_pct=0.25)),
}


@pytest.mark.parametrize("case", V4)
def test_configs_of_transformers_4(tmp_path, case):
    without, more = V4[case]
    imported = interop.read(folder_of(tmp_path / "in", case, without, **more))
    assert gpt.Config(**without_name(imported.model)) == reference(case).model
    write_again(imported, tmp_path / "out")
    assert config_of(tmp_path / "out") == config_of(tmp_path / "in")


DEFAULTS = {  # what transformers assumes for absent keys
    "mistral": (("sliding_window", "num_key_value_heads"), dict(window=4096, n_kv_heads=8)),
    "gemma2": (("attn_logit_softcapping",), dict(attention_softcap=50.0)),
    "qwen3": (("use_sliding_window",), dict(window=0)),
    "gpt_neox": (("rope_parameters",), dict(rope_share=0.25, rope_theta=10000.0)),
    "phi3": (("original_max_position_embeddings",), dict(rope_original_len=4096)),
}


@pytest.mark.parametrize("case", DEFAULTS)
def test_defaults_of_absent_keys(case):
    without, want = DEFAULTS[case]
    ref = reference(case)
    config = {k: v for k, v in ref.config.items() if k not in (*without, "layer_types")}
    fields = ref.family.model_fields(config)
    assert {key: fields[key] for key in want} == want


CHANGED = {  # case, changed fields: changed keys of config.json
    ("mistral", "window"): (7, {"sliding_window": 7}),
    ("qwen2", "window"): (
        7,
        dict(
            sliding_window=7,
            use_sliding_window=True,
            max_window_layers=0,
            layer_types=["sliding_attention"] * 2,
        ),
    ),
    ("gemma2", "query_scale"): (0.5, {"query_pre_attn_scalar": 4}),
    ("gemma2", "logit_softcap"): (0.0, {"final_logit_softcapping": None}),
    ("gpt_neox_sequential", "tie_embeddings"): (True, {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("case, field", CHANGED, ids=str)
def test_changed_fields_change_their_keys_alone(case, field):
    ref = reference(case)
    value, keys = CHANGED[case, field]
    model = {**ref.family.model_fields(ref.config), field: value}
    config = ref.family.put_fields(model, ref.config)
    assert config == {**ref.config, **keys}
    assert ref.family.model_fields(config) == model


@pytest.mark.parametrize("case", CASES)
def test_every_changed_field_is_read_again(case):
    ref = reference(case)
    model = ref.family.model_fields(ref.config)
    changes = dict(vocab_size=62, max_len=64, norm_eps=0.01, rope_theta=77.0, d_ff=30)
    if model["local_rope_theta"]:
        changes |= dict(local_rope_theta=33.0, window=3, global_every=2)
    if model["rope_scaling"] == "longrope":
        changes |= dict(rope_long=(1.0, 9.0), rope_attention_factor=2.0, rope_original_len=20)
    elif model["rope_scaling"]:
        changes |= dict(rope_factor=3.0)
    config = ref.family.put_fields({**model, **changes}, ref.config)
    assert ref.family.model_fields(config) == {**model, **changes}


def test_another_max_len_keeps_the_scale_of_longrope():
    """It follows from the lengths, unless config.json has it."""
    ref = reference("phi3")
    model = ref.family.model_fields(ref.config)
    assert model["rope_attention_factor"] == pytest.approx(
        (1 + np.log(32 / 24) / np.log(24)) ** 0.5
    )
    config = ref.family.put_fields({**model, "max_len": 64}, ref.config)
    assert config["max_position_embeddings"] == 64
    kept = ref.family.model_fields(config)
    assert kept == {**model, "max_len": 64}


REFUSED = {
    ("llama31", "rope_parameters"): ({"rope_type": "yarn"}, "yarn.*default, linear, llama3"),
    ("llama31", "rope_scaling"): ({"rope_type": "llama3", "factor": 8.0}, "lacks low_freq_factor"),
    ("llama31", "partial_rotary_factor"): (0.5, "partial_rotary_factor is 0.5"),
    ("llama31", "no_rope_layers"): ([1, 0], "no_rope_layers"),
    ("mistral", "layer_types"): (["sliding_attention", "full_attention"], "layer_types is"),
    ("mistral", "hidden_act"): ("gelu", "hidden_act is 'gelu'"),
    ("qwen2", "layer_types"): (["sliding_attention"] * 2, "use_sliding_window is false"),
    ("qwen3", "layer_types"): (["sliding_attention", "chunked_attention"], "chunked_attention"),
    ("qwen3", "attention_bias"): (True, "attention_bias is True"),
    ("gemma2", "layer_types"): (
        ["full_attention", "sliding_attention", "full_attention"],
        r"layer_types gives full_attention to the layers \[0, 2\] of 3",
    ),
    ("gemma2", "hidden_activation"): ("gelu", "hidden_activation is 'gelu'"),
    ("gemma2", "use_bidirectional_attention"): (True, "use_bidirectional_attention is True"),
    ("gemma2", "sliding_window"): (None, "sliding_window is null"),
    ("gemma3", "attn_logit_softcapping"): (50.0, "attn_logit_softcapping is 50.0"),
    ("gemma3", "rope_parameters"): ({"rope_type": "default"}, "must have sliding_attention and"),
    ("gemma3", "layer_types"): (["full_attention"], "one name for each of num_hidden_layers=7"),
    ("phi3", "rope_parameters"): (
        {"rope_type": "longrope", "short_factor": "x", "long_factor": [1.0]},
        "short_factor is 'x'",
    ),
    ("olmo2", "clip_qkv"): (8.0, "clip_qkv is 8.0"),
    ("gpt_neox", "attention_bias"): (False, "attention_bias is False"),
    ("gpt_neox", "hidden_act"): ("gelu_fast", "hidden_act is 'gelu_fast'"),
}


@pytest.mark.parametrize("case, key", REFUSED, ids=str)
def test_refused(case, key):
    ref = reference(case)
    value, words = REFUSED[case, key]
    with pytest.raises(UserError, match=words):
        ref.family.model_fields({**ref.config, key: value})


def test_layers_of_qwen_of_which_some_have_a_window():
    ref = reference("qwen3")
    options = {k: v for k, v in ref.config.items() if k != "layer_types"}
    options |= dict(num_hidden_layers=4)
    with pytest.raises(UserError, match=r"max_window_layers gives .* \[0\] of 4"):
        ref.family.model_fields({**options, "max_window_layers": 1})
    assert ref.family.model_fields({**options, "max_window_layers": 4})["window"] == 0


def test_notes_on_settings_that_compute_the_same():
    config = {**reference("llama31").config, "attention_dropout": 0.1, "pretraining_tp": 2}
    notes = reference("llama31").family.notes(config)
    assert [note.split("=")[0] for note in notes] == ["attention_dropout", "pretraining_tp"]
    config = {**reference("phi3").config, "resid_pdrop": 0.1}
    assert "embd_pdrop=0.0" in reference("phi3").family.notes(config)[0]


def test_the_family_follows_from_the_options():
    of = lambda **options: (
        interop.family_of(
            {"name": "gpt", **dataclasses.asdict(gpt.Config(**{**LLAMA, **options}))}
        ).name
    )
    assert of() == "llama" and of(window=8) == "mistral" and of(qkv_bias=True) == "qwen2"
    assert of(qk_norm="head") == "qwen3" and of(rope_share=0.5) == "phi3"
    assert of(qk_norm="width", norm_place="post") == "olmo2"
    with pytest.raises(UserError, match="for llama, model.activation='geglu'"):
        of(activation="geglu")


LLAMA = dict(position="rotary", norm="rmsnorm", bias=False, activation="swiglu", window=0)


def test_old_names_and_buffers_of_gpt_neox(tmp_path):
    ref = reference("gpt_neox")
    old = {k.replace("embed_out", "lm_head"): x for k, x in ref.tensors.items()}
    old |= {
        "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 4, 4), np.uint8),
        "gpt_neox.layers.0.attention.masked_bias": np.float32(-1e9)[None],
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq": np.ones(1, np.float32),
    }
    imported = interop.read(write_folder(tmp_path / "in", ref.config, old))
    assert not imported.unknown and not imported.missing
    assert_same(loaded(imported), ref.params)


@pytest.mark.parametrize("case", ["gemma3", "gpt_neox"])
def test_a_run_of_an_import_and_its_export(tmp_path, case):
    """In bfloat16 and shards; gemma3 has layers after the last period."""
    ref = reference(case)
    half = {k: x.astype(ml_dtypes.bfloat16) for k, x in ref.tensors.items()}
    config = {**ref.config, "dtype": "bfloat16"}
    one = interop.read(write_folder(tmp_path / "one", config, half))
    folder = write_again(one, tmp_path / "in", max_shard_bytes=8_000)
    quiet = lambda text: None
    import_model.import_run(folder, tmp_path / "run", quiet)
    export_model.export_run(tmp_path / "run", tmp_path / "out", log=quiet)
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) >= 4 and names == sorted(p.name for p in (tmp_path / "out").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
