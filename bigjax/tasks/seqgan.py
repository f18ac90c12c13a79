"""SeqGAN's synthetic experiment: learn from what an oracle LSTM wrote, and let it judge.

The oracle is another LSTM, drawn at random or read from a file (`config.oracle`). Its sequences are
the data; how likely it finds the generator's is a measure that real text does not have.
https://arxiv.org/abs/1609.05473, section 4.
"""

import dataclasses
import hashlib
import io
import os
import zipfile
import zlib

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from bigjax import models
from bigjax.data.files import cache_folder, write_atomically
from bigjax.data.sequences import InRounds, Rows
from bigjax.errors import UserError
from bigjax.tasks import Task, family_for
from bigjax.tasks._adversarial import (
    Options,
    Players,
    adversarial_task,
    check_training,
    half_squares,
    write,
)

SPLITS = ("train", "valid", "test")
AT_ONCE = 1000  # sequences


@dataclasses.dataclass(frozen=True)
class Config(Options):
    pass


def build(config, options: Config) -> Task:
    """Batches: tokens int, weights [B, T]; in training several at once, see data.sequences."""
    check_training(config)
    family, c = family_for(
        config,
        "a generator and a discriminator (model.name='seqgan')",
        lambda family: hasattr(family, "Discriminator"),
    )
    for key, least in (("seed", 0), ("d_model", 1), ("sequences", 1)):
        if config.oracle[key] < least:
            raise UserError(f"oracle.{key} is {config.oracle[key]}; it must be at least {least}.")
    T = config.data.seq_len
    tokens, mask = jnp.zeros((1, T), jnp.int32), jnp.ones((1, T), bool)

    return adversarial_task(
        c,
        make_players(family, c, options, T),
        {"generator": family.Generator(c), "discriminator": family.Discriminator(c)},
        {"generator": (tokens,), "discriminator": (tokens, mask)},
        {},
        lambda log=print, tokenizer=None, splits=None: OracleText(config, options, log),
    )


def make_players(family, c, options: Options, length: int) -> Players:
    """The networks of a config without conditions: sequences of `length` tokens from token 0."""
    generator, discriminator = family.Generator(c), family.Discriminator(c)
    return Players(
        options,
        length,
        start_id=0,
        end_id=-1,
        pad_id=0,
        context=lambda params, given, rng: (),
        begin=lambda batch: family.begin(c, batch),
        step=lambda params, context, state, tokens: generator.apply(
            {"params": params}, tokens, state, method="step"
        ),
        logits=lambda params, context, inputs, rng: generator.apply(
            {"params": params}, inputs, rng
        ),
        loss=lambda params, context, inputs, targets, weights, rng: generator.apply(
            {"params": params}, inputs, targets, weights, rng, method="loss"
        ),
        score=lambda params, given, tokens, mask, rng: discriminator.apply(
            {"params": params}, tokens, mask, rng
        ),
        penalty=lambda params: half_squares(family.last_layer(params)),
    )


class OracleText:
    """The oracle, and the sequences it wrote: made once, kept in data.cache_dir.

    Attributes: fingerprint, of all sequences; tokenizer, None; oracle, its Players, and
    oracle_params.
    """

    tokenizer = None

    def __init__(self, config, options: Options, log):
        family = models.module("seqgan")
        arrays = oracle_arrays(config)
        c, self.oracle_params = family.oracle(arrays)
        c = dataclasses.replace(c, max_len=config.data.seq_len, filter_widths=(1,), filters=(1,))
        if c.vocab_size != config.model.vocab_size:
            raise UserError(
                f"The oracle writes {c.vocab_size} words, but model.vocab_size is "
                f"{config.model.vocab_size}: set that to {c.vocab_size}."
            )
        self.oracle = make_players(family, c, options, config.data.seq_len)
        self._options = options
        self._splits = self._load(config, arrays, log)
        self.fingerprint = _hash(self._splits.values())
        for split, tokens in self._splits.items():  # a file that was changed by hand
            if tokens.min() < 0 or tokens.max() >= c.vocab_size:
                raise UserError(
                    f"The {split} sequences have word {tokens.max()}, outside the "
                    f"vocabulary of {c.vocab_size}: delete them from data.cache_dir."
                )

    def split(self, name: str, *, batch_size: int, seed: int | None = None):
        """Rows; with a seed InRounds."""
        tokens = self._splits[name]
        rows = Rows(
            {"tokens": tokens, "weights": np.ones(tokens.shape, np.float32)}, batch_size, seed
        )
        return rows if seed is None else InRounds(rows, self._options.round)

    def _load(self, config, arrays, log) -> dict[str, np.ndarray]:
        o, T = config.oracle, config.data.seq_len
        name = _hash([*map(np.asarray, arrays), np.array([o.sequences, T, o.seed])])[:16]
        path = cache_folder(config.data.cache_dir) / f"oracle-{name}.npz"
        if path.exists():
            return _read(path, f"The oracle's sequences (delete {path} to have them written anew)")
        log(
            f"data: the oracle writes {o.sequences:,} sequences of {T} tokens for each of "
            f"{', '.join(SPLITS)}, once; kept in {path}"
        )
        draw = jax.jit(lambda key: write(self.oracle, self.oracle_params, (), key, AT_ONCE))
        found = {}
        for i, split in enumerate(SPLITS):
            keys = jax.random.split(
                jax.random.fold_in(jax.random.key(o.seed), i + 1), -(-o.sequences // AT_ONCE)
            )
            found[split] = np.concatenate([np.asarray(draw(key)) for key in keys])[: o.sequences]
        content = io.BytesIO()
        np.savez_compressed(content, **found)
        write_atomically(path, content.getvalue())
        return found


def oracle_arrays(config) -> list[np.ndarray]:
    """param_0 to param_14 of config.oracle.params, or drawn from N(0, 1) by config.oracle.seed.

    Raises UserError, naming the array, for a file with other names or shapes.
    """
    V, D = config.model.vocab_size, config.oracle.d_model
    path = config.oracle.params
    if not path:
        rng = np.random.default_rng([config.oracle.seed, 14])
        return [rng.standard_normal(shape).astype(np.float32) for shape in _shapes(V, D)]
    arrays = _read(os.path.expanduser(path), f"oracle.params={path!r}")
    for name, x in arrays.items():
        if x.dtype.kind in "fiu":
            with np.errstate(over="ignore"):
                arrays[name] = x.astype(np.float32)
        if x.dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
            raise UserError(
                f"oracle.params={path!r}: {name} ({x.dtype}) has values that are not finite real "
                "numbers in float32. Write it again from an oracle without them."
            )
    names = [f"param_{i}" for i in range(15)]
    if sorted(arrays) != sorted(names):
        raise UserError(
            f"oracle.params={path!r} has the arrays {', '.join(sorted(arrays))}; it "
            "must have param_0 to param_14."
        )
    first = arrays["param_0"].shape
    if len(first) != 2:
        raise UserError(
            f"oracle.params={path!r}: param_0, the embedding, has shape {first}; it "
            "must be [words, width]."
        )
    V, D = first
    for name, shape in zip(names, _shapes(V, D)):
        if arrays[name].shape != shape:
            raise UserError(
                f"oracle.params={path!r}: {name} has shape {arrays[name].shape}; with "
                f"an embedding of {first} it must be {shape}."
            )
    return [arrays[name] for name in names]


def _shapes(V: int, D: int) -> list[tuple[int, ...]]:
    """Of param_0 to param_14: embedding; W, U and b of three gates and the candidate; output."""
    return [(V, D), *[(D, D), (D, D), (D,)] * 4, (D, V), (V,)]


def _read(path: str, what: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or a UserError."""
    try:
        with epath.Path(path).open("rb") as file, np.lib.npyio.NpzFile(file) as arrays:
            return {k: arrays[k] for k in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f"{what} cannot be read as an .npz file: {e}") from e


def _hash(arrays) -> str:
    sha = hashlib.sha256()
    for x in arrays:
        sha.update(str((x.shape, x.dtype)).encode() + np.ascontiguousarray(x).tobytes())
    return sha.hexdigest()
