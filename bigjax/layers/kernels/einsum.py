"""The plain implementation, for all shapes, masks and dtypes, and for keys from a cache."""

import jax
import jax.numpy as jnp

from bigjax.layers.kernels.common import MASKED, dot, scores
from bigjax.layers.remat import kept
from bigjax.linear import capped


def attention(
    q_BTHD,
    k_BSKD,
    v_BSKD,
    mask_BTS,
    bias=None,
    scale=None,
    dropout: float = 0.0,
    rng=None,
    softcap: float = 0.0,
) -> jax.Array:
    """mask_BTS: from mask.dense, or None: all keys are seen. rng: for dropout of the weights."""
    p = weights(q_BTHD, k_BSKD, mask_BTS, bias, scale, softcap).astype(v_BSKD.dtype)
    if dropout:
        p = jnp.where(jax.random.bernoulli(rng, 1 - dropout, p.shape), p / (1 - dropout), 0)
    B, K, G, T, S = p.shape
    o = dot(p.reshape(B, K, G * T, S), v_BSKD.swapaxes(1, 2), 3, 2, v_BSKD.dtype)
    o_BTKGD = o.reshape(B, K, G, T, -1).transpose(0, 3, 1, 2, 4)
    return kept(o_BTKGD.reshape(q_BTHD.shape), "context")


def weights(q_BTHD, k_BSKD, mask_BTS, bias=None, scale=None, softcap: float = 0.0) -> jax.Array:
    """The attention weights, float32 [B, K, H / K, T, S]."""
    B, T, H, D = q_BTHD.shape
    K, S = k_BSKD.shape[2], k_BSKD.shape[1]
    q = q_BTHD.reshape(B, T, K, H // K, D) * (D**-0.5 if scale is None else scale)
    q = q.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, D)
    p = scores(q, k_BSKD.swapaxes(1, 2)).reshape(B, K, H // K, T, S)
    if softcap:
        p = capped(p, softcap)
    if bias is not None:
        by_group = (K, H // K) if bias.shape[1] > 1 else (1, 1)
        p += bias.reshape(bias.shape[0], *by_group, *bias.shape[2:])
    if mask_BTS is not None:
        p = jnp.where(mask_BTS[:, None, None], p, MASKED)
    return jax.nn.softmax(p, axis=-1)
