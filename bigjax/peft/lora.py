"""LoRA (https://arxiv.org/abs/2106.09685): a product of two narrow matrices beside dense layers.

rsLoRA (https://arxiv.org/abs/2312.03732) scales it by alpha / sqrt(rank), and DoRA
(https://arxiv.org/abs/2402.09353) trains the norm of each column of the sum.
"""

import dataclasses
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.bounds import FRACTION, POSITIVE, at_least
from bigjax.errors import UserError
from bigjax.layers.basic import Dense, Embed, Output, dropout
from bigjax.layers.params import param, weight
from bigjax.layers.product import product
from bigjax.peft import (
    Layer,
    Method,
    Options,
    Seen,
    check_targets,
    is_stacked,
    joined,
    layers_with,
    nested,
    parts,
    plain_base,
    some,
)
from bigjax.trees import named_leaves

A, B, MAGNITUDE = "lora_a/kernel", "lora_b/kernel", "lora_magnitude"


@dataclasses.dataclass(frozen=True)
class Config(Options):
    rank: int = 8
    alpha: float = 16.0  # the product is scaled by alpha / rank
    targets: str = "attention/(query|value)$"  # regex over the paths of dense layers
    dropout: float = 0.0  # of the inputs of the product
    rank_stabilized: bool = False  # rsLoRA: scaled by alpha / sqrt(rank)
    dora: bool = False  # DoRA: the norms of the columns of the sum are trained too

    RANGES = {"rank": at_least(1), "alpha": POSITIVE, "dropout": FRACTION}

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def build(options: Config) -> Method:
    return Method(
        layer=lambda layer: _adapted(options, layer),
        merge=lambda params: merge(params, options),
        first=_magnitudes if options.dora else None,
        check=lambda seen: _check(options, seen),
    )


class Factor(nn.Module):
    """A matrix of the product, as a layer uses it."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    initial: Any
    dtype: str

    @nn.compact
    def __call__(self) -> jax.Array:
        return weight(self, "kernel", self.initial, self.shape, self.axes, self.dtype)


def _adapted(c: Config, layer: Layer):
    """The output of a dense layer, plus (x a) b times the scale."""
    dense: Any = layer.module
    chosen = isinstance(dense, Dense) and re.search(c.targets, layer.path) is not None
    if not isinstance(dense, Dense) or not layer.has("lora_a", chosen):
        return layer.run()
    if c.dora and isinstance(dense, Output):
        raise UserError(
            f"peft.dora=True cannot adapt {layer.path!r}, an output layer over a vocabulary, whose "
            "logits are never held at once. Choose other peft.targets, or peft.dora=False."
        )
    y = layer.run()
    x = layer.arguments[0].astype(dense.dtype)
    n = len(dense.in_axes)
    inputs = x.shape[-n:]
    bound = 1 / math.sqrt(math.prod(inputs))
    uniform = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    a = Factor((*inputs, c.rank), (*dense.in_axes, None), uniform, dense.dtype, name="lora_a")()
    zeros, out = nn.initializers.zeros, (c.rank, *dense.features)
    b = Factor(out, (None, *dense.out_axes), zeros, dense.dtype, name="lora_b")()
    low = product(dropout(x, c.dropout, layer.rng), a, n, dense.dtype) * c.scale
    if isinstance(dense, Output):  # not multiplied yet
        return y.plus(low, b)
    dtype = dense.out_dtype or dense.dtype
    extra = product(low, b, 1, dtype)
    if not c.dora:
        return y + extra
    magnitude = param(dense, MAGNITUDE, nn.initializers.ones, dense.features, dense.out_axes)
    kernel = plain_base(nn.meta.unbox(dense.get_variable("params", "kernel")))
    kernel = jax.lax.stop_gradient(kernel)
    delta = jnp.tensordot(a.astype(jnp.float32), b.astype(jnp.float32), 1) * c.scale
    # A constant for the gradient, as in the paper's section 4.3.
    norms = jax.lax.stop_gradient(column_norms(kernel + delta, n))
    share = (magnitude / norms).astype(dtype)
    return y + (share - 1) * product(x, kernel.astype(dense.dtype), n, dtype) + share * extra


def column_norms(kernel: jax.Array, n: int) -> jax.Array:
    """The norms over the first n axes, float32."""
    return jnp.sqrt(jnp.square(kernel.astype(jnp.float32)).sum(tuple(range(n))))


def deltas(params: dict, scale: float) -> dict[str, jax.Array]:
    """{path of a layer: what its product adds to the kernel, float32}."""
    named, out = named_leaves(params), {}
    for path in layers_with(params, A):
        a, b = named[f"{path}/{A}"], named[f"{path}/{B}"]
        times = lambda a, b: jnp.tensordot(
            a.astype(jnp.float32), b.astype(jnp.float32), 1, precision="highest"
        )
        out[path] = scale * (jax.vmap(times) if is_stacked(path) else times)(a, b)
    return out


def merge(params: dict, c: Config) -> dict:
    """The parameters of the plain model that computes the same: kernels with their products."""
    return _merged(params, c, 1.0)


def unmerge(merged: dict, params: dict, c: Config) -> dict:
    """The base's parameters from merged ones and the adapter's `params`. Not for DoRA, whose
    columns were scaled by norms of the base."""
    if c.dora:
        raise UserError("A merged DoRA cannot be unmerged: keep its base.")
    return _merged(joined(merged, params), c, -1.0)


def _merged(params: dict, c: Config, sign: float) -> dict:
    named, new = named_leaves(params), {}
    for path, delta in deltas(params, c.scale).items():
        kernel = named[f"{path}/kernel"]
        total = kernel.astype(jnp.float32) + sign * delta
        if f"{path}/{MAGNITUDE}" in named:
            magnitude = named[f"{path}/{MAGNITUDE}"]
            share = magnitude / _norms(path, total, magnitude)
            lead, n = (slice(None),) * is_stacked(path), total.ndim - share.ndim
            total = total * share[(*lead, *(None,) * n)]
        new[f"{path}/kernel"] = total.astype(kernel.dtype)
    plain = parts(params, lambda name: not is_own(name))
    return joined(plain, nested(new))


def is_own(name: str) -> bool:
    """Whether a parameter belongs to LoRA."""
    return name.endswith((f"/{A}", f"/{B}", f"/{MAGNITUDE}"))


def _norms(path: str, kernel: jax.Array, like) -> jax.Array:
    """The norms of the columns of a kernel, of each layer if they are stacked."""
    n = kernel.ndim - like.ndim
    if is_stacked(path):
        return jax.vmap(lambda k: column_norms(k, n))(kernel)
    return column_norms(kernel, n)


def _magnitudes(params: dict) -> dict:
    named, out = named_leaves(params), {}
    for path in layers_with(params, MAGNITUDE):
        like = named[f"{path}/{MAGNITUDE}"]
        out[f"{path}/{MAGNITUDE}"] = _norms(path, named[f"{path}/kernel"], like)
    return out


def _check(c: Config, seen: Seen) -> None:
    if embeddings := [path for path in seen.of(Embed) if re.search(c.targets, path)]:
        raise UserError(
            f"peft.targets={c.targets!r} matches the embedding {embeddings[0]!r}. LoRA adapts "
            "dense layers only; an output layer that is tied to the embedding has no kernel of its "
            f"own. Choose among {some(seen.dense)}."
        )
    for path in check_targets(c.targets, seen.dense, "dense layer"):
        inputs, outputs, _ = seen.dense[path]
        if c.rank > min(inputs, outputs):
            raise UserError(
                f"peft.rank={c.rank} is larger than a dimension of {path!r}, which has {inputs} "
                f"inputs and {outputs} outputs: such a product has more parameters than the layer. "
                f"Set it to {min(inputs, outputs)} or less."
            )
