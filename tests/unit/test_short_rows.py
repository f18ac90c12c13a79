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


@pytest.mark.parametrize("T, kernel", [(256, "splash"), (197, "whole"), (1000, "einsum")])
def test_the_kernel_of_a_tpu_follows_from_the_length(monkeypatch, T, kernel):
    """1,000 tokens of 12 heads of 64 do not fit on the chip."""
    calls = []
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    for module in (splash, whole, einsum):
        name = module.__name__.rpartition(".")[2]
        called = lambda q, *_, name=name: calls.append(name) or q
        monkeypatch.setattr(module, "attention", called)
    q = jnp.zeros((1, T, 12, 64), jnp.bfloat16)
    kernels.attend(q, q, q, mask=FULL)
    assert calls == [kernel]


def test_rows_that_attention_over_short_rows_does_not_support():
    long, short = (jax.ShapeDtypeStruct((1, T, 12, 64), jnp.bfloat16) for T in (1000, 300))
    assert "rows of 1000 tokens with 12 heads of 64, which need 43 MiB" in whole.unsupported(
        long, long, 1
    )
    assert "over 2 devices" in whole.unsupported(short, short, 2)
    assert not whole.unsupported(short, short, 1)
