"""The generator and the discriminator of SeqGAN (https://arxiv.org/abs/1609.05473)."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigjax import losses
from bigjax.bounds import FRACTION, POSITIVE, at_least, check_ranges
from bigjax.errors import UserError
from bigjax.layers.basic import Dense, Embed, Output, add_bias, dropout
from bigjax.layers.conv import Conv
from bigjax.layers.params import param
from bigjax.layers.recurrent import CELLS, Recurrent, empty_state
from bigjax.losses import vocabulary
from bigjax.models import (
    OF_A_RUN,
    Decoder,
    bert,
    check_attention,
    check_fields,
    gpt,
    prefix_context,
)

# The paper's filters for sequences of 20 tokens.
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20)
FILTERS = (100, 200, 200, 200, 200, 100, 100, 100, 100, 100, 160, 160)


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 5000
    max_len: int = 20
    generator: str = "lstm"  # lstm, gru, rnn, gpt
    d_model: int = 32  # width of the generator's embedding and state
    n_layers: int = 1
    n_heads: int = 4  # gpt only
    init_std: float = 0.1
    dropout: float = 0.0  # in the generator, after its embedding and before its last layer
    discriminator: str = "cnn"  # cnn, lstm (bidirectional), bert
    discriminator_d_model: int = 64
    discriminator_layers: int = 1  # lstm and bert
    discriminator_heads: int = 4  # bert only
    discriminator_dropout: float = 0.25
    filter_widths: tuple[int, ...] = WIDTHS  # cnn only, in tokens
    filters: tuple[int, ...] = FILTERS  # the number of filters of each width
    dtype: str = "float32"  # compute dtype: float32, bfloat16
    param_dtype: str = "float32"  # of imported, loaded and exported weights; training uses float32
    attention: str = "auto"  # gpt and bert, see layers/kernels/
    remat: str = "none"  # gpt and bert

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
                f"model.filters has {len(self.filters)}: give one count per width."
            )
        if self.discriminator == "cnn" and max(self.filter_widths) > self.max_len:
            raise UserError(
                f"model.filter_widths has {max(self.filter_widths)}, but sequences have only "
                f"model.max_len={self.max_len} tokens: remove the wider ones and their "
                "model.filters."
            )


check_mesh = check_attention


class Generator(nn.Module):
    """Predicts the next token, of all positions (`__call__`) or one token at a time (`step`)."""

    config: Config

    def setup(self):
        c = self.config
        types = dict(dtype=c.dtype)
        if c.generator == "gpt":
            self.gpt = gpt.Model(_gpt_config(c))
            return
        self.embed = Embed(c.vocab_size, c.d_model, init_std=c.init_std, **types)
        self.recurrent = Recurrent(c.generator, c.d_model, c.n_layers, init_std=c.init_std, **types)
        self.head = Output((c.vocab_size,), ("embed",), ("vocab",), init_std=c.init_std, **types)

    def __call__(self, inputs_BT: jax.Array, rng: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, T, V] of the token after each input. rng: of the dropout."""
        if self.config.generator == "gpt":
            return self.gpt(inputs_BT, rng=rng).logits
        return self.head(self._features(inputs_BT, rng)).product()

    def _features(self, inputs_BT, rng) -> jax.Array:
        """The inputs of the last layer, [B, T, D]."""
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
        """losses.cross_entropy of the targets; recurrent cells never hold all logits."""
        if self.config.generator == "gpt":
            return losses.cross_entropy(self.gpt(inputs_BT, rng=rng).logits, targets_BT, weights_BT)
        linear = self.head(self._features(inputs_BT, rng))
        return vocabulary.linear_cross_entropy(*linear, targets_BT, weights_BT)

    def read(self, tokens_BP: jax.Array, lengths_B: jax.Array) -> tuple:
        """The state of a recurrent generator after the first lengths_B tokens of each row."""
        c, (B, P) = self.config, tokens_BP.shape
        if not P:
            return empty_state(c.generator, c.n_layers, B, c.d_model, c.dtype)
        return self.recurrent(self.embed(tokens_BP), jnp.arange(P) < lengths_B[:, None])[1]

    def step(self, tokens_B: jax.Array, state: tuple) -> tuple[jax.Array, tuple]:
        """(logits float32 [B, V], state) of a recurrent generator after one more token."""
        x, state = self.recurrent.step(self.embed(tokens_B), state)
        return vocabulary.bias_as_row(self.head(x)).product(), state


def _gpt_config(c: Config) -> gpt.Config:
    return gpt.Config(
        vocab_size=c.vocab_size,
        max_len=c.max_len,
        d_model=c.d_model,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        dropout=c.dropout,
        scan=False,
        attention=c.attention,
        remat=c.remat,
        dtype=c.dtype,
    )


@functools.cache
def generator_decoder(c: Config) -> Decoder:
    """The generator's Decoder, for its variables: continues token ids that start with token 0."""
    if c.generator == "gpt":
        of_gpt = gpt.decoder(_gpt_config(c))
        of_part = lambda variables: {"params": variables["params"]["gpt"]}
        return of_gpt._replace(
            begin=lambda variables, *args: of_gpt.begin(of_part(variables), *args),
            step=lambda variables, *args: of_gpt.step(of_part(variables), *args),
        )
    model = Generator(c)

    def begin(variables, context, slots):
        del slots  # the state does not grow
        tokens, lengths = context["tokens"], context["lengths"]
        return model.apply(variables, tokens, lengths, method="read")

    def step(variables, state, tokens_B):
        return model.apply(variables, tokens_B, state, method="step")

    return Decoder(prefix_context, begin, step, c.max_len)


def encoder_config(c, **sizes) -> bert.Config:
    """The Config of a BERT within a network of c, with its vocabulary, types and attention."""
    return bert.Config(
        vocab_size=c.vocab_size,
        attention_dropout=0.0,
        scan=False,
        attention=c.attention,
        remat=c.remat,
        dtype=c.dtype,
        **sizes,
    )


class Discriminator(nn.Module):
    """Tells real sequences from generated ones: logits float32 [B, 2] of generated and of real."""

    config: Config

    @nn.compact
    def __call__(
        self,
        tokens_BT: jax.Array,
        mask_BT: jax.Array,
        rng: jax.Array | None = None,
        shared: tuple[int, int] = (0, 1),
    ) -> jax.Array:
        """mask: False where a sequence has ended. rng: of the dropout. shared: (n, rows), the first
        n of the T tokens, n < T, are the same in each `rows` neighbouring rows; the CNN reads them
        once."""
        c, d = self.config, self.config.discriminator_d_model
        types = dict(dtype=c.dtype)
        if c.discriminator == "bert":
            b = encoder_config(
                c,
                max_len=c.max_len,
                n_types=1,
                d_model=d,
                n_layers=c.discriminator_layers,
                n_heads=c.discriminator_heads,
                dropout=c.discriminator_dropout,
            )
            return bert.Model(b, ("classifier",), 2, name="bert")(
                tokens_BT, None, mask_BT.astype(jnp.int32), rng=rng
            ).heads["classifier"][:, 0]
        # A small initial embedding: 0.1 of the usual size gave the best held-out accuracy.
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
            y = _text_cnn(self, x, shared)
        y = dropout(y, c.discriminator_dropout, rng)
        types["out_dtype"] = "float32"
        return Dense((2,), (None,), (None,), init_std=c.init_std, **types, name="head")(y)


def oracle(arrays: list[jax.Array]) -> tuple[Config, dict]:
    """The Config and parameters of a Generator that is the paper's oracle LSTM.

    arrays, in the order of the paper's code: embedding [V, D]; W, U, b of the input, forget and
    output gates and of the candidate, each x W + h U + b; the output layer's W [D, V] and b [V].
    """
    embedding, *gates = arrays[:13]
    c = Config(vocab_size=embedding.shape[0], d_model=embedding.shape[1])
    join = lambda part: jnp.concatenate(gates[part::3], axis=-1)
    return c, {
        "embed": {"embedding": embedding},
        "recurrent": {
            "forward_0": {"kernel": join(0), "recurrent_kernel": join(1), "bias": join(2)}
        },
        "head": {"kernel": arrays[13], "bias": arrays[14]},
    }


def last_layer(params: dict) -> dict:
    """The parameters of a discriminator's last layer, the ones with an L2 penalty."""
    return params["bert"]["classifier"] if "bert" in params else params["head"]


def _text_cnn(module: nn.Module, x_BTD: jax.Array, shared: tuple[int, int]) -> jax.Array:
    """Filters of several widths, the maximum of each over the text, and a highway layer
    (https://arxiv.org/abs/1408.5882, https://arxiv.org/abs/1505.00387): [B, sum of filters]."""
    c, T = module.config, x_BTD.shape[1]
    types = dict(init_std=c.init_std, dtype=c.dtype)
    if T < max(c.filter_widths):
        raise UserError(f"A filter of {max(c.filter_widths)} tokens does not fit sequences of {T}.")
    features = []
    for width, n in zip(c.filter_widths, c.filters):
        conv = Conv(n, width, use_bias=False, **types, name=f"conv_{width}")
        bias = param(module, f"bias_{width}", nn.initializers.constant(0.1), (n,), (None,))
        # The bias and the ReLU are monotonic, so they may come after the maximum.
        features.append(jax.nn.relu(add_bias(_maximum(conv, x_BTD, *shared), bias)))
    y = jnp.concatenate(features, axis=-1)
    size = (y.shape[-1],)
    gate = jax.nn.sigmoid(Dense(size, ("embed",), (None,), **types, name="gate")(y) - 2.0)
    highway = jax.nn.relu(Dense(size, ("embed",), (None,), **types, name="highway")(y))
    return gate * highway + (1 - gate) * y


def _maximum(conv: Conv, x_BTD: jax.Array, n: int, rows: int) -> jax.Array:
    """The maximum of each filter over the text, [B, F]. Windows within the n tokens that `rows`
    neighbouring rows share are computed once."""
    own = n - conv.width + 1  # the first window with a token of its own
    if own <= 0 or rows == 1:
        return conv(x_BTD).max(axis=1)
    first = x_BTD.reshape(-1, rows, *x_BTD.shape[1:])[:, 0, :n]
    common = jnp.repeat(conv(first).max(axis=1), rows, axis=0)
    return jnp.maximum(common, conv(x_BTD[:, own:]).max(axis=1))


# The defaults are the generator and the text CNN of the paper's code for sequences of 20.
PRESETS = {"paper": {}}
