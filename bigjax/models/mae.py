"""Masked autoencoders: a Vision Transformer that encodes the visible patches of images, and a small
one that decodes all patches from them (https://arxiv.org/abs/2111.06377)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.layers.attention import Span
from bigjax.layers.basic import Dense, Norm
from bigjax.layers.params import param
from bigjax.layers.stack import Stack
from bigjax.models import vit
from bigjax.models.images import normalised
from bigjax.parallel.sharding import constrain


class Decoder(nn.Module):
    """Features of visible patches to the pixels of all patches.

    config: of its layers; image_size, patch and channels are the images'.
    """

    config: vit.Config

    @nn.compact
    def __call__(self, x_BKD, rank_BN, first_BD=None, *, rng=None) -> jax.Array:
        """float32 [B, N, patch * patch * channels]: normalised pixels, row by row.

        x: of the K visible patches. rank: the place of each of the N patches among them; K and
        above for those that are not visible. first: the class token, which is decoded along.
        """
        c = self.config
        types = dict(dtype=c.dtype)
        K = x_BKD.shape[1]
        std = (2 / (x_BKD.shape[-1] + c.d_model)) ** 0.5
        embed = Dense((c.d_model,), ("embed",), ("norm",), init_std=std, **types, name="embed")
        init = nn.initializers.normal(0.02)
        masked = param(self, "mask_token", init, (c.d_model,), ("norm",)).astype(c.dtype)
        x = jnp.take_along_axis(embed(x_BKD), jnp.minimum(rank_BN, K - 1)[..., None], axis=1)
        x = jnp.where((rank_BN < K)[..., None], x, masked)
        x = x + jnp.asarray(vit.sincos2d(c.grid, c.grid, c.d_model), x.dtype)
        if first_BD is not None:
            x = jnp.concatenate([embed(first_BD[:, None].astype(x.dtype)), x], axis=1)
        x = constrain(x, "batch", "residual_length", "act_embed")
        span = Span(jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]))
        x, _, _ = Stack((vit.Block,), c, c.n_layers, c.scan, c.remat, name="stack")(
            x, span, None, rng
        )
        x = Norm(eps=c.norm_eps, **types, name="norm")(x)
        pixels = Dense(
            (c.patch**2 * c.channels,),
            ("embed",),
            (None,),
            **types,
            out_dtype="float32",
            name="pixels",
        )(x)
        return pixels[:, -rank_BN.shape[1] :]


class Autoencoder(nn.Module):
    """A `vit.Model` without a head, whose parameters have the names that they have without the
    decoder, and a Decoder."""

    encoder: vit.Config
    decoder: vit.Config
    n_visible: int

    @nn.compact
    def __call__(self, images_BHWC, noise_BN, *, rng=None) -> tuple[jax.Array, jax.Array]:
        """(pixels as of the Decoder, bool [B, N]: whether each patch was masked).

        noise: numbers whose n_visible smallest of each image make a patch visible.
        """
        model = vit.Model(self.encoder, n_labels=0)
        nn.share_scope(self, model)
        order_BN = jnp.argsort(noise_BN, axis=1)
        rank_BN = jnp.argsort(order_BN, axis=1)
        out = model(images_BHWC, keep_BK=order_BN[:, : self.n_visible], rng=rng)
        c, first = self.encoder, None
        if c.pooling in vit.WITH_CLASS:
            first = out.features[:, : c.d_model]
        key = None if rng is None else jax.random.fold_in(rng, 1)
        pixels = Decoder(self.decoder, name="decoder")(out.grid, rank_BN, first, rng=key)
        return pixels, rank_BN >= self.n_visible


def targets(images_BHWC: jax.Array, c: vit.Config) -> jax.Array:
    """float32 [B, N, patch * patch * channels]: normalised pixels, row by row."""
    x = vit.patches(normalised(images_BHWC, dataclasses.replace(c, dtype="float32")), c)
    return x.reshape(*x.shape[:2], -1)


def standardised(x_BNP: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x with mean 0 and variance 1 in each patch, the mean, the standard deviation), the last two
    [B, N, 1]."""
    mean = x_BNP.mean(-1, keepdims=True)
    std = jnp.sqrt(x_BNP.var(-1, keepdims=True, ddof=1) + 1e-6)
    return (x_BNP - mean) / std, mean, std


def pictures(pixels_BNP: jax.Array, c: vit.Config) -> jax.Array:
    """uint8 [B, H, W, channels] of normalised pixels of patches."""
    B, p, g = len(pixels_BNP), c.patch, c.grid
    x = pixels_BNP.reshape(B, g, g, p, p, c.channels).swapaxes(2, 3)
    x = x.reshape(B, g * p, g * p, c.channels)
    x = (x * jnp.asarray(c.std) + jnp.asarray(c.mean)) * 255
    return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)
