"""An encoder-decoder with its own decoding state, and the pairs of lines that it is trained on."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from bigjax import losses, modules, tasks
from bigjax.bounds import at_least
from bigjax.data.arrays import ArrayData
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from bigjax.layers.attention import Attention, Cache, Span
from bigjax.layers.basic import MLP, Embed, Norm
from bigjax.layers.mask import Causal, Full
from bigjax.layers.stack import Stack
from bigjax.models import Decoder, rung


class Pairs(ArrayData):
    """config.data: a file of lines 'source TAB target', as bytes."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        path: str = ""
        source_len: int = 16
        target_len: int = 16

        RANGES = dict.fromkeys(("source_len", "target_len"), at_least(2))
        DATA_PATHS = ("path",)
        MAY_CHANGE = ("path",)

    def __init__(self, path: str, source_len: int, target_len: int):
        t = Bytes()
        try:
            with open(path, encoding="utf-8") as file:
                pairs = [line.rstrip("\n").split("\t") for line in file]
            ids = [[t.bos_id, *t.encode(a).tolist()] for a, _ in pairs]
            targets = [[*t.encode(b).tolist(), t.eos_id] for _, b in pairs]
        except (OSError, ValueError) as e:
            raise UserError(f"config.data.path={path!r} has no lines with one tab: {e}") from e

        def rows(lists, n):
            out = np.full((len(lists), n), t.pad_id, np.int32)
            for row, x in zip(out, lists):
                row[: len(x)] = x[:n]
            return out

        arrays = {"source": rows(ids, source_len), "target": rows(targets, target_len)}
        arrays["weights"] = (arrays["target"] != t.pad_id).astype(np.float32)
        first = {k: x[:32] for k, x in arrays.items()}
        super().__init__({"train": arrays, "valid": first, "test": first}, t)


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 264
    d_model: int = 32
    n_layers: int = 2
    n_heads: int = 4
    max_len: int = 32
    start_id: int = 256  # what the decoder reads first
    pad_id: int = 258
    scan: bool = True

    RANGES = dict.fromkeys(("vocab_size", "d_model", "n_layers", "n_heads", "max_len"), at_least(1))

    def __post_init__(self):
        if self.d_model % self.n_heads:
            raise UserError(f"model.d_model={self.d_model} does not divide into heads.")


def attention(c: Config, mask, name: str) -> Attention:
    return Attention(c.n_heads, c.n_heads, c.d_model // c.n_heads, mask, name=name)


class EncoderBlock(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, i, span, cache, rng):
        c = self.config
        x = x + attention(c, Full(), "attention")(Norm(name="norm_1")(x), span)[0]
        return x + MLP(4 * c.d_model, name="mlp")(Norm(name="norm_2")(x)), (cache, {})


class DecoderBlock(nn.Module):
    """cache: of the target so far, and the Memory of the source; or None in training."""

    config: Config

    @nn.compact
    def __call__(self, x, i, shared, cache, rng):
        c, (span, memory, real) = self.config, shared
        own, read = cache or (None, memory)
        a, own = attention(c, Causal(), "attention")(Norm(name="norm_1")(x), span, own)
        x = x + a
        h = Norm(name="norm_2")(x)
        b, read = attention(c, Full(), "cross")(h, Span(None), memory=read, memory_segments=real)
        x = x + b
        x = x + MLP(4 * c.d_model, name="mlp")(Norm(name="norm_3")(x))
        return x, ((own, read) if cache else None, {})


class Model(nn.Module):
    config: Config

    def setup(self):
        c = self.config
        self.embed = Embed(c.vocab_size, c.d_model)
        self.position = Embed(c.max_len, c.d_model, axis="position")
        self.encoder = Stack((EncoderBlock,), c, c.n_layers, c.scan)
        self.decoder = Stack((DecoderBlock,), c, c.n_layers, c.scan)
        self.norm = Norm()

    def __call__(self, source_BS, target_BT):
        """Logits float32 [B, T, V] of the token after each token of target."""
        return self.decode(target_BT, *self.encode(source_BS))[0]

    def encode(self, source_BS):
        """(memory [B, S, D], segments int [B, S] with 0 = padding)."""
        real = (source_BS != self.config.pad_id).astype(jnp.int32)
        x = self.embed(source_BS) + self.position(jnp.arange(source_BS.shape[1]))
        return self.encoder(x, Span(None, real))[0], real

    def decode(self, target_BT, memory, real, cache=None):
        first = cache[0][0].next[:, None] if cache else 0
        positions = jnp.broadcast_to(first + jnp.arange(target_BT.shape[1]), target_BT.shape)
        x = self.embed(target_BT) + self.position(positions)
        x, cache, _ = self.decoder(x, (Span(positions), memory, real), cache)
        return self.embed.output(self.norm(x)).product(), cache


@functools.cache
def decoder(c: Config) -> Decoder:
    c = dataclasses.replace(c, scan=False)
    model = Model(c)

    def context(ids):
        source = np.full((len(ids), min(rung(max(map(len, ids))), c.max_len)), c.pad_id, np.int32)
        for row, x in zip(source, ids):
            row[: len(x)] = x[: len(row)]
        return {"source": source}, np.full(len(ids), c.start_id, np.int32)

    def begin(variables, context, slots):
        source = context["source"]
        memory, real = model.apply(variables, source, method="encode")
        empty = Cache.empty(len(source), slots, c.n_heads, c.d_model // c.n_heads, "float32")
        cache = [(empty, memory)] * c.n_layers
        # A discarded token, which computes the keys of the memory once for all steps.
        start = jnp.full((len(source), 1), c.start_id, jnp.int32)
        _, cache = model.apply(variables, start, memory, real, cache, method="decode")
        return [(own._replace(next=0 * own.next), read) for own, read in cache]

    def step(variables, state, tokens_B):
        logits, state = model.apply(
            variables, tokens_B[:, None], None, None, state, method="decode"
        )
        return logits[:, 0], state

    return Decoder(context, begin, step, c.max_len, continues=False)


class Translate:
    """config.task: each token of the target from the tokens before it."""

    @staticmethod
    def build(config, options):
        family, c, d = modules.of(config, "model"), modules.options(config, "model"), config.data
        model = family.Model(c)
        init, axes = tasks.init_and_axes(family.Model, c, *[jnp.zeros((1, 2), jnp.int32)] * 2)

        def loss(params, extras, frozen, batch, rng, train):
            target = batch["target"]
            inputs = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=c.start_id)
            logits = model.apply({"params": params}, batch["source"], inputs)
            given = logits, target, batch["weights"]
            metrics = {"accuracy": losses.accuracy(*given)}
            return losses.cross_entropy(*given), (metrics, extras)

        return tasks.Task(
            init=init,
            axes=axes,
            loss=loss,
            load_data=lambda log, tokenizer=None, splits=None: modules.of(config, "data")(
                d.path, d.source_len, d.target_len
            ),
            batch_shapes=lambda n, step: tasks.array_shapes(
                {"source": (n, d.source_len), "target": (n, d.target_len)},
                {"weights": (n, d.target_len)},
            ),
            model=model,
            model_config=c,
            unit="tokens",
            units_per_example=d.source_len + d.target_len,
            attention_lengths={
                "data.source_len": d.source_len,
                "data.target_len": d.target_len,
            },
        )
