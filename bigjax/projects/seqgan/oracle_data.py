"""An oracle LSTM, and sequences sampled from it once, kept in data.cache_dir."""

import dataclasses
import hashlib
import io
import os
import zipfile
import zlib

from etils import epath
import jax
import numpy as np

from bigjax.bounds import SEED, at_least
from bigjax.data.arrays import ArrayBatches
from bigjax.data.batches import SplitData
from bigjax.data.files import LOCAL_CACHE, cache_folder, write_cached
from bigjax.errors import UserError
from bigjax.projects.seqgan import model as family
from bigjax.projects.seqgan.gan import empty_context, sample_texts, unconditional
from bigjax.projects.seqgan.round_batches import RoundBatches
from bigjax.projects.seqgan.training_options import TrainingOptions

SPLITS = ("train", "valid", "test")
AT_ONCE = 1000  # sequences


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'seqgan.oracle_data'."""

    params: str = ""  # an .npz file with param_0 to param_14; '' = drawn from N(0, 1)
    seed: int = 0  # of drawn parameters and of the sequences; not the seed of the run
    d_model: int = 32  # of a drawn oracle
    sequences: int = 10_000  # in each of train, valid and test
    seq_len: int = 20  # tokens per sequence
    cache_dir: str = LOCAL_CACHE

    RANGES = {
        "seed": SEED,
        **dict.fromkeys(("d_model", "sequences", "seq_len"), at_least(1)),
    }
    MAY_CHANGE = ("cache_dir", "params")
    PATHS = ("params",)


class OracleText(SplitData):
    """The sequences of an oracle; `oracle`, its GAN, and `oracle_params`."""

    def __init__(self, config, options: TrainingOptions, log):
        arrays = oracle_arrays(config)
        c, self.oracle_params = family.oracle(arrays)
        c = dataclasses.replace(c, max_len=config.data.seq_len, filter_widths=(1,), filters=(1,))
        if c.vocab_size != config.model.vocab_size:
            raise UserError(
                f"The oracle writes {c.vocab_size} words, but model.vocab_size is "
                f"{config.model.vocab_size}: set that to {c.vocab_size}."
            )
        self.oracle = unconditional(family, c, options, config.data.seq_len)
        self._options = options
        self._splits = self._load(config, arrays, log)
        super().__init__(self._splits, _hash(self._splits.values()))
        for split, tokens in self._splits.items():  # a file that was changed by hand
            if tokens.min() < 0 or tokens.max() >= c.vocab_size:
                raise UserError(
                    f"The {split} sequences have word {tokens.max()}, outside the "
                    f"vocabulary of {c.vocab_size}: delete them from data.cache_dir."
                )

    def batches(self, name: str, **options):
        """ArrayBatches; if shuffled in rounds."""
        tokens = self._splits[name]
        arrays = {"tokens": tokens, "weights": np.ones(tokens.shape, np.float32)}
        batches = ArrayBatches(arrays, name=name, **options)
        return RoundBatches(batches, self._options.round) if batches.shuffle else batches

    def _load(self, config, arrays, log) -> dict[str, np.ndarray]:
        o, T = config.data, config.data.seq_len
        name = _hash([*map(np.asarray, arrays), np.array([o.sequences, T, o.seed])])[:16]
        path = cache_folder(config.data.cache_dir) / f"oracle-{name}.npz"
        if path.exists():
            return _read(path, f"The oracle's sequences (delete {path} to write them again)")
        log(
            f"data: the oracle writes {o.sequences:,} sequences of {T} tokens for each of "
            f"{', '.join(SPLITS)}, once; kept in {path}"
        )
        context = empty_context(AT_ONCE)
        draw = jax.jit(lambda key: sample_texts(self.oracle, self.oracle_params, context, key))
        sequences = {}
        for i, split in enumerate(SPLITS):
            keys = jax.random.split(
                jax.random.fold_in(jax.random.key(o.seed), i + 1), -(-o.sequences // AT_ONCE)
            )
            drawn = np.concatenate([np.asarray(draw(key)) for key in keys])
            sequences[split] = drawn[: o.sequences]
        content = io.BytesIO()
        np.savez_compressed(content, **sequences)
        write_cached(path, content.getvalue())
        return sequences


def oracle_arrays(config) -> list[np.ndarray]:
    """param_0 to param_14 of config.data.params, or drawn from N(0, 1) by config.data.seed.

    Raises UserError, naming the array, for a file with other names or shapes.
    """
    V, D = config.model.vocab_size, config.data.d_model
    path = config.data.params
    if not path:
        rng = np.random.default_rng([config.data.seed, 14])
        return [rng.standard_normal(shape).astype(np.float32) for shape in _shapes(V, D)]
    arrays = _read(os.path.expanduser(path), f"data.params={path!r}")
    for name, x in arrays.items():
        if x.dtype.kind in "fiu":
            with np.errstate(over="ignore"):
                arrays[name] = x.astype(np.float32)
        if x.dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
            raise UserError(
                f"data.params={path!r}: {name} ({x.dtype}) has values that are not finite real "
                "numbers in float32. Write it again from an oracle without them."
            )
    names = [f"param_{i}" for i in range(15)]
    if sorted(arrays) != sorted(names):
        raise UserError(
            f"data.params={path!r} has the arrays {', '.join(sorted(arrays))}; it "
            "must have param_0 to param_14."
        )
    first = arrays["param_0"].shape
    if len(first) != 2:
        raise UserError(
            f"data.params={path!r}: param_0, the embedding, has shape {first}; it "
            "must be [words, width]."
        )
    V, D = first
    for name, shape in zip(names, _shapes(V, D)):
        if arrays[name].shape != shape:
            raise UserError(
                f"data.params={path!r}: {name} has shape {arrays[name].shape}; with "
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
