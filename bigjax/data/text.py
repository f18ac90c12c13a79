"""From the config section `data` to a tokenizer and a token store for each source."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import hashlib
import json
import time
from typing import Any

from bigjax.bounds import SHARE, at_least
from bigjax.data import sources, tokenizers, unknown
from bigjax.data.batches import SplitData
from bigjax.data.files import LOCAL_CACHE
from bigjax.data.loader import TextBatches
from bigjax.data.sources import Section, Source
from bigjax.data.store import SPLITS, Store, Stream, build_store, check_fractions, split_of
from bigjax.errors import UserError

_SCAN_CHARS = 64_000_000  # how much of a source the tokenizer's training text is taken from
_TRAIN_CHARS = 4_000_000  # how much of that it is trained on: more changes little, and is slower
_CHUNK_CHARS = 20_000


@dataclasses.dataclass(frozen=True)
class Config:
    """The section `data` if its name is 'text': documents, as one stream of tokens per source."""

    sources: dict[str, Section] = dataclasses.field(
        default_factory=lambda: {"docstrings": Section("docstrings")}
    )
    tokenizer: tokenizers.Section = tokenizers.Section()
    seq_len: int = 256  # tokens per example
    packing: bool = True  # attention stays within a document
    valid_fraction: float = 0.01  # of the documents, chosen by a hash of their content
    test_fraction: float = 0.01
    on_bad_utf8: str = "replace"  # replace (and count; up to 1% of a file or source) or refuse
    cache_dir: str = LOCAL_CACHE  # token stores and trained tokenizers

    RANGES = {"seq_len": at_least(1), "valid_fraction": SHARE, "test_fraction": SHARE}
    MAY_CHANGE = ("cache_dir",)


def for_model(model: dict[str, Any]) -> dict[str, Any]:
    """Fields of config.data that `bigjax import` writes for a model of these fields."""
    return {"seq_len": min(model["max_len"], 512)} if "max_len" in model else {}


class Corpus(SplitData):
    """Tokenized text: `stores` by source name, `weights`, and as all SplitData.

    `fingerprint` changes with the ids of any split, the boundaries of documents and the tokenizer,
    and with nothing else: compare losses only between runs where it is equal.
    """

    tokenizer: tokenizers.Tokenizer

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        stores: dict[str, Store],
        weights: dict[str, float],
        seq_len: int,
        make_batches: Callable[..., Any],
    ) -> None:
        """make_batches(streams, tokenizer, seq_len, **options): such as TextBatches."""
        hashes = [tokenizer.fingerprint, *(store.hashes for store in stores.values())]
        super().__init__(SPLITS, _hash(hashes), tokenizer)
        self.stores, self.weights = stores, weights
        self._seq_len, self._make_batches = seq_len, make_batches

    def batches(self, name: str, **options: Any) -> Any:
        streams = {source: store.split(name) for source, store in self.stores.items()}
        return self._make_batches(
            streams, self.tokenizer, self._seq_len, name=name, weights=self.weights, **options
        )

    def summary(self) -> str:
        """Documents, tokens and bytes of each source and split, one line each."""
        lines, n_text = [], functools.partial(_n_text, self.tokenizer)
        for name, store in self.stores.items():
            for split in SPLITS:
                stream = store.split(split)
                lines.append(
                    f"data: {name} {split:5s} {stream.n_documents:10,} documents "
                    f"{stream.n_tokens:13,} tokens {stream.n_bytes / 1e6:10.2f} MB"
                    + unknown.share(self.tokenizer, stream.n_unknown, n_text(stream))
                )
            if bad := store.stats["bad_utf8"]:
                lines.append(
                    f"data: warning: {name}: {bad:,} byte sequences were not UTF-8 and became "
                    f"U+FFFD, {bad / max(store.stats['bytes'], 1):.3%} of its bytes "
                    '(data.on_bad_utf8="refuse" names the first)'
                )
        return "\n".join(lines)


def load_text(
    data: Any,
    log: Callable[[str], None] = print,
    tokenizer: tokenizers.Tokenizer | None = None,
    make_batches: Callable[..., Any] | None = None,
    python_path: str = "",
) -> Corpus:
    """Reads, splits and tokenizes `data.sources` once; later calls open the cached result.

    Args:
      data: the config section `data`.
      log: gets a few lines for people.
      tokenizer: used instead of the config's (a trained model has its own).
      make_batches: makes a split's batches from its streams, as TextBatches, the default, does.
      python_path: of the config, for sources and tokenizers of one's own.

    Raises UserError for anything wrong with the config, the sources, or the cache folder.
    """
    start = time.monotonic()
    entries, content = _entries(data, python_path)
    tokenizer = tokenizer or build_tokenizer(data, log, python_path)
    stores: dict[str, Store] = {}
    notes: list[str] = []
    for name, entry in entries.items():

        def documents(counts: dict[str, int], source: Source = entry) -> Iterator[str]:
            return sources.documents(source, data.on_bad_utf8, data.cache_dir, counts, notes.append)

        stores[name] = build_store(
            documents,
            content[name],
            tokenizer,
            data.valid_fraction,
            data.test_fraction,
            data.cache_dir,
            name,
            log,
        )
        splits = [stores[name].split(split) for split in SPLITS]
        notes += unknown.warning(
            tokenizer,
            sum(stream.n_unknown for stream in splits),
            sum(_n_text(tokenizer, stream) for stream in splits),
            f"source {name!r}",
            documents({}),
        )
    corpus = Corpus(
        tokenizer,
        stores,
        {name: entry.weight for name, entry in entries.items()},
        data.seq_len,
        make_batches or functools.partial(TextBatches, packing=data.packing),
    )
    log(corpus.summary())
    for note in dict.fromkeys(notes):
        log(note)
    n_bad, n_bytes = (sum(s.stats[k] for s in stores.values()) for k in ("bad_utf8", "bytes"))
    log(
        f"data: {n_bad / max(n_bytes, 1):.3%} of the bytes replaced; "
        f"tokenizer {tokenizer.kind} of {tokenizer.vocab_size:,} ids; fingerprint "
        f"{corpus.fingerprint}; cached in {data.cache_dir}; "
        f"{time.monotonic() - start:.1f} s"
    )
    return corpus


def build_tokenizer(
    data: Any, log: Callable[[str], None] = print, python_path: str = ""
) -> tokenizers.Tokenizer:
    """The tokenizer of the config section `data`: loaded, or trained on its sources and cached.

    python_path: as of `load_text`.
    """
    entries, content = _entries(data, python_path)
    trained_on = _hash(
        [list(content.values()), data.valid_fraction, data.test_fraction, _SCAN_CHARS, _TRAIN_CHARS]
    )
    sample = lambda: _sample(data, entries)
    return tokenizers.build(data.tokenizer, data.cache_dir, sample, trained_on, log, python_path)


def _entries(data: Any, python_path: str) -> tuple[dict[str, Source], dict[str, str]]:
    """The sources by name, and a fingerprint of the content of each."""
    # Sorted: a config that went through JSON gives the same mixture.
    entries = {
        name: sources.from_config(name, data.sources[name], python_path)
        for name in sorted(data.sources)
    }
    if not entries:
        raise UserError(
            "data.sources is empty. Name at least one source, for example "
            'data.sources.docs = {"kind": "docstrings"}.'
        )
    check_fractions(data.valid_fraction, data.test_fraction)
    return entries, {
        name: f"{sources.fingerprint(entry, data.cache_dir)} {data.on_bad_utf8}"
        for name, entry in entries.items()
    }


def _sample(data: Any, entries: dict[str, Source]) -> Iterator[str]:
    """Text of the train split to train a tokenizer on: about the same amount of each source."""
    for source in entries.values():
        chunks: list[str] = []
        n_chars = 0
        for text in sources.documents(source, data.on_bad_utf8, data.cache_dir):
            if split_of(text, data.valid_fraction, data.test_fraction) == "train":
                chunks += (text[i : i + _CHUNK_CHARS] for i in range(0, len(text), _CHUNK_CHARS))
                n_chars += len(text)
            if n_chars >= _SCAN_CHARS:
                break
        # Evenly spaced rather than the beginning: sources are often sorted by subject.
        every = max(1, round(n_chars * len(entries) / _TRAIN_CHARS))
        yield from chunks[::every]


def _n_text(tokenizer: tokenizers.Tokenizer, stream: Stream) -> int:
    """The stream's tokens without leading ids and eos."""
    return stream.n_tokens - (len(tokenizer.leading_ids) + 1) * stream.n_documents


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
