"""Data whose examples are rows of files: what labelled data and those of projects share."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
import hashlib
import json
from typing import Any

import numpy as np

from bigjax.data import tokenizers, unknown
from bigjax.data.batches import SplitData, empty_split
from bigjax.data.store import SPLITS
from bigjax.data.values import missing_warning
from bigjax.errors import UserError

_TRAIN_CHARS = 4_000_000  # how much text a tokenizer is trained on: more changes little


class RowData(SplitData):
    """The rows of each split that was loaded, and their examples, in batches.

    `fingerprint` changes with the examples of each split, which splits were loaded, and the
    settings: compare results only between runs where it is equal. A subclass defines `batches`.
    """

    tokenizer: tokenizers.Tokenizer

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        rows: Mapping[str, Sequence[dict[str, Any]]],
        examples: Mapping[str, Any],
        settings: Sequence[Any],
        arrays_of: Callable[[Any], Iterable[np.ndarray]],
    ) -> None:
        """rows, examples: by split. settings, arrays_of(examples): what the fingerprint is of."""
        digest = hashlib.sha256(json.dumps(list(settings)).encode())
        for name, part in examples.items():
            digest.update(f"{name} {len(part)}".encode())
            for array in arrays_of(part):
                digest.update(np.ascontiguousarray(array).tobytes())
        super().__init__(examples, digest.hexdigest()[:16], tokenizer)
        self.examples, self._rows = dict(examples), dict(rows)

    def check_split(self, name: str) -> None:
        if not self.rows(name):
            raise empty_split(name, "row", own=f", set data.{name} to data of its own")

    def rows(self, name: str) -> Sequence[dict[str, Any]]:
        """The rows of a split; the index of a row in examples counts in them."""
        super().check_split(name)
        return self._rows[name]


def check_names(names: Collection[str]) -> list[str]:
    """The names of splits in their usual order; raises UserError for one that does not exist."""
    if others := set(names) - set(SPLITS):
        raise UserError(f"there is no split {min(others)!r}; allowed: {', '.join(SPLITS)}.")
    return [name for name in SPLITS if name in names]


def build_tokenizer(
    data: Any, texts: Iterable[str], what: str, log: Callable[[str], None], python_path: str = ""
) -> tokenizers.Tokenizer:
    """The tokenizer of the config section `data`: loaded, or trained on evenly spaced `texts` and
    cached. what: the texts, in a word. python_path: of the config, for a tokenizer of one's own."""
    unique = list(dict.fromkeys(texts))
    sample = unique[:: max(1, round(sum(map(len, unique)) / _TRAIN_CHARS))]
    content = hashlib.sha256("\0".join(sample).encode()).hexdigest()[:16]
    name, texts_again = f"{what} {content}", lambda: iter(sample)
    return tokenizers.build(data.tokenizer, data.cache_dir, texts_again, name, log, python_path)


def log_warnings(
    data: Any,
    loaded: RowData,
    columns: Sequence[str],
    truncated: Callable[[Any], Iterable[str]],
    texts: Callable[[Sequence[dict[str, Any]]], Iterable[str]],
    log: Callable[[str], None],
) -> None:
    """Logs values that may mean "missing", truncated texts, and unknown tokens, for each split.

    columns: those whose values are checked. truncated(examples): lines about them. texts(rows).
    """
    every = (row for name in loaded.names for row in loaded.rows(name))
    for line in missing_warning(every, columns):
        log(line)
    for name, part in loaded.examples.items():
        for line in truncated(part):
            log(f"data: {name}: {line}")
        what = f"the {name} data ({data[name] or data.train})"
        for line in unknown.warning(
            loaded.tokenizer, part.n_unknown, part.n_text, what, texts(loaded.rows(name))
        ):
            log(line)


def finish_line(loaded: RowData, seconds: float) -> str:
    """The last line of a loader's log, without its beginning."""
    tokenizer = loaded.tokenizer
    return (
        f"tokenizer {tokenizer.kind} of {tokenizer.vocab_size:,} ids; fingerprint "
        f"{loaded.fingerprint}; {seconds:.1f} s"
    )
