"""The task 'transcribe': from recordings to a loss, and what is refused."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import losses, tasks
from bigjax.errors import UserError
from bigjax.evals import alignment
from bigjax.layers.audio import log_mel
from bigjax.models import whisper
from bigjax.parallel import mesh as mesh_lib
from bigjax.tasks import transcribe
from tests import helpers
from tests.audio_files import RATE, make_table

SIZES = dict(n_fft=64, hop=32, n_mels=8, d_model=16, n_layers=1, n_heads=2, max_len=40)


def config_of(train: str, **task):
    c = config_lib.new_config()
    rate = dict(sample_rate=RATE, max_seconds=0.5)
    c.model = dict(name="whisper", vocab_size=259, start_id=256, **SIZES, **rate)
    c.task = dict(name="transcribe", **task)
    c.data = dict(name="audio", train=train, tokenizer=dict(kind="bytes"), seq_len=20, **rate)
    c.data.update(valid_fraction=0.0, test_fraction=0.0)
    c.train.batch_size = 4
    return c


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(task, batch, variables)."""
    table = make_table(tmp_path_factory.mktemp("clips"), n=6)
    masks = dict(time_masks=2, time_width=20, freq_masks=1, freq_width=4, label_smoothing=0.1)
    task = tasks.build(helpers.filled(config_of(str(table), **masks)))
    data = task.load_data(lambda line: None, splits=["train"])
    batch = data.split("train", 4).batch_at(0)
    return task, batch, jax.jit(task.init)(jax.random.key(0))


def test_shapes_are_those_of_batches(built):
    task, batch, _ = built
    shapes = {k: (x.shape, x.dtype) for k, x in task.batch_shapes(4, 0).items()}
    assert shapes == {k: (x.shape, x.dtype) for k, x in batch.items()}
    assert task.unit == "audio_seconds" and task.units_per_example == 0.5
    frames = 124  # an even number of the 125
    assert task.flops_per_example == whisper.flops_per_pair(task.model_config, frames, 20)
    assert [*task.attention_lengths.values()] == [-(-frames // 2), 20]


def test_shorter_recordings_than_a_trained_model_reads_are_reported(tmp_path):
    c = config_of(str(make_table(tmp_path, n=6)))
    for seconds, reported in ((0.5, 0), (1.0, 1)):
        c.model.max_seconds, lines = seconds, []
        tasks.build(helpers.filled(c.copy_and_resolve_references())).load_data(lines.append)
        assert sum("training reads 0.5 seconds" in line for line in lines) == reported


def test_the_loss_is_that_of_the_text_after_the_start_token(built):
    task, batch, variables = built
    loss = jax.jit(task.loss, static_argnums=5)
    (total, weight), (metrics, _) = loss(variables["params"], {}, {}, batch, None, False)
    c, targets = task.model_config, batch["targets"]
    inputs = np.concatenate([np.full((4, 1), 256), targets[:, :-1]], 1)
    mel = log_mel(batch["audio"], sample_rate=RATE, n_fft=64, hop=32, n_mels=8)
    logits = whisper.Model(c).apply(variables, mel[:, : 2 * c.n_positions], inputs).logits
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], -1)
    want = (nll[..., 0] * batch["weights"]).sum()
    assert float(total) == pytest.approx(want, rel=1e-5) == float(metrics["nll"][0])
    assert float(weight) == batch["weights"].sum()


def test_features_are_masked_in_training_only(built):
    task, batch, variables = built
    loss = jax.jit(task.loss, static_argnums=5)
    value = lambda seed, train: float(
        loss(variables["params"], {}, {}, batch, jax.random.key(seed), train)[1][0]["nll"][0]
    )
    assert value(0, False) == value(1, False)
    assert len({value(0, True), value(1, True), value(0, False)}) == 3
    grads = jax.jit(jax.grad(lambda p: task.loss(p, {}, {}, batch, jax.random.key(0), True)[0][0]))(
        variables["params"]
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_masks_of_time_lie_within_a_recording(built, tmp_path, monkeypatch):
    """Not in the silence after it, where they would hide nothing."""
    _, batch, variables = built
    masks = dict(time_masks=20, time_width=20)
    task = tasks.build(helpers.filled(config_of(str(make_table(tmp_path, n=6)), **masks)))
    read, call = [], whisper.Model.__call__
    monkeypatch.setattr(
        whisper.Model, "__call__", lambda self, x, *a, **k: read.append(x) or call(self, x, *a, **k)
    )
    for train in (False, True):
        task.loss(variables["params"], {}, {}, batch, jax.random.key(0), train)
    masked = (read[0] != read[1]).any(-1)
    n = batch["audio_len"][0] // 32
    assert masked[:, :n].mean() > 0.8 and not masked[:, n:].any()


def test_ctc_has_a_share_of_the_training_loss(built, monkeypatch, tmp_path):
    _, batch, variables = built
    task = tasks.build(helpers.filled(config_of(str(make_table(tmp_path, n=6)), ctc_weight=0.3)))
    params, key = variables["params"], jax.random.key(0)
    loss = jax.jit(task.loss, static_argnums=5)
    (total, weight), (metrics, _) = loss(params, {}, {}, batch, key, True)
    ctc, n = metrics["ctc"]
    nll = float(metrics["nll"][0])
    assert float(total) == pytest.approx(0.7 * nll + 0.3 * float(ctc), rel=1e-5)
    assert n == weight and ctc > n  # longer than a nat for each token of an untrained model
    (total, _), (metrics, _) = loss(params, {}, {}, batch, None, False)
    assert float(total) == pytest.approx(float(metrics["nll"][0])) and metrics["ctc"][0] > 0

    mel = log_mel(batch["audio"], sample_rate=RATE, n_fft=64, hop=32, n_mels=8)[:, :124]
    source = whisper.Model(task.model_config).apply(variables, mel, batch["targets"]).source
    lengths = -(-(batch["audio_len"] // 32) // 2)
    want, _ = losses.ctc(source.product(), lengths, batch["targets"], batch["weights"], 256)
    assert float(metrics["ctc"][0]) == pytest.approx(float(want), rel=1e-5)

    call = whisper.Model.__call__
    without = lambda *a, **k: call(*a, **k)._replace(source=None)
    monkeypatch.setattr(whisper.Model, "__call__", without)
    with pytest.raises(UserError, match="returns no `source`"):
        task.loss(params, {}, {}, batch, key, True)


def test_pictures_of_the_alignment_have_a_spectrogram(built, tmp_path, monkeypatch):
    task, batch, variables = built
    c, pictures = task.model_config, []
    inputs = [batch["audio"][i, :n] for i, n in enumerate((c.n_samples, c.n_samples // 2))]
    inputs.insert(1, np.zeros(0, np.int16))  # cannot be read
    context = types.SimpleNamespace(
        config=helpers.filled(config_of("unused")),
        corpus=types.SimpleNamespace(
            inputs=lambda split: inputs,
            tokenizer=types.SimpleNamespace(decode=lambda ids: "$_"[ids[0] % 2], eos_id=257),
        ),
        task=task,
        frozen={},
        mesh=mesh_lib.make_mesh(dict(data=1), jax.devices()[:1]),
        log=lambda line: None,
        write=lambda name, write: write(tmp_path) or "",
    )
    draw = alignment.draw
    monkeypatch.setattr(alignment, "draw", lambda *a: pictures.extend(a[1]) or draw(*a))
    evaluate = alignment.build("look", alignment.Config(n=3), context)
    assert evaluate(variables["params"], {}, 3) == {}
    assert (tmp_path / "step_3.png").stat().st_size > 5000
    assert [p.source.seconds for p in pictures] == [c.n_samples / RATE, c.n_samples / RATE / 2]
    mel = log_mel(batch["audio"][:2, : c.n_samples], sample_rate=RATE, n_fft=64, hop=32, n_mels=8)
    np.testing.assert_allclose(pictures[0].source.mel, mel[0].T, atol=1e-5)
    assert pictures[1].source.mel.shape == (8, c.n_samples // 64)
    assert pictures[0].attention.shape[1] == c.n_positions
    inputs[:] = [inputs[1]] * 3
    with pytest.raises(UserError, match="none of the 3 examples of data.valid can be read"):
        alignment.build("look", alignment.Config(n=3), context)


class Tokenizer:
    """With tokens of languages, as Whisper's."""

    name = "a tokenizer"

    def start(self, language, task):
        return [7, {"en": 1, "de": 2}[language], {"transcribe": 3, "translate": 4}[task], 5]


def test_what_is_before_a_text():
    options = lambda **more: transcribe.Config(**more)
    assert transcribe.prefix(Tokenizer(), 7, options(language="de")) == [2, 3, 5]
    assert transcribe.prefix(Tokenizer(), 7, options(language="en", translate=True)) == [1, 4, 5]
    plain = types.SimpleNamespace(name="bytes")
    assert transcribe.prefix(plain, 7, options()) == []
    with pytest.raises(UserError, match="model.start_id=8 is not the tokenizer's token .* 7"):
        transcribe.prefix(Tokenizer(), 8, options(language="de"))
    with pytest.raises(UserError, match="task.language='de' .*this one \\(bytes\\) has none"):
        transcribe.prefix(plain, 7, options(language="de"))


@pytest.mark.parametrize(
    "section, fields, message",
    [
        ("data", dict(sample_rate=16000), "data.sample_rate=16000 is not model.sample_rate=8000"),
        ("data", dict(max_seconds=1.0), "data.max_seconds=1 is more than model.max_seconds=0.5"),
        ("model", dict(name="gpt"), "needs a model of audio, such as model.name='whisper'"),
        ("data", dict(name="text", seq_len=20), "needs data with load_audio"),
    ],
)
def test_what_does_not_fit_is_refused(section, fields, message):
    c = config_of("nowhere")
    with c.unlocked():
        if "name" in fields:
            c[section] = fields
        else:
            c[section].update(fields)
    with pytest.raises(UserError, match=message):
        tasks.build(helpers.filled(c))


def test_shorter_recordings_than_the_model_allows():
    """Fewer frames than the model has positions for; an odd number of them."""
    c = whisper.Config(vocab_size=9, start_id=1, sample_rate=RATE, max_seconds=2.0, **SIZES)
    data = types.SimpleNamespace(sample_rate=RATE, max_seconds=0.205)
    assert transcribe.frames_of(data, c) == round(0.205 * RATE) // 32
    whole = dataclasses.replace(c, max_seconds=0.205)
    assert transcribe.frames_of(data, whole) == 2 * whole.n_positions
