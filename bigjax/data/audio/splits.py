"""The training, validation and test recordings of a config, with their texts as tokens."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from bigjax.data import unknown
from bigjax.data.audio import sources
from bigjax.data.audio.decode import BadAudio, to_int16
from bigjax.data.audio.morse import Morse
from bigjax.data.audio.sources import Reading, Source
from bigjax.data.examples import check_lengths, joined, offsets_of
from bigjax.data.store import SPLITS, check_fractions, split_of
from bigjax.data.tokenizers.base import Tokenizer
from bigjax.data.unreadable import Report, Unreadable
from bigjax.errors import UserError


class Part:
    """The recordings `index` (int64 [n]) of a source: a split before its texts are tokens."""

    def __init__(self, source: Source, index: np.ndarray) -> None:
        self.source, self.index = source, index
        self.rows = [source.rows[i] for i in index.tolist()]

    def __len__(self) -> int:
        return len(self.index)

    def seconds(self) -> np.ndarray | None:
        """float64 [n], as of a Source."""
        seconds = self.source.seconds()
        return None if seconds is None else seconds[self.index]


@dataclasses.dataclass
class Recordings:
    """A split: its part, and the tokens of its texts: the prefix, the text and eos.

    tokens: int32 [N]. offsets: int64 [n + 1]: those of recording i are tokens[offsets[i]:offsets[i
    + 1]]. truncated: a line for people about truncated texts, or ''. n_unknown, n_text: tokens of
    text, and of them those that the tokenizer does not know. unreadable: of this split, by all who
    read it. silent: gets the recordings without a sound. seconds: of all recordings whose length
    is known before they are decoded, None if it is of none.
    """

    part: Part
    tokens: np.ndarray
    offsets: np.ndarray
    truncated: str
    n_unknown: int
    n_text: int
    unreadable: Unreadable
    silent: Report
    seconds: np.ndarray | None

    def __len__(self) -> int:
        return len(self.part)

    def tokens_of(self, i: int) -> np.ndarray:
        """int32 [n] of recording i."""
        return self.tokens[self.offsets[i] : self.offsets[i + 1]]

    def read(
        self,
        i: int,
        rng: np.random.Generator | None = None,
        change: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    ) -> np.ndarray | None:
        """Recording i as int16 [N]; None if it cannot be read, which is counted.

        rng: in training. change(samples, rng): applied to the float32 samples, with rng.
        """
        try:
            samples = self.part.source.read(int(self.part.index[i]), rng)
        except BadAudio as e:
            self.unreadable.add(i, str(e))
            return None
        if not samples.any():
            file = self.part.rows[i]["file"]
            self.silent(file, f"{file}: all of its samples are 0.")
        return to_int16(samples if change is None or rng is None else change(samples, rng))


def parts(data: Any, names: Sequence[str], log: Callable[[str], None]) -> dict[str, Part]:
    """The parts `names` of the config section `data`.

    Validation and test recordings are those of data.valid and data.test, or the folder's own, or a
    fraction of the training recordings by a hash of their texts, so that equal texts are in one
    split. Raises UserError.
    """
    check_fractions(data.valid_fraction, data.test_fraction)
    shared = data.train if sources.is_divided(data.train) else ""
    own = {part: data[part] for part in SPLITS[1:] if data[part] not in ("", shared)}
    if data.train:
        has = [part for part in SPLITS[1:] if sources.has(data.train, part)]
        own = dict.fromkeys(has, data.train) | own

    def whole(name: str, spec: str) -> Part:
        source = opened(data, name, spec, log)
        return Part(source, np.arange(len(source.rows)))

    by_name = {name: whole(name, own[name]) for name in names if name in own}
    if rest := [name for name in names if name not in own]:
        undivided = whole("train", data.train)
        fractions = [0.0 if part in own else data[f"{part}_fraction"] for part in SPLITS[1:]]
        which = np.array([split_of(row["text"], *fractions) for row in undivided.rows])
        for name in rest:
            by_name[name] = Part(undivided.source, np.flatnonzero(which == name))
    return {name: by_name[name] for name in names}


def opened(data: Any, name: str, spec: str, log: Callable[[str], None]) -> Source:
    """The source `spec` of the part `name`, undivided. Raises UserError."""
    if not spec:
        raise UserError(f"data.train is empty. Set it to {sources.EXAMPLES}.")
    reading = Reading(
        part=name,
        key=f"data.{name}" if data[name] else "data.train",
        columns=data.columns,
        sample_rate=data.sample_rate,
        max_samples=max_samples(data),
        morse=Morse(**data.morse),
        threads=data.threads,
        cache_dir=data.cache_dir,
        log=log,
    )
    return sources.opened(spec, reading)


def max_samples(data: Any) -> int:
    """N, the samples of a recording in a batch."""
    return round(data.max_seconds * data.sample_rate)


def encode(
    part: Part,
    data: Any,
    tokenizer: Tokenizer,
    prefix: Sequence[int],
    name: str,
    reports: tuple[Report, Report],
) -> Recordings:
    """The split `name` with its texts as tokens. reports: of unreadable and of silent recordings.

    Raises UserError for texts that are too long, unless data.truncate, and for too many recordings
    whose headers show that they cannot be read or are too long.
    """
    texts = tokenizer.encode_batch([row["text"] for row in part.rows])
    special = len(prefix) + 1
    lengths = np.array([len(ids) + special for ids in texts], np.int64)
    truncated = check_lengths(lengths, part.rows, data.seq_len, data.truncate)
    begin, end = np.array(prefix, np.int32), np.array([tokenizer.eos_id], np.int32)
    kept = [ids[: data.seq_len - special] for ids in texts]
    tokens = joined([piece for ids in kept for piece in (begin, ids, end)])
    n_unknown, n_text = unknown.count(tokenizer, joined(kept))
    file_of = lambda i: part.rows[i]["file"]
    unreadable = Unreadable(
        len(part), file_of, data.max_bad, name, reports[0], "recordings", "used"
    )
    unreadable.add_all(_bad_headers(part, data))
    offsets = offsets_of([len(ids) + special for ids in kept])
    return Recordings(
        part, tokens, offsets, truncated, n_unknown, n_text, unreadable, reports[1], part.seconds()
    )


def _bad_headers(part: Part, data: Any) -> dict[int, str]:
    """{recording: what is wrong with it} of those whose headers show that they cannot be used."""
    seconds, messages = part.seconds(), {}
    if seconds is None:
        return messages
    long = np.rint(seconds * data.sample_rate) > max_samples(data)
    for i in np.flatnonzero(long | np.isnan(seconds)).tolist():
        try:
            part.source.check(int(part.index[i]))
        except BadAudio as e:
            messages[i] = str(e)
    return messages
