"""bigjax.models.t5: sizes, positions, who depends on whom, and options that change no number."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.layers import params as params_lib
from bigjax.layers.positions import RelativeBias, buckets, sinusoids
from bigjax.models import t5
from bigjax.trees import named_leaves

V, S, T, B = 40, 12, 8, 2
OFF = dict(dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0)
TINY = t5.Config(V, 16, 16, 2, 0, 2, 0, 32, relative_buckets=8, relative_distance=10, **OFF)
_2017 = dict(
    position="sinusoidal", norm="layernorm", post_norm=True, bias=True, scale_scores=True,
    key_bias=False, scale_embeddings=True, scale_logits=False, output_bias=True,
)  # fmt: skip
KINDS = {
    "t5": TINY,
    "2017": dataclasses.replace(TINY, **_2017),
    "learned": dataclasses.replace(TINY, position="learned"),
}


def shapes_of(c):
    one = jnp.zeros((1, 1), int)
    shapes = jax.eval_shape(t5.Model(c).init, jax.random.key(0), one, one)
    return named_leaves(params_lib.unbox(shapes["params"]))


# --- Sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, n",
    [
        ("small", 60_506_624),
        ("base", 222_903_552),
        ("large", 737_668_096),
        ("3b", 2_851_598_336),
        ("11b", 11_307_321_344),
        ("v1.1-small", 76_961_152),
        ("v1.1-base", 247_577_856),
        ("v1.1-large", 783_150_080),
        ("v1.1-xl", 2_849_757_184),
        ("v1.1-xxl", 11_135_332_352),
        ("transformer-base", 63_082_496),
        ("transformer-big", 214_245_376),
    ],
)
def test_presets_have_the_parameters_of_the_published_models(preset, n):
    params = shapes_of(t5.Config(**t5.PRESETS[preset]))
    assert sum(math.prod(x.shape) for x in params.values()) == n
    matrices = {"transformer-base": 62_984_192, "transformer-big": 214_048_768}
    if preset in matrices:
        kinds = ("kernel", "embedding")
        own = sum(math.prod(x.shape) for k, x in params.items() if k.endswith(kinds))
        assert own == matrices[preset]


def test_derived_sizes_and_refused_ones():
    c = t5.Config(d_model=24, n_heads=4, n_layers=3)
    assert (c.n_decoder_layers, c.head_dim, c.d_ff) == (3, 6, 96)
    assert t5.Config(d_model=24, n_heads=4, head_dim=5).head_dim == 5
    for values, words in (
        (dict(d_model=10, n_heads=4), "model.d_model=10 does not divide .* set model.head_dim"),
        (dict(d_model=9, n_heads=3, position="sinusoidal"), "d_model is 9; .* even"),
        (dict(relative_buckets=6), "relative_buckets is 6; .* multiple of 4"),
        (dict(relative_buckets=32, relative_distance=16), "less than model.relative_distance=16"),
        (dict(start_id=7, vocab_size=7), "start_id is 7; .* less than model.vocab_size=7"),
        (dict(position="rotary"), "model.position is 'rotary'; allowed: relative, sinusoidal"),
    ):
        with pytest.raises(UserError, match=words):
            t5.Config(**values)


def test_a_source_that_is_longer_than_the_model_is_refused():
    with pytest.raises(UserError, match="17 tokens, its end token included; allowed: 1 to .*16"):
        t5.decoder(TINY).context([[5], [5] * 17])


# --- Positions --------------------------------------------------------------------------------


def bucket_of(apart: int, n: int, distance: int, bidirectional: bool) -> int:
    """As the paper says, one number at a time: apart = key - query."""
    first = 0
    if bidirectional:
        n //= 2
        first = n if apart > 0 else 0
        apart = abs(apart)
    else:
        apart = max(-apart, 0)
    exact = n // 2
    if apart < exact:
        return first + apart
    ratio = math.log(apart / exact) / math.log(distance / exact)
    return first + min(n - 1, exact + int(ratio * (n - exact) + 1e-6))  # exact powers round up


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("n, distance", [(32, 128), (8, 10), (32, 256), (16, 20)])
def test_buckets(n, distance, bidirectional):
    want = [bucket_of(i, n, distance, bidirectional) for i in range(-distance - 9, distance + 10)]
    got = buckets(n, distance, bidirectional)
    assert len(got) == 2 * distance + 1 and got.dtype == np.int32
    np.testing.assert_array_equal(got, want[9:-9])
    # All those beyond have the bucket of the last one.
    assert set(want[:10]) == {got[0]} and set(want[-10:]) == {got[-1]}
    assert set(got) == set(range(n)) - ({n // 2} if bidirectional else set())


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_bias_of_a_query_and_a_key_is_that_of_their_bucket(bidirectional):
    layer = RelativeBias(3, 8, 10, bidirectional)
    table = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    queries = np.array([[0, 5, 29], [3, 3, 11]])
    bias = jax.jit(lambda q: layer.apply({"params": {"embedding": table}}, q, 30))(queries)
    assert bias.shape == (2, 3, 3, 30) and bias.dtype == np.float32
    for b, t, s in ((0, 0, 0), (0, 1, 7), (0, 2, 0), (1, 0, 29), (1, 2, 12), (1, 1, 1)):
        want = table[bucket_of(s - queries[b, t], 8, 10, bidirectional)]
        np.testing.assert_allclose(bias[b, :, t, s], want, rtol=1e-6)
    row = layer.apply({"params": {"embedding": table}}, queries[0], 30)
    np.testing.assert_array_equal(row, bias[:1])


def test_sinusoids():
    for position, i in ((0, 0), (7, 3), (99, 15)):
        angle = position / 10000 ** (2 * i / 32)
        for table, at in (
            (sinusoids(100, 32), (2 * i, 2 * i + 1)),
            (sinusoids(100, 32, True), (i, 16 + i)),
        ):
            want = math.sin(angle), math.cos(angle)
            np.testing.assert_allclose(table[position, list(at)], want, atol=1e-5)


# --- Who depends on whom ----------------------------------------------------------------------


@functools.cache
def params_of(kind):
    model = t5.Model(dataclasses.replace(KINDS[kind], scan=True))
    one = jnp.zeros((1, 1), int)
    params = jax.jit(lambda k: params_lib.unbox(model.init(k, one, one)["params"]))
    return jax.device_get(params(jax.random.key(0)))


def batch(seed=0):
    """Two packed rows: (source, inputs) and the segments and positions of the model."""
    rng = np.random.default_rng(seed)
    segments = lambda *lengths: np.repeat(np.arange(1, len(lengths) + 1) % len(lengths), lengths)
    source = np.stack([segments(5, 4, 3), segments(7, 5)])
    target = np.stack([segments(3, 4, 1), segments(6, 2)])
    positions = lambda s: np.stack(
        [np.arange(s.shape[1]) - np.array([list(r).index(x) for x in r]) for r in s]
    )
    return (rng.integers(0, V, (B, S)), rng.integers(0, V, (B, T))), dict(
        source_segments_BS=source,
        source_positions_BS=positions(source),
        segments_BT=target,
        positions_BT=positions(target),
    )


@pytest.mark.parametrize("kind", ["t5", "2017"])
def test_logits_depend_on_earlier_inputs_and_the_source_of_their_segment(kind):
    """By gradients by the embedded tokens: exactly those, and all of those."""
    c = dataclasses.replace(KINDS[kind], scan=False, attention="einsum")
    model, (tokens, options) = t5.Model(c), batch()
    params = {"params": params_lib.unrolled({"params": params_of(kind)})["params"]}
    embed = t5.Embed.__call__

    def logits(added):
        """added: to the embedded source and inputs."""
        parts = iter(added)
        t5.Embed.__call__ = lambda self, x: (
            embed(self, x) + (next(parts) if self.name == "embed" else 0)
        )
        try:
            return model.apply(params, *tokens, **options).logits
        finally:
            t5.Embed.__call__ = embed

    zeros = tuple(jnp.zeros((*x.shape, c.d_model)) for x in tokens)
    weights = jax.random.normal(jax.random.key(1), (B, T, V))
    per_logit = lambda t: jax.grad(lambda e: (logits(e)[:, t] * weights[:, t]).sum())(zeros)
    grads = jax.jit(jax.vmap(per_logit))(jnp.arange(T))
    source, inputs = (np.abs(np.asarray(g)).max(-1) > 0 for g in grads)  # [T, B, length]
    s, t = options["source_segments_BS"], options["segments_BT"]
    place = np.arange(T)
    own = (t[:, :, None] == t[:, None]) & (place[:, None] >= place)
    to_source = t[:, :, None] == s[:, None]
    real = t > 0
    for b in range(B):
        for i in np.flatnonzero(real[b]):
            np.testing.assert_array_equal(inputs[i, b], own[b, i])
            np.testing.assert_array_equal(source[i, b], to_source[b, i])


# --- Options that change no number ------------------------------------------------------------


@functools.cache
def compiled(kind, **options):
    """run(scanned params, rng) -> (loss, gradients, logits) of `batch`."""
    c = dataclasses.replace(KINDS[kind], **options)
    model, (tokens, more) = t5.Model(c), batch()
    weights = np.random.default_rng(1).normal(size=(B, T, V)).astype(np.float32) / T
    weights *= (more["segments_BT"] > 0)[..., None]

    def loss(params, rng):
        params = params if c.scan else params_lib.unrolled({"params": params})["params"]
        logits = model.apply({"params": params}, *tokens, **more, rng=rng).logits
        return (logits * weights).sum(), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def compare(kind, rng=None, rtol=2e-5, base=None, **options):
    params = params_of(kind)
    (_, want), want_grads = compiled(kind, **(base or {}))(params, rng)
    (_, logits), grads = compiled(kind, **options)(params, rng)
    real = batch()[1]["segments_BT"] > 0
    scale = np.abs(want[real]).max()
    np.testing.assert_allclose(logits[real], want[real], atol=rtol * scale)
    for name, g in named_leaves(want_grads).items():
        other = named_leaves(grads)[name]
        np.testing.assert_allclose(
            other, g, atol=2 * rtol * max(np.abs(g).max(), 1e-2 * scale), err_msg=name
        )
    return logits


@pytest.mark.parametrize(
    "kind, options",
    [
        ("t5", dict(scan=False)),
        ("2017", dict(scan=False, attention="einsum")),
        ("t5", dict(remat="full")),
        ("t5", dict(remat="dots")),
    ],
    ids=str,
)
def test_layers_unrolled_or_recomputed_and_other_kernels(kind, options):
    compare(kind, **options)


def test_dropout_does_not_depend_on_scan_and_remat():
    rates = dict(dropout=0.2, attention_dropout=0.1, mlp_dropout=0.3)
    rng, other = jax.random.split(jax.random.key(3))
    a = compare("t5", rng, base=rates, **rates, scan=False)
    b = compare("t5", other, base=rates, **rates, scan=False)
    (_, none), _ = compiled("t5")(params_of("t5"), rng)
    assert np.abs(a - b).max() > 0.05 and np.abs(a - none).max() > 0.05


@pytest.mark.parametrize("kind", ["t5", "2017"])
def test_bfloat16_is_within_two_hundredths(kind):
    """Of the largest logit, and of the largest gradient of each parameter."""
    logits = compare(kind, rtol=0.02, dtype="bfloat16")
    (_, exact), _ = compiled(kind)(params_of(kind), None)
    assert logits.dtype == np.float32 and np.abs(logits - exact).max() > 0


@pytest.mark.parametrize("kind", ["t5", "2017", "learned"])
def test_packed_texts_have_the_logits_of_texts_alone(kind):
    """And padding behind a text changes nothing."""
    (source, inputs), more = batch()
    (_, packed), _ = compiled(kind)(params_of(kind), None)
    model, n = t5.Model(KINDS[kind]), 0
    apply = jax.jit(
        lambda s, i, segments: (
            model.apply({"params": params_of(kind)}, s, i, source_segments_BS=segments).logits
        )
    )
    for b in range(B):
        for segment in range(1, more["segments_BT"][b].max() + 1):
            s, t = more["source_segments_BS"][b] == segment, more["segments_BT"][b] == segment
            alone, text = np.full((1, S), 7), np.zeros((1, T), int)
            alone[0, : s.sum()], text[0, : t.sum()] = source[b][s], inputs[b][t]
            real = (np.arange(S) < s.sum())[None].astype(int)
            logits = apply(alone, text, real)[0, : t.sum()]
            np.testing.assert_allclose(logits, packed[b][t], rtol=2e-5, atol=2e-5)
            n += 1
    assert n == 3
