"""Model families, one file each: `Config`, `Model`, `PRESETS`. A config names the module."""

from collections.abc import Callable, Collection, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax.errors import UserError
from bigjax.layers import kernels, remat
from bigjax.layers.kernels import KERNELS
from bigjax.linear import Linear
from bigjax.parallel.sharding import constrain


class ModelOutput(NamedTuple):
    """What a `Model` of tokens returns. The tasks read these fields by name.

    linear: the output layer over the vocabulary and its inputs, for the losses of layers/output.py,
        which never hold all logits; None for a model without one.
    sums: {name: number} of the layers of a Stack, such as a router's loss. A task adds those that
        its sum_weights name.
    heads: {name: float32 logits} of other heads.
    cache: of a decoder.
    log_probs: in place of linear, float32 [B, T, V], of a model whose output is not a layer over
        the vocabulary, such as one that also copies tokens.
    source: of an encoder-decoder, the output layer with the features of its encoder, for a loss on
        the tokens at each place of the source, such as CTC; None for a model without such a loss.
    """

    linear: Linear | None = None
    sums: Mapping[str, jax.Array] = {}
    heads: Mapping[str, jax.Array] = {}
    cache: Any = None
    log_probs: jax.Array | None = None
    source: Linear | None = None

    @property
    def logits(self) -> jax.Array:
        """All logits over the vocabulary, float32 [B, T, V]."""
        if self.log_probs is not None:
            return self.log_probs
        if self.linear is None:
            raise UserError(
                "This model has no output layer over the vocabulary, so that it has no logits. Its "
                f"`heads` has the logits of its other heads: {', '.join(self.heads) or 'none'}."
            )
        return constrain(self.linear.product(), "batch", "length", "act_vocab")


class ImageOutput(NamedTuple):
    """What a `Model` of images returns.

    logits: float32 [B, n_labels], None without a head. features: float32 [B, D], what the head
    reads. grid: [B, h * w, D] or [B, h, w, D], features of each place. sums: as of ModelOutput.
    """

    logits: jax.Array | None
    features: jax.Array
    grid: jax.Array | None = None
    sums: Mapping[str, jax.Array] = {}


class Fixed(NamedTuple):
    """A part of a Decoder's state that no step changes, such as the keys and values of a source.

    The beams of a row share it: a step may get several rows of tokens, consecutive ones, for each
    row of `value`.
    """

    value: Any


class Decoder(NamedTuple):
    """How a family generates text, one token per row at a time: pure functions of pytrees.

    The first axis of every leaf is the row, so that rows can be combined, repeated and reordered;
    each row has its own length. In a beam search a Cache in the state has the beams of each row
    instead (layers/attention.py). A family defines `decoder(config) -> Decoder`, equal for equal
    configs. variables: {'params': ...} and the model's other collections.

    context(ids) -> (context, first): NumPy arrays from rows of token ids: the input of `begin`, and
        the token [B] that the first step reads.
    begin(variables, context, slots) -> state, before any step; slots: the number of tokens that a
        row can hold, including those of the context.
    step(variables, state, tokens_B) -> (logits float32 [B, V], state), after one more token per
        row.
    attention(variables, state, tokens_B) -> float32 [B, S], the share of attention that the step
        which reads these tokens gives to each token of the source; None without a source.
    score(variables, tokens int [B, T]) -> Linear, the output layer after each token of complete
        rows, padded at their ends, all at once; None if the family has only steps.
    max_len: the largest number of tokens of a row; limit: the config key that says so.
    continues: whether the output continues the given ids (True), which then take up slots, all but
        the last, or answers them (False).
    """

    context: Callable[[Sequence[Sequence[int]]], tuple[Any, Any]]
    begin: Callable[[Any, Any, int], Any]
    step: Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
    max_len: int
    continues: bool = True
    attention: Callable[[Any, Any, jax.Array], jax.Array] | None = None
    limit: str = "model.max_len"
    score: Callable[[Any, jax.Array], Linear] | None = None


# Fields of a Config that do not change the parameters: a resumed run may change them.
OF_A_RUN = ("remat", "*dropout", "dtype", "param_dtype", "attention")
_CHOICES = {
    "attention": ("auto", *KERNELS),
    "dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
}


def check_fields(c, choices: dict[str, Collection[str]]) -> None:
    """Raises UserError for a field whose value is not allowed. choices: {field: allowed values}, in
    addition to those of the fields that most families have."""
    if hasattr(c, "remat"):
        remat.policy(c.remat)
    for field, allowed in {**_CHOICES, **choices}.items():
        if hasattr(c, field) and getattr(c, field) not in allowed:
            raise UserError(
                f"model.{field} is {getattr(c, field)!r}; allowed: {', '.join(allowed)}."
            )


def check_heads(c) -> None:
    """Raises UserError unless c.d_model divides into c.n_heads heads."""
    if c.d_model % c.n_heads:
        raise UserError(
            f"model.d_model={c.d_model} does not divide into model.n_heads={c.n_heads} heads."
        )


def check_start(c) -> None:
    """Raises UserError unless c.start_id, the token before a target, is in the vocabulary."""
    if c.start_id >= c.vocab_size:
        raise UserError(
            f"model.start_id is {c.start_id}; it must be less than model.vocab_size={c.vocab_size}."
        )


def check_attention(c, lengths: Mapping[str, int], mesh: jax.sharding.Mesh) -> None:
    """The `check_mesh` of a family whose field `attention` names its kernel.

    lengths: Task.attention_lengths. It also reads c.dtype and, if c has them, c.head_dim,
    c.attention_dropout and c.attention_softcap. Raises UserError if the kernel cannot train the
    model on the mesh.
    """
    optional = {
        "head_dim": "head_dim",
        "attention_dropout": "dropout",
        "attention_softcap": "softcap",
    }
    given = {key: getattr(c, name) for name, key in optional.items() if hasattr(c, name)}
    kernels.check(c.attention, lengths, mesh, c.dtype, **given)


class PlanSizes(NamedTuple):
    """The sizes from which `bigjax plan --search` estimates layouts, without compiling them.

    A family with the fields `remat` and `n_layers` of a `Stack` defines `plan_sizes(config)`.
    width: of the activations between layers. inner: of the hidden layers of an MLP, with its gate.
    queries: of all heads; keys: of all keys and values.
    """

    layers: int = 1
    width: int = 0
    inner: int = 0
    queries: int = 0
    keys: int = 0
    vocab: int = 0


class Adapted(NamedTuple):
    """How a parameter of another shape becomes one of this model: change(host array) has `shape`.

    A family whose parameters depend on sizes that a user may change, such as that of images,
    defines `adapt(theirs, config, names) -> {name: Adapted}`: theirs is the config.model of the run
    or folder that config.init_from names, names are those of its parameters that are loaded.
    """

    shape: tuple[int, ...]
    change: Callable[[np.ndarray], np.ndarray]


def rung(n: int) -> int:
    """n rounded up to a length for which programs are compiled: 0, multiples of 16 up to 128, then
    four lengths per doubling. Each decoded token costs as much as the length, not as n."""
    step = max(16, (1 << (n - 1).bit_length()) // 8) if n else 1
    return -(-n // step) * step


def prefix_context(ids: Sequence[Sequence[int]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Decoder.context of a family that continues token ids.

    The context is all but the last id of each row, padded: tokens [B, P] and lengths [B].
    """
    lengths = np.array([len(row) - 1 for row in ids], np.int32)
    tokens = np.zeros((len(ids), rung(int(max(lengths)))), np.int32)
    for row, prompt in zip(tokens, ids):
        row[: len(prompt) - 1] = prompt[:-1]
    return {"tokens": tokens, "lengths": lengths}, np.array([row[-1] for row in ids], np.int32)


def source_context(ids: Sequence[Sequence[int]], max_len: int) -> dict[str, np.ndarray]:
    """The context of a family that reads a source: its ids, padded, int32 [B, S], and segments, 1,
    or 0 for padding. Raises UserError for a source of more than max_len tokens, or none."""
    lengths = [len(row) for row in ids]
    if max(lengths) > max_len or min(lengths) == 0:
        wrong = max(lengths) if max(lengths) > max_len else 0
        raise UserError(
            f"A source has {wrong} tokens, its end token included; allowed: 1 to model.max_len="
            f"{max_len}. Shorten it, or set model.max_len to a larger number if the model allows."
        )
    width = min(rung(max(lengths)), max_len)
    source = np.zeros((len(ids), width), np.int32)
    for row, tokens in zip(source, ids):
        row[: len(tokens)] = tokens
    real = np.arange(width) < np.array(lengths)[:, None]
    return {"source": source, "segments": real.astype(np.int32)}


def cross_decoder(model: Any, c: Any, context: Callable, begin: Callable) -> Decoder:
    """Of an encoder-decoder on the blocks of layers/encoder_decoder.py, whose state is (caches,
    Fixed(the Memory of each layer)).

    model: a Flax module with the method step(tokens_B, caches, memories) -> (output layer, caches),
    and its blocks in decoder/stack. c: its Config. context, begin: as of Decoder.
    """

    def step(variables, state, tokens_B):
        own, source = state
        linear, own = model.apply(variables, tokens_B, own, source.value, method="step")
        return linear.product()[:, 0], (own, source)

    def attention(variables, state, tokens_B):
        own, source = state
        _, kept_arrays = model.apply(
            variables, tokens_B, own, source.value, method="step", mutable="intermediates"
        )
        last = kept_arrays["intermediates"]["decoder"]["stack"][f"layer_{c.n_decoder_layers - 1}"]
        (p_BTHS,) = last["cross_attention"]["weights"]
        return p_BTHS[:, 0].mean(1)

    return Decoder(context, begin, step, c.max_len, continues=False, attention=attention)


@functools.cache
def uncached_decoder(model: Any, max_len: int) -> Decoder:
    """Continues a prompt with any causal Model of tokens, by computing all tokens for each new one.

    model: a Flax module that returns a ModelOutput, with its layers unrolled (scan=False). The
    state is the tokens [B, slots] of each row, and how many there are.
    """

    def begin(variables, context, slots):
        del variables
        tokens = context["tokens"][:, :slots]
        room = slots - tokens.shape[1]
        return jnp.pad(tokens, ((0, 0), (0, room))), jnp.asarray(context["lengths"])

    def step(variables, state, tokens_B):
        tokens, lengths = state
        rows = jnp.arange(len(tokens))
        tokens = tokens.at[rows, lengths].set(tokens_B)
        linear = model.apply(variables, tokens).linear
        last = linear._replace(x=linear.x[rows, lengths])
        return last.product(), (tokens, lengths + 1)

    score = lambda variables, tokens: model.apply(variables, tokens).linear
    return Decoder(prefix_context, begin, step, max_len, score=score)
