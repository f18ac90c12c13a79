"""The choice of attention's kernel for short rows, and what it says of itself."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from bigjax.layers import kernels
from bigjax.layers.kernels import einsum, splash, whole
from bigjax.layers.kernels.common import SCOPE, SCORES
from bigjax.layers.mask import Full
from bigjax.parallel import mesh as mesh_lib

FULL = Full()


def test_the_scopes_of_attention_over_short_rows(monkeypatch):
    """Products and padded scores of one device: rows of 197 are padded to 200 x 256."""
    names = []
    of_jax = jax.named_scope
    monkeypatch.setattr(jax, "named_scope", lambda name: names.append(name) or of_jax(name))
    q = jnp.ones((2, 197, 4, 8))
    attend = lambda q: whole.attention(q, q, q, FULL, None, None, None, 1.0)
    for sizes, rows, heads in ((None, 2, 4), ((2, 1, 1, 4), 1, 1)):
        mesh = sizes and mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, sizes)))
        names.clear()
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            jax.eval_shape(attend, q)
        n = rows * heads
        assert names == [f"{SCOPE}{n * 197 * 197 * 8}", f"{SCORES}{n * 200 * 256}"]


@pytest.mark.parametrize(
    "T, kernel",
    [(256, "splash"), (197, "whole"), (1000, "whole"), (1500, "splash"), (1020, "einsum")],
)
def test_the_kernel_of_a_tpu_follows_from_the_length(monkeypatch, T, kernel):
    """Rows of 1,000 tokens fit on the chip, two heads of 64 at a time; those of 1,020 with twelve
    heads of 60 do not. From 1,024 on, lengths are padded."""
    calls = []
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    for module in (splash, whole, einsum):
        name = module.__name__.rpartition(".")[2]
        called = lambda q, *_, name=name: calls.append(name) or q
        monkeypatch.setattr(module, "attention", called)
    q = jnp.zeros((1, T, 12, 60 if T == 1020 else 64), jnp.bfloat16)
    kernels.attend(q, q, q, mask=FULL)
    assert calls == [kernel]


def test_rows_that_attention_over_short_rows_does_not_support():
    row = lambda T, D=64: jax.ShapeDtypeStruct((1, T, 12, D), jnp.bfloat16)
    long, short = row(1000, 60), row(300)
    assert "rows of 1000 tokens with heads of 60, of which 12 need 42 MiB" in whole.unsupported(
        long, long, 1
    )
    assert not whole.unsupported(row(1000), row(1000), 1)
    bias = jax.ShapeDtypeStruct((1, 12, 1000, 1000), jnp.float32)
    assert "of which 2 need 56 MiB" in whole.unsupported(row(1000), row(1000), 1, bias)
    assert "a bias of each row" in whole.unsupported(
        short, short, 1, jax.ShapeDtypeStruct((2, 12, 300, 300), jnp.float32)
    )
    assert "over 2 devices" in whole.unsupported(short, short, 2)
    assert not whole.unsupported(short, short, 1)
