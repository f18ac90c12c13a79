"""The token store: documents tokenized once, in flat files that are memory-mapped afterwards.

A folder `cache_dir/stores/KEY` holds one source:

    00000-train.tokens   uint16 or uint32 ids of the shard's documents: bos, tokens, eos, bos, ...;
                         without bos if the tokenizer's leading_ids are ()
    00000-train.starts   uint64: the index at which each document begins
    00000.json           the shard's numbers; written last: a shard without it is incomplete
    ...
    store.json           the list of shards and totals; written last of all

A shard is the next DOCUMENTS_PER_SHARD documents of the source, of all splits, or fewer if they
are long. Every file is written under another name and renamed, and the same source gives the same
bytes, so an interrupted build resumes at its shard, and two builds of one store write the same.
"""

from collections.abc import Callable, Iterator
import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.data import shared, unknown
from bigjax.data.files import cache_folder, write_cached
from bigjax.data.progress import Progress
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.errors import UserError

SPLITS = ("train", "valid", "test")
DOCUMENTS_PER_SHARD = 32768
_CHARS_PER_SHARD = 1 << 26  # bounds the memory of a build
_BATCH_CHARS = 4_000_000  # text per call of the tokenizer: keeps its threads busy
_FORMAT = 3


def split_of(document: str, valid_fraction: float, test_fraction: float) -> str:
    """'train', 'valid' or 'test' by a hash of the text: equal documents are in one split."""
    return split_at(place_of(document.encode()), valid_fraction, test_fraction)


def place_of(content: bytes) -> float:
    """A number from 0 to 1 by a hash of the content."""
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def split_at(u: float, valid_fraction: float, test_fraction: float) -> str:
    """'train', 'valid' or 'test', of what has the place u (`place_of`)."""
    if u < valid_fraction:
        return "valid"
    return "test" if u < valid_fraction + test_fraction else "train"


def check_fractions(valid_fraction: float, test_fraction: float) -> None:
    """Raises UserError unless both are at least 0 and together at most 1."""
    if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction <= 1):
        raise UserError(
            f"data.valid_fraction={valid_fraction} and data.test_fraction={test_fraction}: each "
            "has to be at least 0, and their sum at most 1; the rest is trained on."
        )


class Stream:
    """One split of a store: the concatenated tokens of its documents, with random access.

    `n_tokens` counts bos and eos, `n_unknown` the tokens of text that the vocabulary
    lacks, `n_bytes` the UTF-8 bytes of the documents.
    """

    def __init__(self, folder: Path, shards: list[dict], split: str, dtype: str) -> None:
        self.split = split
        self.n_tokens = sum(shard["splits"][split]["tokens"] for shard in shards)
        self.n_documents = sum(shard["splits"][split]["documents"] for shard in shards)
        self.n_bytes = sum(shard["splits"][split]["bytes"] for shard in shards)
        self.n_unknown = sum(shard["splits"][split]["unknown"] for shard in shards)
        used = [
            (i, shard["splits"][split])
            for i, shard in enumerate(shards)
            if shard["splits"][split]["tokens"]
        ]
        self._offsets = np.cumsum([0] + [sizes["tokens"] for _, sizes in used])
        # Plain arrays over the maps: slicing np.memmap itself is several times slower.
        self._tokens = [
            np.asarray(_map(folder / f"{i:05d}-{split}.tokens", dtype)) for i, _ in used
        ]
        self._starts = [
            np.asarray(_map(folder / f"{i:05d}-{split}.starts", "uint64")) for i, _ in used
        ]

    def bounds(self) -> np.ndarray:
        """int64 [n_documents + 1]: where each document begins, and the end of the last."""
        starts = [
            part.astype(np.int64) + offset for part, offset in zip(self._starts, self._offsets)
        ]
        return np.concatenate([*starts, [self.n_tokens]])

    def window(self, start: int, length: int) -> np.ndarray:
        """int32 [length]: the ids from `start` on. IndexError outside the stream."""
        return self.windows(np.array([start]), length)[0][0]

    def windows(self, starts: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 [n, length] from each of `starts` [n], and bool [n, length]: whether
        it is the first token of a document. IndexError for a window that leaves the stream."""
        starts = np.asarray(starts, np.int64)
        if len(starts) and not (0 <= starts.min() and starts.max() + length <= self.n_tokens):
            raise IndexError(
                f"windows of {length} from {starts.min()} to {starts.max()} leave the "
                f"stream of {self.n_tokens} tokens"
            )
        tokens = np.empty((len(starts), length), np.int32)
        is_first = np.zeros((len(starts), length), bool)
        if not length:
            return tokens, is_first
        shards = np.searchsorted(self._offsets, starts, "right") - 1
        for row, (start, shard) in enumerate(zip(starts.tolist(), shards.tolist())):
            filled = 0
            while filled < length:
                low = start + filled - int(self._offsets[shard])
                part = self._tokens[shard][low : low + length - filled]
                tokens[row, filled : filled + len(part)] = part
                documents = self._starts[shard]
                i, j = documents.searchsorted(np.array([low, low + len(part)], np.uint64))
                is_first[row, documents[i:j].astype(np.int64) - (low - filled)] = True
                filled += len(part)
                shard += 1
        return tokens, is_first


class Store:
    """A finished store; `stats` has documents, bytes, tokens, unknown tokens and bad_utf8 of the
    source, `hashes` those of its ids and of where documents begin, by shard and split."""

    def __init__(self, folder: Path) -> None:
        meta = _read_json(folder / "store.json")
        self.folder, self.key = folder, meta["key"]
        self.stats: dict[str, int] = meta["stats"]
        self._shards, self._dtype = meta["shards"], meta["dtype"]
        self.hashes = [[s["splits"][name]["sha256"] for name in SPLITS] for s in self._shards]
        self._splits: dict[str, Stream] = {}
        _check_files(folder, self._shards, self._dtype)

    def split(self, name: str) -> Stream:
        """The stream of 'train', 'valid' or 'test'; UserError for another name."""
        if name not in SPLITS:
            raise UserError(f"there is no split {name!r}; a store has {', '.join(SPLITS)}.")
        if name not in self._splits:  # lazily: a process may map only so many files
            self._splits[name] = Stream(self.folder, self._shards, name, self._dtype)
        return self._splits[name]


def build_store(
    documents: Callable[[dict], Iterator[str]],
    content: str,
    tokenizer: Tokenizer,
    valid_fraction: float,
    test_fraction: float,
    cache_dir: str,
    name: str = "text",
    log: Callable[[str], None] = print,
) -> Store:
    """Opens the store of this content and tokenizer, after building its missing parts.

    Args:
      documents: given a dict for its counts, an iterator over the source's documents; called
        only if something is missing. It must give the same documents for the same `content`.
      content: the source's fingerprint.
      name: the source's name, for messages.
    """
    check_fractions(valid_fraction, test_fraction)
    parts = (
        _FORMAT,
        DOCUMENTS_PER_SHARD,
        content,
        tokenizer.fingerprint,
        valid_fraction,
        test_fraction,
    )
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    folder = cache_folder(cache_dir, "stores", key)
    if not (folder / "store.json").exists():
        with _only_builder(folder, log) as alone:
            if alone:
                for leftover in folder.glob("*.tmp"):  # of an interrupted build
                    leftover.unlink(missing_ok=True)
            # Another process or machine may have built it meanwhile.
            if not (folder / "store.json").exists() and not shared.fetch(folder, cache_dir, log):
                _build(documents, tokenizer, valid_fraction, test_fraction, folder, key, name, log)
    store = Store(folder)
    shared.publish(folder, cache_dir, log)
    return store


def _build(
    documents: Callable,
    tokenizer: Tokenizer,
    valid_fraction: float,
    test_fraction: float,
    folder: Path,
    key: str,
    name: str,
    log: Callable,
) -> None:
    dtype = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    counts: dict[str, int] = {}
    shards = []
    with Progress(f"tokenizing {name}", log) as progress:
        for index, texts in enumerate(_shards_of(documents(counts))):
            shard = _finished_shard(folder, index, dtype)
            if shard is None:
                splits = [split_of(text, valid_fraction, test_fraction) for text in texts]
                shard = _write_shard(folder, index, texts, splits, tokenizer, dtype)
            shards.append(shard)
            progress.add(sum(sizes["bytes"] for sizes in shard["splits"].values()))
    totals = {
        unit: sum(sizes[unit] for shard in shards for sizes in shard["splits"].values())
        for unit in ("documents", "tokens", "bytes", "unknown")
    }
    meta = {
        "key": key,
        "dtype": dtype,
        "shards": shards,
        "stats": {**totals, "bad_utf8": counts.get("bad_utf8", 0)},
    }
    write_cached(folder / "store.json", json.dumps(meta).encode())


def _shards_of(documents: Iterator[str]) -> Iterator[list[str]]:
    texts: list[str] = []
    n_chars = 0
    for text in documents:
        texts.append(text)
        n_chars += len(text)
        if len(texts) >= DOCUMENTS_PER_SHARD or n_chars >= _CHARS_PER_SHARD:
            yield texts
            texts, n_chars = [], 0
    if texts:
        yield texts


def _write_shard(
    folder: Path, index: int, texts: list[str], splits: list[str], tokenizer: Tokenizer, dtype: str
) -> dict:
    encoded = [ids for batch in _batches(texts) for ids in tokenizer.encode_batch(batch)]
    shard: dict = {"splits": {}}
    for split in SPLITS:
        mine = [i for i, where in enumerate(splits) if where == split]
        before, after = np.array(tokenizer.leading_ids, np.int32), np.array([tokenizer.eos_id])
        n_around = len(before) + len(after)
        lengths = np.array([len(encoded[i]) + n_around for i in mine], np.uint64)
        starts = np.cumsum(lengths, dtype=np.uint64) - lengths
        pieces = [part for i in mine for part in (before, encoded[i], after)]
        tokens = np.concatenate(pieces).astype(dtype) if pieces else np.zeros(0, dtype)
        shard["splits"][split] = {
            "documents": len(mine),
            "tokens": len(tokens),
            "bytes": sum(len(texts[i].encode()) for i in mine),
            "unknown": unknown.count(tokenizer, tokens)[0],
            "sha256": hashlib.sha256(tokens.tobytes() + starts.tobytes()).hexdigest(),
        }
        write_cached(folder / f"{index:05d}-{split}.tokens", tokens.tobytes())
        write_cached(folder / f"{index:05d}-{split}.starts", starts.tobytes())
    write_cached(folder / f"{index:05d}.json", json.dumps(shard).encode())
    return shard


def _batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    n_chars = 0
    for text in texts:
        batch.append(text)
        n_chars += len(text)
        if n_chars >= _BATCH_CHARS:
            yield batch
            batch, n_chars = [], 0
    if batch:
        yield batch


def _finished_shard(folder: Path, index: int, dtype: str) -> dict | None:
    """The numbers of a shard that is already complete; None if it has to be written."""
    path = folder / f"{index:05d}.json"
    try:
        shard = json.loads(path.read_bytes())
        sizes = dict(_file_sizes(shard, index, dtype))
        is_complete = all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return shard if is_complete else None


def _file_sizes(shard: dict, index: int, dtype: str) -> Iterator[tuple[str, int]]:
    for split, sizes in shard["splits"].items():
        yield f"{index:05d}-{split}.tokens", sizes["tokens"] * np.dtype(dtype).itemsize
        yield f"{index:05d}-{split}.starts", sizes["documents"] * 8


def _check_files(folder: Path, shards: list[dict], dtype: str) -> None:
    for index, shard in enumerate(shards):
        for name, size in _file_sizes(shard, index, dtype):
            path = folder / name
            actual = path.stat().st_size if path.exists() else None
            if actual != size:
                has = "is missing" if actual is None else f"has {actual:,} bytes"
                raise _damaged(folder, f"{name} {has}, and should have {size:,}")


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(
        f"the token store {folder} is damaged: {what}. Delete that folder; it is "
        "built again from its source at the next start."
    )


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as e:
        raise _damaged(path.parent, f"{path.name} cannot be read ({e})") from None


def _map(path: Path, dtype: str) -> np.ndarray:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")


@contextlib.contextmanager
def _only_builder(folder: Path, log: Callable[[str], None]) -> Iterator[bool]:
    """Waits while another process of this machine builds the same store; true if none does then.

    The lock ends with its process, so an interrupted build does not block others. Without locks in
    the file system both build, which is safe but slower.
    """
    try:
        import fcntl  # noqa: F401
    except ImportError:
        yield False
        return
    with contextlib.ExitStack() as stack:
        try:
            f = stack.enter_context(open(folder / "lock", "a"))
        except OSError:  # read-only: building fails later with its own message
            f = None
        yield f is not None and _lock(f, folder, log)


def _lock(f: Any, folder: Path, log: Callable[[str], None]) -> bool:
    import fcntl

    try:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process builds the token store {folder}: waiting for it")
            fcntl.flock(f, fcntl.LOCK_EX)
        return True
    except OSError:
        return False
