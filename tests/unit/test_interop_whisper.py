"""Whisper of Hugging Face: imports and exports. Tensors are those of tests/parity/whisper.npz."""

import json
import pathlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bigjax import interop
from bigjax.errors import UserError
from bigjax.interop import whisper as table
from bigjax.interop.mapping import Architecture
from bigjax.models import whisper
from bigjax.tasks import Task, family_for, init_and_axes
from bigjax.train import export_model, import_model
from bigjax.train import workdir as workdir_lib

NAME = "WhisperForConditionalGeneration"
REFERENCE = pathlib.Path(__file__).parents[1] / "parity" / "whisper.npz"
PROCESSOR = {"chunk_length": 1, "feature_size": 16, "hop_length": 160, "n_fft": 400}
PROCESSOR |= {"n_samples": 16_000, "nb_max_frames": 100, "sampling_rate": 16_000}
PROCESSOR |= {"feature_extractor_type": "WhisperFeatureExtractor", "mel_filters": [[0.5]]}
FILES = {
    "vocab.json": b'{"a": 0}\n',
    "normalizer.json": b'{"colour": "color"}',
    "generation_config.json": b'{"suppress_tokens": [1]}',
    "processor_config.json": b"{}",
    table.PROCESSOR: json.dumps(PROCESSOR).encode(),
}


def write(folder, dtype=np.float32, **changes) -> dict:
    """The reference as a folder with the copy of the output layer that older versions wrote."""
    with np.load(REFERENCE) as f:
        config = json.loads(str(f["config"]))
        tensors = {k[7:]: f[k].astype(dtype) for k in f if k.startswith("params/")}
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"]
    folder.mkdir()
    config = {**config, "architectures": [NAME], "torch_dtype": np.dtype(dtype).name, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return tensors


class Speech:
    """A task that only has the model."""

    DATA = "text_to_text"

    @staticmethod
    def build(config, options) -> Task:
        family, c = family_for(config, "whisper", needs=("Model",))
        inputs = jnp.zeros((1, 4, c.n_mels)), jnp.zeros((1, 1), jnp.int32)
        init, axes = init_and_axes(family.Model, c, *inputs)
        none = dict.fromkeys(("loss", "load_data", "batch_shapes"))
        return Task(init=init, axes=axes, model=family.Model(c), model_config=c, **none)


@pytest.fixture
def task(monkeypatch):
    name = f"{__name__}.Speech"
    monkeypatch.setitem(table.FAMILY.architectures, NAME, Architecture((), {"name": name}))


def contents(folder) -> dict:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_an_import_and_export_gives_the_same_files(dtype, task, tmp_path):
    write(tmp_path / "in", dtype)
    import_model.import_run(str(tmp_path / "in"), str(tmp_path / "run"), lambda line: None)
    export_model.export_run(str(tmp_path / "run"), str(tmp_path / "out"), log=lambda line: None)
    assert contents(tmp_path / "in") == contents(tmp_path / "out")
    c = workdir_lib.read_config(str(tmp_path / "run")).model
    assert (c.name, c.max_seconds, c.max_len, c.start_id) == ("whisper", 1.0, 20, 57)


def test_a_model_of_ones_own_is_exported(task, tmp_path):
    """Without the record of its origin: a new config, no copies, and the extractor's settings."""
    tensors = write(tmp_path / "in")
    import_model.import_run(str(tmp_path / "in"), str(tmp_path / "run"), lambda line: None)
    (tmp_path / "run" / "huggingface.json").unlink()
    export_model.export_run(str(tmp_path / "run"), str(tmp_path / "out"), log=lambda line: None)
    found = load_file(tmp_path / "out" / "model.safetensors")
    tensors.pop("proj_out.weight")
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        np.testing.assert_array_equal(found[name], x, name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [NAME] and config["decoder_ffn_dim"] == 36
    assert config["begin_suppress_tokens"] is None
    again, before = (interop.read(tmp_path / name).model for name in ("out", "in"))
    assert again == before
    processor = json.loads((tmp_path / "out" / table.PROCESSOR).read_text())
    own = {k: v for k, v in PROCESSOR.items() if k != "mel_filters"}
    assert own.items() <= processor.items()


@pytest.mark.parametrize("seconds, samples", [(2.0, 32_000), (0.5, 8_000)])
def test_the_extractor_of_another_length(seconds, samples):
    model = dict(max_seconds=seconds, n_mels=16)
    originals = {table.PROCESSOR: FILES[table.PROCESSOR]}
    (content,) = table.FAMILY.files(model, originals).values()
    found = json.loads(content)
    assert (found["chunk_length"], found["n_samples"]) == (seconds, samples)
    assert found["nb_max_frames"] == samples // 160 and found["mel_filters"] == [[0.5]]
    assert not table.FAMILY.files({**model, "max_seconds": 1.0}, originals)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(activation_function="relu"), "activation_function is 'relu'"),
        (dict(scale_embedding=True), "scale_embedding is True"),
        (dict(tie_word_embeddings=False), "tie_word_embeddings is False"),
        (dict(decoder_attention_heads=2), "only supports equal sizes"),
        (dict(encoder_ffn_dim=40), "only supports equal sizes"),
        (dict(max_source_positions=40), r"has shape \(50, 24\), .* must be \(40, 24\)"),
        (dict(architectures=["WhisperForAudioClassification"]), "supported are"),
    ],
)
def test_refused(changes, message, tmp_path):
    write(tmp_path / "in", **changes)
    with pytest.raises(UserError, match=message):
        interop.read(tmp_path / "in")


def test_settings_of_training_are_noted(tmp_path):
    write(tmp_path / "in", encoder_layerdrop=0.1)
    (note,) = interop.read(tmp_path / "in").notes
    assert "encoder_layerdrop=0.1" in note


def test_a_model_that_transformers_has_no_class_for():
    fields = dict(name="whisper", **vars(whisper.Config(**whisper.PRESETS["tiny"])))
    assert interop.family_of(fields).name == "whisper"
    with pytest.raises(UserError, match=r"model.hop=80 \(must be 160\)"):
        interop.family_of({**fields, "hop": 80})
