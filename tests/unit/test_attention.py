"""The kernels give the same numbers."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers import kernels
from bigjax.parallel import mesh as mesh_lib

# kernel, tokens, key heads, packed, causal, mesh (data, fsdp, sequence, tensor)
CASES = [
    ("blocked", 256, 4, True, True, None),
    ("blocked", 384, 2, False, True, None),
    ("blocked", 40, 1, True, True, None),
    ("splash", 256, 2, True, True, None),
    ("splash", 128, 4, False, False, None),
    ("splash", 256, 1, True, True, (2, 1, 2, 2)),
    ("splash", 256, 2, False, True, (1, 2, 1, 4)),
]


@pytest.mark.parametrize("kernel, T, n_kv_heads, packed, causal, mesh", CASES, ids=str)
def test_kernels_equal_einsum_in_values_and_gradients(kernel, T, n_kv_heads, packed, causal, mesh):
    """Splash attention runs in Pallas's interpret mode here."""
    if mesh:
        mesh = mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, mesh)))
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        _compare(kernel, T, n_kv_heads, packed, causal)


@pytest.mark.parametrize(
    "n_kv_heads, packed, causal, mesh",
    [
        (1, True, True, (2, 1, 2, 2)),
        (2, False, True, (1, 1, 8, 1)),
        (2, False, False, (2, 1, 1, 4)),
    ],
    ids=str,
)
def test_cudnn_is_given_the_right_part_on_each_device(
    n_kv_heads, packed, causal, mesh, monkeypatch
):
    """With jax's plain form of what cuDNN does on GPUs."""
    given = []

    def plain(q, k, v, *, mask, is_causal, implementation):
        given.append((implementation, mask is not None, is_causal))
        return of_jax(q, k, v, mask=mask, is_causal=is_causal, implementation="xla")

    of_jax = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    monkeypatch.setattr(kernels, "_suits_cudnn", lambda q: True)  # these are float32
    with jax.set_mesh(mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, mesh)))):
        _compare("cudnn", 64, n_kv_heads, packed, causal)
    cut = mesh[2] > 1
    assert set(given) == {("cudnn", packed or (causal and cut), causal and not cut)}


@pytest.mark.parametrize(
    "T, D, dtype, suits",
    [
        (64, 128, "bfloat16", True),
        (64, 64, "float16", True),
        (64, 64, "float32", False),
        (64, 256, "bfloat16", False),
        (64, 60, "bfloat16", False),
        (63, 64, "bfloat16", False),
    ],
)
def test_what_cudnn_can_do(T, D, dtype, suits):
    assert kernels._suits_cudnn(jax.ShapeDtypeStruct((2, T, 4, D), dtype)) == suits


def _compare(kernel, T, n_kv_heads, packed, causal):
    B, H, D = 2, 4, 8
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (B, T, H, D)) * 2
    k, v = (jax.random.normal(keys[i], (B, T, n_kv_heads, D)) for i in (1, 2))
    weight = jax.random.normal(keys[3], (B, T, H, D))
    segments = None
    if packed:
        cuts = jnp.array([[T // 7, T // 2], [T // 3, T - 3]])
        segments = 1 + (jnp.arange(T)[None, :, None] >= cuts[:, None]).sum(-1)

    def value(kernel, q, k, v):
        o = kernels.attend(
            q, k, v, causal=causal, q_segments=segments, k_segments=segments, kernel=kernel
        )
        return (o * weight).sum(), o

    run = jax.jit(jax.value_and_grad(value, argnums=(1, 2, 3), has_aux=True), static_argnums=0)
    (_, want), want_grad = run("einsum", q, k, v)
    (_, got), got_grad = run(kernel, q, k, v)
    assert not np.array_equal(got, want)  # it is another kernel
    for a, b in zip((got, *got_grad), (want, *want_grad)):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_the_mask_by_hand():
    segments = jnp.array([[1, 1, 2, 2]])
    mask = kernels.attention_mask(4, 4, True, 0, segments, segments)
    np.testing.assert_array_equal(mask[0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]])
    # Two queries that stand at slots 2 and 3 of four
    np.testing.assert_array_equal(
        kernels.attention_mask(2, 4, True, 2)[0], [[1, 1, 1, 0], [1, 1, 1, 1]]
    )
    assert kernels.attention_mask(4, 4, False) is None
