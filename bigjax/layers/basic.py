"""Dense, norms, embeddings, MLP, dropout."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax.layers.params import param
from bigjax.parallel.sharding import constrain, gathered


def in_float32(f):
    """The elementwise f, computed in float32 and given in the type of its argument.

    In bfloat16 a `1 + tanh(x)` or `1 + erf(x)` cancels for negative x. For the backward pass the
    slope alone is kept, in the type of the argument.
    """

    @jax.custom_jvp
    def apply(x):
        return f(x.astype(jnp.float32)).astype(x.dtype)

    @apply.defjvp
    def _(primals, tangents):
        (x,), (dx,) = primals, tangents
        x32 = x.astype(jnp.float32)
        y, slope = jax.jvp(f, (x32,), (jnp.ones_like(x32),))
        return y.astype(x.dtype), dx * slope.astype(x.dtype)

    return apply


ACTIVATIONS = {
    # GPT-2's, and BERT's. By sigmoid and erfc: `1 + tanh` and `1 + erf` lose all digits below -5,
    # even in float32. sigmoid(2 x) is (1 + tanh(x)) / 2, and takes half the time.
    "gelu": in_float32(
        lambda x: x * jax.nn.sigmoid((8 / math.pi) ** 0.5 * (x + 0.044715 * x * x * x))
    ),
    "gelu_exact": in_float32(lambda x: 0.5 * x * jax.lax.erfc(-x * 0.5**0.5)),
    "relu": jax.nn.relu,
    "swiglu": in_float32(jax.nn.silu),  # of the gate, https://arxiv.org/abs/2002.05202
}


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias in the type of y, added in float32: the gradient of the bias sums up all rows."""
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


class Dense(nn.Module):
    """x @ kernel + bias, contracting the last len(in_axes) dimensions of x.

    kernel: [*in, *features]; in_axes and out_axes name the dimensions.
    """

    features: tuple[int, ...]
    in_axes: tuple[str, ...]
    out_axes: tuple[str, ...]
    use_bias: bool = True
    init_std: float = 0.02
    dtype: str = "float32"

    @nn.compact
    def weights(self, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array | None]:
        """The kernel as a matrix [inputs, features] in the compute dtype, and the bias [features]
        in float32."""
        axes = self.in_axes + self.out_axes
        kernel = param(
            self,
            "kernel",
            nn.initializers.normal(self.init_std),
            (*inputs, *self.features),
            axes,
        )
        kernel = gathered(kernel, axes, self.dtype).reshape(math.prod(inputs), -1)
        if not self.use_bias:
            return kernel, None
        bias = param(self, "bias", nn.initializers.zeros, self.features, self.out_axes)
        return kernel, bias.reshape(-1)

    def __call__(self, x: jax.Array) -> jax.Array:
        y, bias = self._product(x, self.dtype)
        y = y if bias is None else add_bias(y, bias)
        return y.reshape(*y.shape[:-1], *self.features)

    def logits(self, x: jax.Array) -> jax.Array:
        """__call__, left in the float32 it is accumulated in, as losses and draws want it."""
        y, bias = self._product(x, jnp.float32)
        y = y if bias is None else y + bias
        return y.reshape(*y.shape[:-1], *self.features)

    def _product(self, x: jax.Array, dtype) -> tuple[jax.Array, jax.Array | None]:
        n = len(self.in_axes)
        lead, inputs = x.shape[:-n], x.shape[-n:]
        kernel, bias = self.weights(inputs)
        # Two-dimensional kernels: one plain matrix product on every backend.
        x = x.reshape(*lead, -1).astype(self.dtype)
        return jnp.matmul(x, kernel, preferred_element_type=dtype), bias


class Norm(nn.Module):
    """LayerNorm (https://arxiv.org/abs/1607.06450) or RMSNorm (https://arxiv.org/abs/1910.07467).

    Computed in float32 over the last axis; the result has the compute dtype.
    """

    kind: str = "layernorm"  # layernorm, rmsnorm
    use_bias: bool = True  # LayerNorm's; RMSNorm has none
    eps: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        d = x.shape[-1]
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        y = y * param(self, "scale", nn.initializers.ones, (d,), ("norm",))
        if self.kind == "layernorm" and self.use_bias:
            y = y + param(self, "bias", nn.initializers.zeros, (d,), ("norm",))
        return y.astype(self.dtype)


class Embed(nn.Module):
    """A table [n, d]; __call__ looks rows up, attend gives the products with all rows."""

    n: int
    d: int
    axis: str = "vocab"
    init_std: float = 0.02
    dtype: str = "float32"

    def setup(self):
        self.embedding = param(
            self,
            "embedding",
            nn.initializers.normal(self.init_std),
            (self.n, self.d),
            (self.axis, "embed"),
        )

    def table(self) -> jax.Array:
        """[n, d] in the compute dtype, whole rows on each device: cut rows make bad gathers."""
        return gathered(self.embedding, (self.axis, "embed"), self.dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        axes, dtype = (self.axis, "embed"), self.dtype

        @jax.custom_vjp
        def look_up(table, ids):
            return jnp.take(gathered(table, axes, dtype), ids, axis=0)

        def backward(ids, g):
            # In float32: a row that many tokens share would stop growing in bfloat16.
            sums = jnp.zeros((self.n, self.d)).at[ids].add(g.astype(jnp.float32))
            return constrain(sums, *axes), None

        look_up.defvjp(lambda table, ids: (look_up(table, ids), ids), backward)
        return look_up(self.embedding, ids)

    def attend(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., n], accumulated in float32."""
        return jnp.einsum(
            "...d,nd->...n", x.astype(self.dtype), self.table(), preferred_element_type=jnp.float32
        )


class MLP(nn.Module):
    """Two dense layers; three for SwiGLU, whose gate multiplies the first."""

    d_ff: int
    activation: str = "gelu"
    use_bias: bool = True
    out_std: float = 0.02
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        types = dict(use_bias=self.use_bias, dtype=self.dtype)
        wide = dict(features=(self.d_ff,), in_axes=("embed",), out_axes=("mlp",), **types)
        act = ACTIVATIONS[self.activation]
        x_BTD = constrain(x_BTD, "batch", "length", "act_embed")
        h = Dense(**wide, name="up")(x_BTD)
        h = act(Dense(**wide, name="gate")(x_BTD)) * h if self.activation == "swiglu" else act(h)
        h = constrain(h, "batch", "length", "act_mlp")
        y = Dense(
            (x_BTD.shape[-1],), ("mlp",), ("embed",), init_std=self.out_std, **types, name="down"
        )(h)
        return constrain(y, "batch", "residual_length", "act_embed")


def dropout(x: jax.Array, rate: float, rng: jax.Array | None) -> jax.Array:
    """Inverted dropout; off without an rng, so that evaluation passes none."""
    if rng is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(rng, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)
