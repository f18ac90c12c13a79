"""The tasks on an encoder-decoder: inputs, loss, what they refuse, and training."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import tasks
from bigjax.data.spans import SpanBatches
from bigjax.errors import UserError
from bigjax.layers.params import unbox
from bigjax.models import t5
from bigjax.parallel import mesh as mesh_lib
from bigjax.parallel import sharding
from bigjax.tasks import _encoder_decoder
from bigjax.tasks._encoder_decoder import shifted
from bigjax.train import program as program_lib
from bigjax.train.step import unpack
from bigjax.trees import named_leaves
from tests import helpers
from tests.conftest import WORDS

START = 256
# Quick to compile
SMALL = dict(
    n_layers=1, n_decoder_layers=1, d_model=16, n_heads=2, d_ff=32, scan=False, attention="einsum"
)
OFF = dict(dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
ROWS = [
    (" ".join(WORDS[(i + j) % len(WORDS)] for j in range(2 + i % 4)), WORDS[i % len(WORDS)])
    for i in range(80)
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "rows.tsv"
    path.write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS))
    return str(path)


@pytest.fixture
def make(table, corpus_file, cache_dir):
    """make(variant, section=values) -> a config of tests/tiny_seq2seq.py on the table or text."""

    def config(variant="", **sections):
        c = helpers.load_config("tests/tiny_seq2seq.py" + variant)
        with c.unlocked():
            c.data.cache_dir = cache_dir
            if variant:
                c.data.sources.text.path = corpus_file
            else:
                c.data.train = table
            for name, values in sections.items():
                c[name].update(values)
        return helpers.filled(c)

    return config


@functools.cache
def params_of_small():
    """Of a model with the sizes SMALL."""
    one = jnp.zeros((1, 1), int)
    c = t5.Config(**SMALL, vocab_size=304, relative_buckets=8, relative_distance=16)
    init = lambda key: unbox(t5.Model(c).init(key, one, one)["params"])
    return jax.device_get(jax.jit(init)(jax.random.key(0)))


def loss_of(task, batch, train=False, jit=jax.jit):
    """run(params, rng) -> (mean loss, metrics)."""

    def run(params, rng):
        (total, weight), (metrics, _) = task.loss(params, {}, None, batch, rng, train)
        return total / weight, {k: a / b for k, (a, b) in metrics.items()}

    return jit(run)


# --- Inputs -----------------------------------------------------------------------------------


def test_inputs_are_the_targets_one_place_later():
    targets = jnp.array([[5, 6, 7, 1, 0], [8, 1, 9, 4, 1]])
    positions = jnp.array([[0, 1, 2, 3, 0], [0, 1, 0, 1, 2]])
    np.testing.assert_array_equal(shifted(targets, 3), [[3, 5, 6, 7, 1], [3, 8, 1, 9, 4]])
    found = shifted(targets, 3, positions)
    np.testing.assert_array_equal(found, [[3, 5, 6, 7, 3], [3, 8, 3, 9, 4]])


def test_loss_is_that_of_the_models_logits(make):
    """On packed pairs, by the losses' definitions; smoothing and the z loss only in training."""
    c = make(model=SMALL | OFF, task=dict(label_smoothing=0.1, z_loss=0.01))
    task = tasks.build(c)
    batch = task.load_data(lambda text: None).split("train", batch_size=4).batch_at(0)
    assert batch["segment_ids"].max() > 1
    params = params_of_small()
    logits = jax.jit(task.model.apply)(
        {"params": params},
        batch["source"],
        shifted(batch["targets"], START, batch["positions"]),
        source_segments_BS=batch["source_segment_ids"],
        source_positions_BS=batch["source_positions"],
        segments_BT=batch["segment_ids"],
        positions_BT=batch["positions"],
    ).logits
    log_z = jax.nn.logsumexp(logits, -1)
    log_p = logits - log_z[..., None]
    mean = lambda x: float((x * batch["weights"]).sum() / batch["weights"].sum())
    nll = mean(-np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0])
    hits = mean(logits.argmax(-1) == batch["targets"])
    uniform = mean(-log_p.mean(-1))
    for train in (False, True):
        loss, metrics = loss_of(task, batch, train)(params, jax.random.key(0))
        assert metrics["nll"] == pytest.approx(nll, rel=1e-5)
        assert metrics["accuracy"] == pytest.approx(hits, abs=1e-6)
        want = 0.9 * nll + 0.1 * uniform + 0.01 * mean(log_z**2) if train else nll
        assert loss == pytest.approx(want, rel=1e-4)


def test_packed_pairs_have_the_loss_and_gradients_of_pairs_alone(make):
    found = []
    for packing in (True, False):
        c = make(
            model=SMALL | OFF, data=dict(packing=packing, valid_fraction=0.0, test_fraction=0.0)
        )
        task = tasks.build(c)
        data = task.load_data(lambda text: None).split("train", batch_size=1, shuffle=False)
        whole = data.n_rows
        batch = _joined(data, whole)

        def loss(params):
            (total, weight), _ = task.loss(params, {}, None, batch, None, False)
            return total / weight

        found.append((whole, jax.device_get(jax.jit(jax.value_and_grad(loss))(params_of_small()))))
    (rows, (loss, grads)), (rows_alone, (loss_alone, grads_alone)) = found
    assert rows < rows_alone == 80
    assert loss == pytest.approx(loss_alone, rel=1e-5)
    for name, g in named_leaves(grads_alone).items():
        np.testing.assert_allclose(named_leaves(grads)[name], g, atol=3e-6, err_msg=name)
        assert np.abs(g).max() > 1e-4, name


def _joined(data, n):
    batches = [data.batch_at(i) for i in range(n)]
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


# --- Scheduled sampling -----------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """The inputs of the decoder in each pass of the model, in order."""
    passes: list = []
    call = t5.Model.__call__

    @functools.wraps(call)
    def noted(self, source_BS, inputs_BT, **more):
        jax.debug.callback(lambda x: passes.append(np.asarray(x)), inputs_BT, ordered=True)
        return call(self, source_BS, inputs_BT, **more)

    monkeypatch.setattr(t5.Model, "__call__", noted)
    return passes


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_scheduled_sampling_replaces_its_share_of_inputs(make, seen, rate):
    c = make(model=SMALL, task=dict(scheduled_sampling=rate))
    task = tasks.build(c)
    batch = task.load_data(lambda text: None).split("train", batch_size=16).batch_at(0)
    params = params_of_small()
    mean_loss = lambda p, r: loss_of(task, batch, True, lambda f: f)(p, r)[0]
    run = jax.jit(jax.value_and_grad(mean_loss) if rate == 0.5 else mean_loss)
    jax.effects_barrier()
    seen.clear()
    found = run(params, jax.random.key(1))
    jax.effects_barrier()
    true = np.asarray(shifted(batch["targets"], START, batch["positions"]))
    np.testing.assert_array_equal(seen[0], true)
    assert len(seen) == (2 if rate else 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    first = batch["positions"] == 0
    assert (seen[-1][first] == START).all()
    inner = (batch["segment_ids"] > 0) & ~first
    # An untrained model draws the true token in few cases.
    assert (seen[-1] != true)[inner].mean() == pytest.approx(rate, abs=0.1)
    if rate:  # not in evaluation; other keys, other draws
        run(params, jax.random.key(2))
        jax.effects_barrier()
        assert (seen[-1] != seen[-3])[inner].any()
        seen.clear()
        loss_of(task, batch)(params, None)[0].block_until_ready()
        jax.effects_barrier()
        assert len(seen) == 1 and (seen[0] == true).all()


def test_the_inputs_of_a_certain_model_are_its_own_predictions(make, monkeypatch):
    """The prediction of target t becomes the input of t + 1."""
    c = make(model=SMALL, task=dict(scheduled_sampling=1.0))
    task = tasks.build(c)
    batch = task.load_data(lambda text: None).split("train", batch_size=8).batch_at(0)
    params = params_of_small()
    inputs = []
    monkeypatch.setattr(
        _encoder_decoder, "categorical", lambda logits, rng: jnp.arange(len(logits)) % 256
    )
    call = t5.Model.__call__

    @functools.wraps(call)
    def noted(self, source_BS, inputs_BT, **more):
        inputs.append(inputs_BT)
        return call(self, source_BS, inputs_BT, **more)

    monkeypatch.setattr(t5.Model, "__call__", noted)

    def second(params):
        task.loss(params, {}, None, batch, jax.random.key(0), True)
        return inputs[-1]

    found = np.asarray(jax.jit(second)(params))
    n = found.shape[1]
    own = np.arange(found.size).reshape(found.shape) % 256
    want = np.where(batch["positions"] == 0, START, np.pad(own, ((0, 0), (1, 0)))[:, :n])
    np.testing.assert_array_equal(found, want)


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant, sections, words",
    [
        ("", dict(data=dict(target_len=65)), "data.target_len=65 is longer .*max_len=64. Shorten"),
        ("", dict(data=dict(seq_len=65)), "data.seq_len=65 is longer than model.max_len=64"),
        (":spans", dict(data=dict(packing=True)), "data.packing=True keeps .*data.packing=False"),
        (":spans", dict(task=dict(edges="round")), "task.edges is 'round'; allowed: published, un"),
        (":spans", dict(data=dict(seq_len=2)), "data.seq_len=2 is too short for span corruption"),
        (
            ":spans",
            dict(task=dict(noise=0.9, mean_span=1.0)),
            "target length .*=[0-9]+ is longer than model.max_len=64",
        ),
        ("", dict(task=dict(sum_weights={"router": 1.0})), "task.sum_weights.router is set"),
        ("", dict(task=dict(scheduled_sampling=1.5)), r"task.scheduled_sampling is 1.5"),
    ],
)
def test_configs_that_cannot_be_trained_are_refused(make, variant, sections, words):
    with pytest.raises(UserError, match=words):
        tasks.build(make(variant, **sections))


@pytest.mark.parametrize(
    "model, words",
    [
        (dict(start_id=ord("a")), "model.start_id=97 is the piece 'a' .*bos_id=256, eos_id=257"),
        (dict(vocab_size=258, start_id=0), "The tokenizer has 259 tokens.*vocab_size is only 258"),
    ],
)
def test_data_that_do_not_fit_the_model_are_refused(make, model, words):
    task = tasks.build(make(model=model))
    with pytest.raises(UserError, match=words):
        task.load_data(lambda text: None)


def test_special_ids_that_are_equal_are_offered_once():
    ids = dict(pad_id=2, bos_id=1, eos_id=2, unk_id=0)
    t = types.SimpleNamespace(
        **ids, vocab_size=4, pieces=[b"", b"", b"", b"not"], decode=lambda ids: "not"
    )
    with pytest.raises(UserError, match=r"Set it to one of pad_id=2, bos_id=1, unk_id=0\.$"):
        _encoder_decoder.check_start(t, 3)


def test_a_start_that_no_tokenizer_has_is_accepted(make):
    tasks.build(make(model=dict(start_id=300))).load_data(lambda text: None)


def test_other_models_and_data_are_refused(make):
    c = make()
    with c.unlocked():
        c.model = dict(name="gpt", vocab_size=304, max_len=64, d_model=32, n_layers=1, n_heads=2)
    with pytest.raises(
        UserError, match="'seq2seq' needs an encoder-decoder, such as model.name='t5'"
    ):
        tasks.build(helpers.filled(c))
    c = make(":spans")
    with c.unlocked():
        c.task = dict(name="seq2seq")
    with pytest.raises(UserError, match="'seq2seq' needs data with load_pairs"):
        tasks.build(helpers.filled(c))


# --- Shapes, FLOPs, training ------------------------------------------------------------------


def test_span_corruption_trains(make):
    """Five steps: shapes as planned, and losses fall. test_seq2seq_meshes trains on pairs."""
    c = make(":spans", model=SMALL)
    task = tasks.build(c)
    mesh = mesh_lib.make_mesh({}, jax.devices()[:1])
    batches = task.load_data(lambda text: None).split("train", batch_size=8, seed=0)
    assert isinstance(batches, SpanBatches) and task.unit == "tokens"
    target_len = batches.sizes.target_len
    assert [*task.attention_lengths.values()] == [48, target_len]
    assert task.units_per_example == 48 + target_len
    losses = []
    with jax.set_mesh(mesh):
        program = program_lib.make(c, task, mesh)
        state = program.init()
        for step in range(5):
            batch = batches.batch_at(step)
            shapes = {k: (x.shape, x.dtype) for k, x in task.batch_shapes(8, step).items()}
            assert shapes == {k: (x.shape, x.dtype) for k, x in batch.items()}
            batch = sharding.put_batch(mesh, batch, slice(0, 8), 8)
            state, metrics = program.step(state, None, batch)
            losses.append(unpack(jax.device_get(metrics)))
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.1
    assert losses[0]["nll"] == pytest.approx(losses[0]["loss"], rel=1e-6)


def kernels(params, part):
    return sum(x.size for k, x in params.items() if k.endswith("kernel") and part in k)


@pytest.mark.parametrize("preset", ["small", "v1.1-base", "transformer-base"])
def test_flops_are_those_of_the_kernels_and_of_attention(preset):
    c = t5.Config(**t5.PRESETS[preset])
    one = jnp.zeros((1, 1), int)
    params = named_leaves(jax.eval_shape(t5.Model(c).init, jax.random.key(0), one, one)["params"])
    params = {k.removesuffix("/value"): x for k, x in params.items()}
    cross = kernels(params, "cross_attention")
    of_memory = kernels(params, "cross_attention/key") + kernels(params, "cross_attention/value")
    S, T, inner = 100, 40, c.n_heads * c.head_dim
    source = kernels(params, "encoder/") + of_memory
    target = kernels(params, "decoder/") - of_memory + c.vocab_size * c.d_model
    keys = c.n_layers * S * S + c.n_decoder_layers * (T * (T + 1) / 2 + T * S)
    assert cross == 2 * of_memory
    want = 6 * (S * source + T * target) + 12 * inner * keys
    assert t5.flops_per_pair(c, S, T) == pytest.approx(want, rel=1e-12)


def test_flops_are_those_that_jax_counts(make):
    """With attention that computes all scores; the rest of the model is less than a tenth."""
    task = tasks.build(make(model=SMALL | dict(d_model=64, d_ff=256)))
    c, shapes = task.model_config, task.batch_shapes(4, 0)
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]

    def forward(params, batch):
        inputs = shifted(batch["targets"], START)
        return task.model.apply({"params": params}, batch["source"], inputs).logits

    counted = jax.jit(forward).lower(params, shapes).compile().cost_analysis()["flops"]
    unseen = 12 * c.n_decoder_layers * 64 * 24 * (24 - 1) / 2  # of the causal mask
    assert counted / (4 * (task.flops_per_example + unseen) / 3) == pytest.approx(1, abs=0.1)
