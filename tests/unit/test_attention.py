"""The kernels give the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax.layers import kernels


@pytest.mark.parametrize("T, n_kv_heads, packed", [(256, 4, True), (384, 2, False), (40, 1, True)])
def test_blocked_equals_einsum_in_values_and_gradients(T, n_kv_heads, packed):
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
        o = kernels.attend(q, k, v, causal=True, q_segments=segments, k_segments=segments,
                           kernel=kernel)
        return (o * weight).sum(), o

    run = jax.jit(jax.value_and_grad(value, argnums=(1, 2, 3), has_aux=True), static_argnums=0)
    (_, want), want_grad = run("einsum", q, k, v)
    (_, got), got_grad = run("blocked", q, k, v)
    for a, b in zip((got, *got_grad), (want, *want_grad)):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_the_mask_by_hand():
    segments = jnp.array([[1, 1, 2, 2]])
    mask = kernels.attention_mask(4, 4, True, 0, segments, segments)
    np.testing.assert_array_equal(mask[0], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0],
                                            [0, 0, 1, 1]])
    # Two queries that stand at slots 2 and 3 of four
    np.testing.assert_array_equal(kernels.attention_mask(2, 4, True, 2)[0],
                                  [[1, 1, 1, 0], [1, 1, 1, 1]])
    assert kernels.attention_mask(4, 4, False) is None
