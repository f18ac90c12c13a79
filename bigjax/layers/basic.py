"""Dense, norms, embeddings, MLP, dropout."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.errors import UserError
from bigjax.layers.params import param, weight
from bigjax.layers.product import product
from bigjax.layers.remat import kept
from bigjax.linear import Linear
from bigjax.parallel.mesh import platform
from bigjax.parallel.sharding import constrain, gathered


def in_float32(f):
    """The elementwise f, computed in float32; the result has the dtype of the argument.

    In bfloat16 a `1 + tanh(x)` or `1 + erf(x)` cancels for negative x. Only the slope is kept for
    the backward pass, in the dtype of the argument.
    """

    @jax.custom_jvp
    def apply(x):
        return f(x.astype(jnp.float32)).astype(x.dtype)

    @apply.defjvp
    def _(primals, tangents):
        (x,), (dx,) = primals, tangents
        x32 = x.astype(jnp.float32)
        y = f(x32)
        if platform() == "cpu":  # a third array would be kept: what y and the slope have in common
            x32 = jax.lax.optimization_barrier(x32)
        _, slope = jax.jvp(f, (x32,), (jnp.ones_like(x32),))
        return y.astype(x.dtype), dx * slope.astype(x.dtype)

    return apply


# GPT-2's and BERT's, by sigmoid and erfc: `1 + tanh` and `1 + erf` lose all digits below -5, even
# in float32. sigmoid(2 x) is (1 + tanh(x)) / 2, in half the time.
_gelu = in_float32(lambda x: x * jax.nn.sigmoid((8 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x)))
_silu = in_float32(jax.nn.silu)
# Those of the gates that multiply a second product: https://arxiv.org/abs/2002.05202
GATES = {"swiglu": _silu, "geglu": _gelu}
ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_exact": in_float32(lambda x: 0.5 * x * jax.lax.erfc(-x * 0.5**0.5)),
    "relu": jax.nn.relu,
    "silu": _silu,
    **GATES,
}


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias in the dtype of y, added in float32: the bias's gradient is a sum over all rows."""
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


class Dense(nn.Module):
    """x @ kernel + bias, contracting the last len(in_axes) dimensions of x.

    kernel: [*in, *features]; in_axes and out_axes name the dimensions. out_dtype: of the result,
    by default dtype; 'float32' avoids rounding the accumulated sums, for logits.

    Activations meet weights here: an interceptor (`nn.intercept_methods`) of `__call__` may add
    parameters to the layer and terms to its output (adapters). Subclasses differ in the product
    only: that of an `Output` is left to the loss.
    """

    features: tuple[int, ...]
    in_axes: tuple[str, ...]
    out_axes: tuple[str | None, ...]
    use_bias: bool = True
    init_std: float = 0.02
    dtype: str = "float32"
    out_dtype: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias, _ = self._factors(x)
        y = product(x, kernel, len(self.in_axes), self.out_dtype or self.dtype)
        return y if bias is None else add_bias(y, bias)

    def _factors(self, x: jax.Array) -> Linear:
        """x, kernel and bias: called in a compact method, which may declare parameters."""
        for name in ("features", "in_axes", "out_axes"):
            if not isinstance(getattr(self, name), (tuple, list)):
                raise UserError(
                    f"Dense.{name} is {getattr(self, name)!r}; it must be a tuple with one entry "
                    "per dimension, as in Dense((64,), ('embed',), ('mlp',))."
                )
        n = len(self.in_axes)
        inputs = x.shape[-n:]
        axes, shape = self.in_axes + self.out_axes, (*inputs, *self.features)
        init = nn.initializers.normal(self.init_std)
        kernel = weight(self, "kernel", init, shape, axes, self.dtype)
        bias = None
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, self.features, self.out_axes)
        return Linear(x.astype(self.dtype), kernel, bias)


class Output(Dense):
    """The layer from features to logits over a vocabulary, as a Linear, which is not multiplied:
    a loss computes its logits a part at a time (layers/output.py), a decoder all of them."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> Linear:  # type: ignore[override]
        return self._factors(x_BTD)


class Norm(nn.Module):
    """LayerNorm (https://arxiv.org/abs/1607.06450) or RMSNorm (https://arxiv.org/abs/1910.07467).

    Computed in float32 over the last axis; the result has the compute dtype.
    """

    kind: str = "layernorm"  # layernorm, rmsnorm
    use_bias: bool = True  # LayerNorm's; RMSNorm has none
    eps: float = 1e-5
    dtype: str = "float32"
    offset: bool = False  # it multiplies by 1 + scale, which is 0 at first (Gemma)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = param(self, "scale", init, (d,), ("norm",))
        y = y * (1 + scale if self.offset else scale)
        if self.kind == "layernorm" and self.use_bias:
            y = y + param(self, "bias", nn.initializers.zeros, (d,), ("norm",))
        return y.astype(self.dtype)


class Embed(nn.Module):
    """A table [n, d]; __call__ looks rows up, `output` is the output layer tied to it."""

    n: int
    d: int
    axis: str = "vocab"
    init_std: float = 0.02
    dtype: str = "float32"

    def setup(self):
        init, shape = nn.initializers.normal(self.init_std), (self.n, self.d)
        axes = (self.axis, "embed")
        self.embedding = weight(self, "embedding", init, shape, axes, "float32", gather="none")

    def table(self) -> jax.Array:
        """[n, d] in the compute dtype, complete rows on each device: sharded rows gather slowly."""
        return gathered(self.embedding, (self.axis, "embed"), self.dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        axes, dtype = (self.axis, "embed"), self.dtype

        @jax.custom_vjp
        def look_up(table, ids):
            return jnp.take(gathered(table, axes, dtype), ids, axis=0)

        def backward(ids, g):
            # In float32: the sum for a row that many tokens share would stop growing in bfloat16.
            sums = jnp.zeros((self.n, self.d)).at[ids].add(g.astype(jnp.float32))
            return constrain(sums, *axes), None

        look_up.defvjp(lambda table, ids: (look_up(table, ids), ids), backward)
        return look_up(self.embedding, ids)

    def output(self, x: jax.Array, bias: jax.Array | None = None) -> Linear:
        """The output layer [d, n] with this table as its weights, for x [..., d]."""
        return Linear(x.astype(self.dtype), self.table().T, bias)


class MLP(nn.Module):
    """Two dense layers; three with an activation of GATES, where the gate multiplies the first.

    dropout: of the activations between the layers, if it is called with an rng.
    """

    d_ff: int
    activation: str = "gelu"
    use_bias: bool = True
    init_std: float = 0.02
    out_std: float = 0.02
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        types = dict(use_bias=self.use_bias, dtype=self.dtype)
        wide = dict(features=(self.d_ff,), in_axes=("embed",), out_axes=("mlp",), **types)
        wide |= dict(init_std=self.init_std)
        act = ACTIVATIONS[self.activation]
        x_BTD = constrain(x_BTD, "batch", "length", "act_embed")
        h = kept(Dense(**wide, name="up")(x_BTD), "mlp")
        if self.activation in GATES:
            h = act(kept(Dense(**wide, name="gate")(x_BTD), "mlp")) * h
        else:
            h = act(h)
        h = constrain(dropout(h, self.dropout, rng), "batch", "length", "act_mlp")
        y = Dense(
            (x_BTD.shape[-1],), ("mlp",), ("embed",), init_std=self.out_std, **types, name="down"
        )(h)
        return constrain(y, "batch", "residual_length", "act_embed")


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
    """Inverted dropout; off where rng is None, as in evaluation."""
    if rng is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
