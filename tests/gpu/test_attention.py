"""Attention kernels on a GPU give the values and gradients of the plain form in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.errors import UserError
from bigjax.layers import kernels
from bigjax.layers.mask import Causal, Full, Prefix, Window
from tests.families import mesh_of
from tests.gpu import on_both

B, H = 2, 4
NO_KEYS = 9  # the first queries of the first row, where a case has such
CAUSAL, FULL = Causal(), Full()
WINDOW = Causal() & Window(70)
PREFIX = Causal() | Prefix(90)
# T, S, key heads, width of a head, segments (of documents, or queries that see no key), mask,
# bias [B or 1, H or 1]
CASES = {
    "causal": (256, 256, 4, 64, "", CAUSAL, None),
    "packed, grouped queries": (256, 256, 2, 64, "packed", CAUSAL, None),
    "full, one key head": (256, 256, 1, 128, "", FULL, None),
    "window": (256, 256, 2, 64, "", WINDOW, None),
    "packed window, wide heads": (256, 256, 4, 128, "packed", WINDOW, None),
    "prefix, narrow heads": (256, 256, 4, 8, "", PREFIX, None),
    "bias of heads, causal": (256, 256, 4, 64, "", CAUSAL, (1, 4)),
    "bias of rows and heads, packed": (256, 256, 2, 64, "packed", FULL, (2, 4)),
    "bias of rows, window": (256, 256, 4, 64, "", WINDOW, (2, 1)),
    "one bias": (256, 256, 4, 64, "", FULL, (1, 1)),
    "more keys than queries": (130, 258, 4, 72, "packed", FULL, None),
    "odd keys": (130, 255, 4, 64, "packed", FULL, None),
    "queries without keys": (256, 256, 4, 64, "none", FULL, None),
}
ALL_KERNELS = ("packed, grouped queries", "bias of heads, causal", "window")
# ||got - expected|| / ||expected||, and the largest difference by the largest expected number.
# bfloat16 has 8 bits of precision, and the scores, the weights and their gradients are rounded.
TOLERANCES = {"float32": (2e-5, 1e-4), "bfloat16": (2e-2, 5e-2)}


@pytest.mark.parametrize(
    "platform, kernel, dtype, case",
    on_both(
        [("cudnn", "bfloat16", case) for case in CASES]
        + [
            (kernel, dtype, case)
            for kernel in ("einsum", "blocked")
            for dtype in TOLERANCES
            for case in ALL_KERNELS
        ],
        quick=[
            ("cudnn", "bfloat16", "packed, grouped queries"),
            ("blocked", "float32", "bias of heads, causal"),
        ],
    ),
)
def test_kernels_equal_the_plain_form(platform, kernel, dtype, case, device, reference, stand_in):
    """In float32 the GPU's products are those of float32, not of TensorFloat-32."""
    T, S, n_kv_heads, D, segments, mask, bias = CASES[case]
    inputs, ids = _inputs(T, S, n_kv_heads, D, bias, dtype), _segments(segments, T, S)
    if segments == "none":  # such a query yields a mean, whose gradients nothing defines
        inputs[3][0, :NO_KEYS] = 0
    expected = _run("einsum", mask, ids, inputs, "float32", reference)
    got = _run(kernel, mask, ids, inputs, dtype, device)
    assert stand_in.used == (kernel == "cudnn" and S % 2 == 0)
    for a, b in zip(got, expected, strict=True):
        _check_close(a, b, TOLERANCES[dtype])


@pytest.mark.parametrize("platform", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_an_odd_length_is_refused_or_left_to_einsum(platform, device, reference):
    mesh = mesh_of([device])
    words = "255 queries.*even number" if platform == "gpu" else "is for devices of the kind gpu"
    with pytest.raises(UserError, match=words):
        kernels.check("cudnn", {"data.seq_len": 255}, mesh)
    inputs, ids = _inputs(255, 255, 4, 64, None, "bfloat16"), (None, None)
    got = _run("cudnn", CAUSAL, ids, inputs, "bfloat16", device)
    expected = _run("einsum", CAUSAL, ids, inputs, "float32", reference)
    for a, b in zip(got, expected, strict=True):
        _check_close(a, b, TOLERANCES["bfloat16"])


@pytest.mark.parametrize("platform", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_that_a_run_gets_by_default(platform, dtype, device):
    q = jax.ShapeDtypeStruct((B, 256, H, 64), dtype)
    with jax.set_mesh(mesh_of([device])):
        attend = lambda q, k, v: kernels.attend(q, k, v, mask=CAUSAL)
        text = jax.jit(attend).lower(q, q, q).compile().as_text()
    assert ("__cudnn$fmha" in text) == (platform == "gpu" and dtype == "bfloat16")
    assert re.search(r"^HloModule", text)


def test_a_wrong_row_is_noticed():
    x = np.random.default_rng(0).normal(size=(2, 256, 4, 64))
    for tolerance in TOLERANCES.values():
        _check_close(x * (1 + tolerance[0] / 2), x, tolerance)
        wrong = x.copy()
        wrong[1, 7, 2] = 0
        with pytest.raises(AssertionError):
            _check_close(wrong, x, tolerance)
        with pytest.raises(AssertionError):
            _check_close(np.full_like(x, np.nan), x, tolerance)


@pytest.fixture
def stand_in(monkeypatch, device):
    """On a CPU jax's plain implementation stands in for cuDNN's. `used`: whether the kernel ran."""
    of_jax = jax.nn.dot_product_attention

    class StandIn:
        used = False

        def __call__(self, *arguments, implementation, **options):
            assert implementation == "cudnn"
            self.used = True
            implementation = "xla" if device.platform == "cpu" else "cudnn"
            return of_jax(*arguments, implementation=implementation, **options)

    replaced = StandIn()
    monkeypatch.setattr(jax.nn, "dot_product_attention", replaced)
    return replaced


def _inputs(T, S, n_kv_heads, D, bias, dtype) -> list:
    """q, k, v, weights of the outputs, and a bias or None; numbers that `dtype` can represent."""
    rng = np.random.default_rng(T + S + D)
    draw = lambda *shape: rng.normal(size=shape).astype(jnp.dtype(dtype)).astype(np.float32)
    keys = (B, S, n_kv_heads, D)
    drawn = [draw(B, T, H, D), draw(*keys), draw(*keys), draw(B, T, H, D)]
    return [*drawn, draw(*bias, T, S) if bias else None]


def _segments(kind: str, T: int, S: int):
    """Segments of the queries and of the keys."""
    if not kind:
        return None, None
    cuts = np.array([[T // 7, T // 2], [T // 3, T - 3]])
    q, k = (1 + (np.arange(n)[None, :, None] >= cuts[:, None]).sum(-1) for n in (T, S))
    if kind == "none":
        q[0, :NO_KEYS] = 9
    return q, k


def _run(kernel, mask, segments, inputs, dtype, device) -> list[np.ndarray]:
    """The output, and the gradients of its weighted sum for q, k, v and the bias; computed in
    `dtype`, the bias in float32."""
    *qkv, weights, bias = inputs
    qkv = [jnp.asarray(x, dtype) for x in qkv]
    arguments = [x for x in (*qkv, bias) if x is not None]

    def value(*arguments):
        q, k, v, *bias = arguments
        o = kernels.attend(
            q,
            k,
            v,
            mask=mask,
            kernel=kernel,
            q_segments=segments[0],
            k_segments=segments[1],
            bias=bias[0] if bias else None,
        )
        return (o.astype(jnp.float32) * weights).sum(), o

    run = jax.jit(jax.value_and_grad(value, argnums=(*range(len(arguments)),), has_aux=True))
    with jax.default_matmul_precision("highest"):
        (_, o), gradients = run(*jax.device_put(arguments, device))
    assert {d for x in (o, *gradients) for d in x.devices()} == {device}
    return [np.asarray(x, np.float32) for x in (o, *gradients)]


def _check_close(got: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float]) -> None:
    difference = got - expected
    error = np.linalg.norm(difference) / np.linalg.norm(expected)
    assert error <= tolerance[0], f"error {error:.2g}"
    largest = np.abs(difference).max() / np.abs(expected).max()
    assert largest <= tolerance[1], f"largest error {largest:.2g}"
