"""The plain implementation, for all shapes, masks and dtypes, and for keys from a cache."""

import jax
import jax.numpy as jnp

from bigjax.layers.kernels.common import MASKED
from bigjax.layers.remat import kept


def attention(
    q_BTHD, k_BSKD, v_BSKD, mask_BTS, bias=None, scale=None, dropout: float = 0.0, rng=None
) -> jax.Array:
    """mask_BTS: from mask.dense, or None: all keys are seen. rng: for dropout of the weights."""
    p = weights(q_BTHD, k_BSKD, mask_BTS, bias, scale).astype(v_BSKD.dtype)
    if dropout:
        p = jnp.where(jax.random.bernoulli(rng, 1 - dropout, p.shape), p / (1 - dropout), 0)
    return kept(jnp.einsum("bkgts,bskd->btkgd", p, v_BSKD).reshape(q_BTHD.shape), "context")


def weights(q_BTHD, k_BSKD, mask_BTS, bias=None, scale=None) -> jax.Array:
    """The attention weights, float32 [B, K, H / K, T, S]."""
    B, T, H, D = q_BTHD.shape
    K = k_BSKD.shape[2]
    q = q_BTHD.reshape(B, T, K, H // K, D) * (D**-0.5 if scale is None else scale)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k_BSKD, preferred_element_type=jnp.float32)
    if bias is not None:
        by_group = (K, H // K) if bias.shape[1] > 1 else (1, 1)
        scores += bias.reshape(bias.shape[0], *by_group, *bias.shape[2:])
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    return jax.nn.softmax(scores, axis=-1)
