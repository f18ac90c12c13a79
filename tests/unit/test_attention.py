"""The kernels give the same numbers."""

import contextlib
import functools
from unittest import mock

import jax
import jax.ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import tasks
from bigjax.errors import UserError
from bigjax.layers import kernels
from bigjax.layers.attention import Attention, Cache, Memory, Span
from bigjax.layers.kernels import blocked, cudnn, splash, whole
from bigjax.layers.mask import (
    Blocks,
    Causal,
    Column,
    Full,
    Prefix,
    Row,
    Window,
    pairs,
)
from bigjax.models import gpt, uncached_decoder
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import program
from tests import helpers

CAUSAL, FULL = Causal(), Full()
WINDOW = Causal() & Window(70)
PREFIX = Causal() | Prefix(90)
ROWS = Causal() & (Row(16, 32) | Column(16, 32))
BLOCKS = Blocks(64, ((0,), (0, 1), (0, 3), (1, 2, 3)))
# kernel, queries, keys, key heads, packed, mask, bias, mesh (data, fsdp, sequence, tensor)
CASES = [
    ("blocked", 256, 256, 4, True, CAUSAL, None, None),
    ("blocked", 384, 384, 2, False, CAUSAL, None, None),
    ("blocked", 40, 40, 1, True, CAUSAL, None, None),
    ("blocked", 384, 384, 2, True, WINDOW, (1, 4), None),
    ("blocked", 256, 256, 4, False, PREFIX, (2, 1), None),
    ("blocked", 256, 256, 4, True, ROWS, None, None),
    ("blocked", 256, 256, 2, False, BLOCKS, (2, 4), None),
    ("blocked", 40, 64, 2, True, FULL, (1, 1), None),
    ("splash", 256, 256, 2, True, CAUSAL, None, None),
    ("splash", 128, 128, 4, False, FULL, None, None),
    ("splash", 128, 256, 2, True, FULL, None, None),
    ("splash", 256, 256, 2, False, WINDOW, None, None),
    ("splash", 256, 256, 1, True, ROWS, None, None),
    ("splash", 256, 256, 1, True, CAUSAL, None, (2, 1, 2, 2)),
    ("splash", 256, 256, 2, False, CAUSAL, None, (1, 2, 1, 4)),
    ("splash", 256, 256, 2, False, PREFIX, None, (1, 1, 2, 4)),
    ("splash", 640, 640, 2, True, CAUSAL, None, None),  # five blocks, of 128
    ("whole", 50, 50, 4, False, FULL, None, None),
    ("whole", 96, 96, 2, True, CAUSAL, None, None),
    ("whole", 40, 64, 1, True, FULL, None, None),
    ("whole", 64, 64, 4, False, ROWS, None, None),
    ("whole", 37, 37, 2, False, FULL, None, (2, 2, 1, 2)),
    ("whole", 37, 37, 1, True, CAUSAL, None, (2, 1, 1, 4)),
    ("whole", 50, 50, 4, False, FULL, (1, 4), None),
    ("whole", 40, 64, 2, True, FULL, (1, 1), None),
    ("whole", 37, 37, 2, True, CAUSAL, (1, 4), (2, 2, 1, 2)),
]


@pytest.mark.parametrize("kernel, T, S, n_kv_heads, packed, mask, bias, mesh", CASES, ids=str)
def test_kernels_equal_einsum_in_values_and_gradients(
    kernel, T, S, n_kv_heads, packed, mask, bias, mesh
):
    """Splash attention runs in Pallas's interpret mode."""
    if mesh:
        mesh = mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, mesh)))
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        _compare(kernel, T, S, n_kv_heads, packed, mask, bias)


@pytest.mark.parametrize(
    "n_kv_heads, packed, mask, bias, mesh",
    [
        (1, True, CAUSAL, None, (2, 1, 2, 2)),
        (2, False, CAUSAL, None, (1, 1, 8, 1)),
        (2, False, FULL, (2, 4), (2, 1, 1, 4)),
        (2, True, WINDOW, (1, 1), (2, 1, 2, 2)),
    ],
    ids=str,
)
def test_cudnn_gets_the_right_shard_on_each_device(
    n_kv_heads, packed, mask, bias, mesh, monkeypatch
):
    """With jax's plain implementation in place of cuDNN."""
    given = []

    def plain(q, k, v, bias, *, mask, scale, is_causal, implementation):
        given.append((implementation, mask is not None, is_causal))
        how = dict(mask=mask, scale=scale, is_causal=is_causal, implementation="xla")
        return of_jax(q, k, v, bias, **how)

    of_jax = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    monkeypatch.setattr(cudnn, "unsupported", lambda *_: "")  # these are float32
    with jax.set_mesh(mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, mesh)))):
        _compare("cudnn", 64, 64, n_kv_heads, packed, mask, bias)
    sharded, causal = mesh[2] > 1, mask == CAUSAL
    array_mask = packed or (mask != FULL and sharded) or mask == WINDOW
    assert set(given) == {("cudnn", array_mask, causal and not sharded)}


@pytest.mark.parametrize("S, native", [(64, True), (128, False)])
def test_cudnn_has_a_causal_mask_only_for_as_many_keys_as_queries(S, native, monkeypatch):
    """For others it may count queries from the end; then the mask is an array."""
    attend = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
    q, k = (jnp.ones((1, n, 2, 8)) for n in (64, S))
    with pytest.raises(InterruptedError):
        cudnn.attention(q, k, k, CAUSAL, None, None, None, 1.0)
    given = attend.call_args.kwargs
    assert (given["is_causal"], given["mask"] is None) == (native, native)


@pytest.mark.parametrize(
    "kernel, options, words",
    [
        ("splash", dict(bias=jnp.zeros((1, 1, 128, 128))), "a bias of the scores"),
        ("cudnn", dict(softcap=2.0), "a soft cap of the scores.*attention_softcap"),
        ("whole", dict(softcap=2.0), "a soft cap of the scores"),
        ("splash", dict(rng=0, dropout=0.1), "dropout.*attention_dropout"),
        ("cudnn", dict(rng=0, dropout=0.1), "dropout"),
        ("blocked", dict(rng=0, dropout=0.1), "dropout"),
    ],
)
def test_a_named_kernel_refuses_what_it_never_supports(kernel, options, words):
    q = jnp.ones((1, 128, 2, 8))
    with pytest.raises(UserError, match=f"{kernel!r} does not support {words}.*'auto'.*'einsum'"):
        kernels.attend(q, q, q, mask=CAUSAL, kernel=kernel, **options)


@pytest.mark.parametrize(
    "kernel, T, options, words",
    [
        ("splash", 100, {}, "100 queries.*128 at a time.*multiple of 128.*data.seq_len=100"),
        ("splash", 256, {}, "256 queries on 4 .*multiple of 512.*data.seq_len=256"),
        ("splash", 128, dict(dropout=0.1), "dropout.*attention_dropout"),
        ("blocked", 128, dict(dropout=0.1), "dropout.*'auto' or 'einsum'"),
        ("cudnn", 128, dict(dropout=0.1), "dropout"),
        ("cudnn", 128, dict(softcap=50.0), "a soft cap.*attention_softcap"),
        ("cudnn", 128, dict(dtype="float32"), "float32.*model.dtype='bfloat16'"),
        ("cudnn", 128, dict(head_dim=60), "heads of 60"),
        ("cudnn", 126, {}, "126 queries on 4 .*even number.*data.seq_len=126"),
    ],
)
def test_a_named_kernel_that_cannot_train_the_model_is_refused_at_the_start(
    kernel, T, options, words
):
    mesh = mock.MagicMock(shape={"sequence": 4 if T in (126, 256) else 1})
    mesh.devices.flat[0].platform = "gpu"
    with pytest.raises(UserError, match=f"{kernel!r} (does not support )?.*{words}"):
        kernels.check(kernel, {"data.seq_len": T}, mesh, **options)
    kernels.check(kernel, {"data.seq_len": 512}, mesh)
    kernels.check("auto", {"data.seq_len": T}, mesh, **options)


@pytest.mark.parametrize("kernel, T", [("splash", 16), ("splash", 1), ("cudnn", 7), ("cudnn", 1)])
def test_a_named_kernel_leaves_caches_and_other_lengths_to_einsum(kernel, T):
    """As those of a short prompt."""
    q = jnp.ones((1, T, 2, 8))
    kernels.attend(q, q, q, mask=CAUSAL, kernel=kernel)
    kernels.attend(q, q, q, mask=CAUSAL, seen=jnp.ones((1, 1, 1), bool), kernel=kernel)


def test_splash_attention_with_large_blocks(monkeypatch):
    """As for bfloat16: of a block's keys, half are processed at once."""
    monkeypatch.setattr(splash, "largest", lambda D, dtype, kind: splash.LARGE)
    monkeypatch.setattr(splash, "SMALL", 128)
    monkeypatch.setattr(splash, "LARGE", 256)
    _compare("splash", 512, 512, 2, True, CAUSAL, None)


@pytest.mark.parametrize(
    "T, S, packed, mask",
    [
        (200, 200, False, FULL),
        (200, 200, True, CAUSAL),
        (150, 256, True, FULL),
        (256, 140, False, FULL),
    ],
    ids=str,
)
def test_splash_attention_with_padded_lengths(T, S, packed, mask, monkeypatch):
    monkeypatch.setattr(splash, "PADDED", 128)
    _compare("splash", T, S, 2, packed, mask, None)


@pytest.mark.parametrize("bias", [None, (1, 4)], ids=str)
def test_short_rows_whose_heads_do_not_fit_at_once(bias, monkeypatch):
    """Two of four heads at a time."""
    monkeypatch.setattr(whole, "LANES", 8)
    monkeypatch.setattr(whole, "_needed", lambda T, S, heads, *_: heads)
    monkeypatch.setattr(whole, "OTHERS_MEMORY", 2)
    monkeypatch.setattr(whole.pltpu, "CompilerParams", lambda **_: None)
    _compare("whole", 40, 64, 2, True, FULL, bias)


def test_splash_attention_with_two_backward_kernels(monkeypatch):
    monkeypatch.setattr(splash, "COPIES", 1)
    _compare("splash", 640, 640, 2, True, CAUSAL, None)


@pytest.mark.parametrize(
    "mask, T, S, shards, D, dtype, block, fused",
    [
        (CAUSAL, 1024, 1024, 1, 128, "bfloat16", (1024, 1024), True),
        (CAUSAL, 2048, 2048, 1, 128, "bfloat16", (1024, 1024), True),
        (CAUSAL, 2048, 2048, 1, 256, "bfloat16", (512, 512), True),
        (CAUSAL, 2048, 2048, 1, 64, "float32", (512, 512), True),
        (CAUSAL, 8192, 8192, 1, 64, "bfloat16", (1024, 1024), True),
        (CAUSAL, 8192, 8192, 16, 64, "bfloat16", (512, 512), False),
        (CAUSAL, 9216, 9216, 1, 64, "bfloat16", (1024, 1024), False),
        (CAUSAL & Window(256), 2048, 2048, 1, 64, "bfloat16", (512, 512), True),
        (CAUSAL, 1536, 1536, 1, 64, "bfloat16", (512, 512), True),
        (CAUSAL, 768, 768, 2, 64, "bfloat16", (384, 384), True),
        (CAUSAL, 1024, 1024, 1, 512, "float32", (256, 256), True),
        (CAUSAL, 1024, 1024, 1, 512, "bfloat16", (512, 512), True),
        (FULL, 1024, 2048, 1, 64, "bfloat16", (1024, 1024), True),
        (FULL, 256, 1024, 1, 64, "bfloat16", (256, 1024), True),
    ],
    ids=str,
)
def test_the_blocks_of_splash_attention(mask, T, S, shards, D, dtype, block, fused, monkeypatch):
    made = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(splash.library, "make_splash_mha", made)
    monkeypatch.setattr(splash, "over_devices", lambda q, k, v: ((None,) * 3, (1, shards, 1), k, v))
    q, k = (jnp.zeros((1, n, 1, D), dtype) for n in (T, S))
    with pytest.raises(InterruptedError):
        splash.attention(q, k, k, mask, None, None, None, 1.0)
    sizes = made.call_args.kwargs["block_sizes"]
    q, kv = block
    keys = min(kv, 512)
    assert (sizes.block_q, sizes.block_kv, sizes.block_kv_compute) == (q, kv, keys)
    assert (sizes.block_q_dkv, sizes.block_kv_dkv, sizes.block_kv_dkv_compute) == (q, kv, keys)
    assert sizes.use_fused_bwd_kernel == fused
    assert (sizes.block_q_dq, sizes.block_kv_dq) == ((None, None) if fused else (q, kv))


@pytest.mark.parametrize(
    "kind, D, large",
    [
        ("TPU v4", 128, True),
        ("TPU v4", 256, False),
        ("TPU v6 lite", 256, True),
        ("TPU7x", 256, True),
        ("TPU7x", 512, False),
    ],
)
def test_which_heads_have_large_blocks(kind, D, large, monkeypatch):
    made = mock.Mock(side_effect=InterruptedError)
    monkeypatch.setattr(splash.library, "make_splash_mha", made)
    monkeypatch.setattr(splash, "device_kind", lambda: kind)
    q = jnp.zeros((1, 1024, 1, D), "bfloat16")
    with pytest.raises(InterruptedError):
        splash.attention(q, q, q, CAUSAL, None, None, None, 1.0)
    assert made.call_args.kwargs["block_sizes"].block_q == (1024 if large else 512)


def test_the_scope_of_splash_attention_is_what_one_device_computes(monkeypatch):
    """One of two rows, one of four heads: three of four pairs of blocks."""
    names = []
    of_jax = jax.named_scope
    monkeypatch.setattr(jax, "named_scope", lambda name: names.append(name) or of_jax(name))
    q = jnp.ones((2, 256, 4, 8))
    attend = lambda q: splash.attention(q, q, q, CAUSAL, None, None, None, 1.0)
    monkeypatch.setattr(splash, "blocks", lambda *_: (128, 128))
    for sizes, rows, heads in ((None, 2, 4), ((2, 1, 1, 4), 1, 1)):
        mesh = sizes and mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))
        names.clear()
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            jax.eval_shape(attend, q)
        assert f"{splash.SCOPE}{3 * 128 * 128 * rows * heads * 8}" in names


def test_splash_attention_needs_a_multiple_of_128_keys():
    q, k = (jax.ShapeDtypeStruct((1, T, 2, 8), "bfloat16") for T in (128, 100))
    assert "100 keys" in splash.unsupported(q, k, 1) and not splash.unsupported(q, q, 1)


def test_text_is_generated_with_the_kernel_of_training():
    """A prompt is shorter than the rows that splash attention was trained with."""
    c = gpt.Config(256, 128, 8, 1, 1, attention="splash", scan=False)
    model = gpt.Model(c)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
    decoder = uncached_decoder(model, c.max_len)
    context, first = decoder.context([[1, 2, 3]])
    logits, _ = decoder.step(variables, decoder.begin(variables, context, 16), first)
    assert logits.shape == (1, 256)


@pytest.mark.parametrize(
    "T, S, D, dtype, supports",
    [
        (64, 64, 128, "bfloat16", True),
        (64, 34, 64, "float16", True),
        (64, 64, 64, "float32", False),
        (64, 64, 256, "bfloat16", False),
        (64, 64, 60, "bfloat16", False),
        (63, 64, 64, "bfloat16", False),
        (64, 33, 64, "bfloat16", False),
    ],
)
def test_what_cudnn_supports(T, S, D, dtype, supports):
    q, k = (jax.ShapeDtypeStruct((2, n, 4, D), dtype) for n in (T, S))
    assert (not cudnn.unsupported(q, k, 1)) == supports


@pytest.mark.parametrize(
    "mask, causal",
    [
        (CAUSAL, True),
        (FULL, False),
        (PREFIX, False),
        (Window(3) & CAUSAL, True),
        (Window(3), True),
        (Window(3, 1), False),
        (Row(4) & CAUSAL | Window(2), True),
    ],
    ids=str,
)
def test_a_cache_needs_a_causal_mask(mask, causal):
    attention = Attention(2, 2, 4, mask)
    x, cache = jnp.ones((1, 2, 8)), Cache.empty(1, 6, 2, 4, "float32")
    run = lambda: attention.init(jax.random.key(0), x, Span(jnp.arange(2)[None]), cache)
    if causal:
        jax.eval_shape(run)
    else:
        with pytest.raises(UserError, match="cannot use a cache.*mask & Causal"):
            jax.eval_shape(run)


def _compare(kernel, T, S, n_kv_heads, packed, mask, bias, softcap=0.0):
    B, H, D = 2, 4, 8
    keys = jax.random.split(jax.random.key(0), 5)
    q = jax.random.normal(keys[0], (B, T, H, D)) * 2
    k, v = (jax.random.normal(keys[i], (B, S, n_kv_heads, D)) for i in (1, 2))
    weight = jax.random.normal(keys[3], (B, T, H, D))
    bias = jax.random.normal(keys[4], (*bias, T, S)) if bias else None
    q_segments = k_segments = None
    if packed:
        cuts = jnp.array([[T // 7, T // 2], [T // 3, T - 3]])
        segments = lambda n: 1 + (jnp.arange(n)[None, :, None] >= cuts[:, None]).sum(-1)
        q_segments, k_segments = segments(T), segments(S)

    def value(kernel, q, k, v, bias):
        given = dict(q_segments=q_segments, k_segments=k_segments, bias=bias, scale=0.3)
        o = kernels.attend(q, k, v, mask=mask, kernel=kernel, softcap=softcap, **given)
        return (o * weight).sum(), o

    arguments = (1, 2, 3) if bias is None else (1, 2, 3, 4)
    run = jax.jit(jax.value_and_grad(value, argnums=arguments, has_aux=True), static_argnums=0)
    (_, want), want_grad = run("einsum", q, k, v, bias)
    (_, got), got_grad = run(kernel, q, k, v, bias)
    assert not np.array_equal(got, want)  # computed by another kernel
    for a, b in zip((got, *got_grad), (want, *want_grad)):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
    "kernel, T, packed, mask, bias",
    [
        ("blocked", 256, True, WINDOW, (1, 4)),
        ("splash", 256, False, WINDOW, None),
        ("splash", 128, True, CAUSAL, None),
    ],
    ids=str,
)
def test_kernels_with_a_soft_cap(kernel, T, packed, mask, bias):
    _compare(kernel, T, T, 2, packed, mask, bias, softcap=1.5)


def test_a_soft_cap_bounds_the_scores_before_the_mask():
    q = jnp.array([100.0, -100.0, 0.0]).reshape(1, 3, 1, 1)
    p = kernels.weights(q, jnp.ones((1, 3, 1, 1)) * q[:, :1], mask=CAUSAL, softcap=3.0)[0, :, 0]
    np.testing.assert_allclose(p, np.tril(np.ones((3, 3))) / np.arange(1, 4)[:, None], atol=1e-6)
    q = jnp.array([1.0, 2.0]).reshape(1, 2, 1, 1)
    p = kernels.weights(q, q, mask=FULL, softcap=3.0)[0, :, 0]
    scores = 3 * np.tanh(np.array([[1, 2], [2, 4]]) / 3)
    np.testing.assert_allclose(p, jax.nn.softmax(scores), rtol=1e-6)


# --- Attention to a memory ---------------------------------------------------------------------


def test_keys_of_a_memory_are_computed_once():
    """And its padding is not read."""
    layer = Attention(4, 2, 8, FULL)
    x, memory = jax.random.normal(jax.random.key(0), (2, 2, 6, 16))
    memory, segments = memory[:, :5], jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    span = Span(jnp.arange(6))
    variables = layer.init(jax.random.key(1), x, span, memory=memory)
    call = functools.partial(layer.apply, variables)
    y, kept = call(x, span, memory=memory, memory_segments=segments)
    assert isinstance(kept, Memory) and kept.key.shape == (2, 2, 5, 8)
    again, _ = call(x, span, memory=kept)
    np.testing.assert_array_equal(y, again)
    short, _ = call(x[:1], span, memory=memory[:1, :3])
    np.testing.assert_allclose(y[:1], short, atol=1e-6)
    other, _ = call(x, span, memory=memory)
    assert not np.allclose(y[0], other[0], atol=1e-3)
    with_bias, _ = call(x, span, memory=memory, bias=jnp.where(segments, 0, -1e9)[:, None, None])
    np.testing.assert_allclose(y, with_bias, atol=1e-6)


def test_a_window_skips_blocks():
    """So its cost depends on what it sees, on a CPU and in a plan for a TPU."""
    ranges = blocked._blocks(Causal() & Window(100), 1024, 1024)
    assert sum(k.stop - k.start for _, k in ranges) < 8 * 256 and len(ranges) == 8
    assert pairs(Causal() & Window(100), 1024, range(1024), (128, 128)) == 15 * 128**2
    # Where blocks would save nothing there is one.
    assert blocked._blocks(FULL, 1024, 512) == [(slice(0, 1024), slice(0, 512))]


@pytest.mark.parametrize(
    "kernel, words",
    [
        ("splash", "130 queries.*128 at a time.*multiple of 128.*data.seq_len=130"),
        ("cudnn", "is for devices of the kind gpu, and these are cpu"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_before_training(kernel, words):
    c = helpers.filled(helpers.load_config("tests/tiny.py"))
    with c.unlocked():
        c.model.attention, c.model.max_len, c.data.seq_len = kernel, 130, 130
    mesh = mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])
    with pytest.raises(UserError, match=words):
        program.make(c, tasks.build(c), mesh)
