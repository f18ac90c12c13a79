"""SeqGAN (https://arxiv.org/abs/1609.05473): a generator of tokens and a discriminator of them."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import losses
from bigjax.bounds import FRACTION, POSITIVE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.layers.basic import Dense, Embed, Output, add_bias, dropout
from bigjax.layers.params import param, weight
from bigjax.layers.recurrent import CELLS, Recurrent, empty_state
from bigjax.models import OF_A_RUN, bert, check_fields, gpt

# The paper's, for sequences of 20.
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20)
FILTERS = (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160)


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 5000
    max_len: int = 20
    generator: str = "lstm"  # lstm, gru, rnn, gpt
    d_model: int = 32  # of the generator: its embedding and its state
    n_layers: int = 1
    n_heads: int = 4  # of a gpt
    init_std: float = 0.1
    dropout: float = 0.0  # of the generator: what it reads and what its last layer reads
    discriminator: str = "cnn"  # cnn, lstm (bidirectional), bert
    discriminator_d_model: int = 64
    discriminator_layers: int = 1  # of lstm and bert
    discriminator_heads: int = 4  # of bert
    discriminator_dropout: float = 0.25
    filter_widths: tuple[int, ...] = WIDTHS  # of a cnn, in tokens
    filters: tuple[int, ...] = FILTERS  # how many of each width
    dtype: str = "float32"  # of the computation: float32, bfloat16
    param_dtype: str = "float32"  # of weights imported, loaded, exported; training has float32
    attention: str = "auto"  # of gpt and bert, see layers/kernels.py
    remat: str = "none"  # of gpt and bert

    MAY_CHANGE = OF_A_RUN
    RANGES = {
        **dict.fromkeys(("vocab_size", "max_len", "d_model", "n_layers", "n_heads"), at_least(1)),
        "discriminator_d_model": at_least(1),
        **dict.fromkeys(("discriminator_layers", "discriminator_heads"), at_least(1)),
        "init_std": POSITIVE,
        **dict.fromkeys(("dropout", "discriminator_dropout"), FRACTION),
        **dict.fromkeys(("filter_widths", "filters"), POSITIVE),
    }

    def __post_init__(self):
        check_ranges("model", self)
        check_fields(
            self,
            {"generator": (*CELLS, "gpt"), "discriminator": ("cnn", "lstm", "bert")},
        )
        if len(self.filter_widths) != len(self.filters) or not self.filters:
            raise UserError(
                f"model.filter_widths has {len(self.filter_widths)} entries, "
                f"model.filters {len(self.filters)}: give one count a width."
            )
        if self.discriminator == "cnn" and max(self.filter_widths) > self.max_len:
            raise UserError(
                f"model.filter_widths has {max(self.filter_widths)}, but sequences have only "
                f"model.max_len={self.max_len} tokens: leave out the wider ones, and their "
                "model.filters."
            )


class Generator(nn.Module):
    """The next token of each sequence; read whole (`__call__`) or token by token (`step`)."""

    config: Config

    def setup(self):
        c = self.config
        types = dict(dtype=c.dtype)
        if c.generator == "gpt":
            self.gpt = gpt.Model(
                gpt.Config(
                    vocab_size=c.vocab_size,
                    max_len=c.max_len,
                    d_model=c.d_model,
                    n_layers=c.n_layers,
                    n_heads=c.n_heads,
                    dropout=c.dropout,
                    scan=False,
                    attention=c.attention,
                    remat=c.remat,
                    **types,
                )
            )
            return
        self.embed = Embed(c.vocab_size, c.d_model, init_std=c.init_std, **types)
        self.recurrent = Recurrent(c.generator, c.d_model, c.n_layers, init_std=c.init_std, **types)
        self.head = Output(c.vocab_size, True, c.init_std, **types)

    def __call__(self, inputs_BT: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, T, V] of the token after each input. rng: for dropout."""
        if self.config.generator == "gpt":
            return self.gpt(inputs_BT, rng=rng)[0]
        return self.head(self._features(inputs_BT, rng))

    def _features(self, inputs_BT, rng) -> jax.Array:
        """What the last layer reads, [B, T, D]."""
        rate = self.config.dropout
        keys = (None, None) if rng is None else jax.random.split(rng)
        x, _ = self.recurrent(dropout(self.embed(inputs_BT), rate, keys[0]))
        return dropout(x, rate, keys[1])

    def loss(
        self,
        inputs_BT: jax.Array,
        targets_BT: jax.Array,
        weights_BT: jax.Array,
        rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """losses.cross_entropy of the targets, without holding all logits where it can."""
        if self.config.generator == "gpt":
            return losses.cross_entropy(self.gpt(inputs_BT, rng=rng)[0], targets_BT, weights_BT)
        x_BTD = self._features(inputs_BT, rng)
        parts = self.head(x_BTD, project=False)
        return losses.linear_cross_entropy(*parts, targets_BT, weights_BT)

    def step(self, tokens_B: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Logits float32 [B, V] after one more token, and the state then."""
        if self.config.generator == "gpt":
            logits, state = self.gpt(tokens_B[:, None], cache=state)
            return logits[:, 0], state
        x, state = self.recurrent.step(self.embed(tokens_B), state)
        x, kernel, bias = losses.bias_as_row(*self.head(x, project=False))
        logits = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
        return logits if bias is None else logits + bias, state


def begin(c: Config, batch: int) -> Any:
    """The generator's state before the first token of `batch` sequences."""
    if c.generator == "gpt":
        g = gpt.Config(d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads, dtype=c.dtype)
        return gpt.empty_cache(g, batch, c.max_len)
    return empty_state(c.generator, c.n_layers, batch, c.d_model, c.dtype)


class Discriminator(nn.Module):
    """Is a sequence real? Logits float32 [B, 2]: of generated, of real."""

    config: Config

    @nn.compact
    def __call__(
        self, tokens_BT: jax.Array, mask_BT: jax.Array, rng: jax.Array | None = None
    ) -> jax.Array:
        """mask: False where a sequence has ended. rng: for dropout."""
        c, d = self.config, self.config.discriminator_d_model
        types = dict(dtype=c.dtype)
        if c.discriminator == "bert":
            b = bert.Config(
                vocab_size=c.vocab_size,
                max_len=c.max_len,
                n_types=1,
                d_model=d,
                n_layers=c.discriminator_layers,
                n_heads=c.discriminator_heads,
                dropout=c.discriminator_dropout,
                attention_dropout=0.0,
                scan=False,
                attention=c.attention,
                remat=c.remat,
                **types,
            )
            return bert.Model(b, ("classifier",), 2, name="bert")(
                tokens_BT, None, mask_BT.astype(jnp.int32), rng=rng
            )["classifier"][:, 0]
        # A small embedding to begin with: 0.1 of the usual size helped held-out accuracy most.
        x = Embed(c.vocab_size, d, init_std=c.init_std, **types, name="embed")(tokens_BT)
        x = jnp.where(mask_BT[..., None], x, 0)
        if c.discriminator == "lstm":
            y, _ = Recurrent(
                "lstm",
                d,
                c.discriminator_layers,
                bidirectional=True,
                init_std=c.init_std,
                **types,
                name="recurrent",
            )(x, mask_BT)
            y = jnp.where(mask_BT[..., None], y, -jnp.inf).max(axis=1)
        else:
            y = _text_cnn(self, x)
        y = dropout(y, c.discriminator_dropout, rng)
        types["out_dtype"] = "float32"
        return Dense((2,), (None,), (None,), init_std=c.init_std, **types, name="head")(y)


def oracle(arrays: list[jax.Array]) -> tuple[Config, dict]:
    """The paper's oracle LSTM as a Generator's Config and parameters.

    arrays, as the paper's code keeps them: embedding [V, D]; W, U, b of the input, forget and
    output gates and of the candidate, each x W + h U + b; the output layer's W [D, V] and b [V].
    """
    embedding, *gates = arrays[:13]
    c = Config(vocab_size=embedding.shape[0], d_model=embedding.shape[1])
    join = lambda part: jnp.concatenate(gates[part::3], axis=-1)
    return c, {
        "embed": {"embedding": embedding},
        "recurrent": {
            "forward_0": {"input_kernel": join(0), "recurrent_kernel": join(1), "bias": join(2)}
        },
        "head": {"kernel": arrays[13], "bias": arrays[14]},
    }


def last_layer(params: dict) -> dict:
    """Of a discriminator's parameters those of its last layer, which L2 weighs."""
    return params["bert"]["classifier"] if "bert" in params else params["head"]


def _text_cnn(module: nn.Module, x_BTD: jax.Array) -> jax.Array:
    """Filters of several widths, the largest value of each over the text, and a highway layer
    (https://arxiv.org/abs/1408.5882, https://arxiv.org/abs/1505.00387): [B, sum of filters]."""
    c, (B, T, D) = module.config, x_BTD.shape
    if T < max(c.filter_widths):
        raise UserError(f"A filter of {max(c.filter_widths)} tokens does not fit sequences of {T}.")
    found = []
    for width, n in zip(c.filter_widths, c.filters):
        kernel = weight(
            module,
            f"kernel_{width}",
            nn.initializers.normal(c.init_std),
            (width * D, n),
            ("embed", None),
            c.dtype,
        )
        bias = param(module, f"bias_{width}", nn.initializers.constant(0.1), (n,), (None,))
        # All windows as rows of one matrix: on a CPU twice as fast as a convolution.
        columns = np.arange(T - width + 1)[:, None] + np.arange(width)
        y = x_BTD[:, columns].reshape(B * (T - width + 1), width * D) @ kernel
        # The bias and the rectifier keep the order of values, so they may follow the maximum.
        largest = y.reshape(B, T - width + 1, n).max(axis=1)
        found.append(jax.nn.relu(add_bias(largest, bias)))
    y = jnp.concatenate(found, axis=-1)
    types = dict(init_std=c.init_std, dtype=c.dtype)
    size = (y.shape[-1],)
    gate = jax.nn.sigmoid(Dense(size, ("embed",), (None,), **types, name="gate")(y) - 2.0)
    carried = jax.nn.relu(Dense(size, ("embed",), (None,), **types, name="highway")(y))
    return gate * carried + (1 - gate) * y


# The text CNN that the paper's code uses for sequences of 20 and its generator are the defaults.
PRESETS = {"paper": {}}
