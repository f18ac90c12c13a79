"""Batches of recordings and their transcripts."""

from collections.abc import Sequence
import concurrent.futures
import os
from typing import Any, overload

import numpy as np

from bigjax.data.audio.augment import Augment
from bigjax.data.audio.splits import Recordings, max_samples
from bigjax.data.batches import ExampleBatches, Rows


class AudioBatches(ExampleBatches):
    """The recordings of a split as batches; in training with the random changes of data.augment,
    which are a function of (seed, epoch, recording).

    Batches, with B recordings, N = data.max_seconds * data.sample_rate and T = data.seq_len:
    - audio int16 [B, N], padded with 0; audio_len int32 [B], its samples;
    - targets int32 [B, T]: the prefix, the text, eos, and pad_id;
    - weights float32 [B, T]: 1 on the targets but pad_id; 0 in rows of padding and in those of
      recordings that cannot be read, whose audio is 0. `examples` knows why;
    - example int32 [B], its index in the split, -1 for padding.
    """

    def __init__(
        self,
        recordings: Recordings,
        data: Any,
        pad_id: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        name: str = "train",
        augment: bool | None = None,
    ) -> None:
        """augment: by default as shuffle. Raises UserError as ExampleBatches."""
        super().__init__(
            len(recordings),
            batch_size,
            seed,
            shuffle,
            name,
            fill={"example": -1, "targets": pad_id},
            unit="recordings",
        )
        self.examples = recordings.unreadable
        self._recordings, self._pad_id = recordings, pad_id
        self._rate, self._max_samples = data.sample_rate, max_samples(data)
        self._seq_len = data.seq_len
        self._augment = Augment(**data.augment)
        self._changed = shuffle if augment is None else augment
        threads = data.threads or os.cpu_count()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "bigjax-audio")

    def assemble(self, rows: Rows) -> dict[str, np.ndarray]:
        first = rows.step * self.batch_size + rows.first
        epochs = np.arange(first, first + len(rows.index)) // self.n_rows
        read = [*self._pool.map(self._read, rows.index.tolist(), epochs.tolist())]
        n = len(read)
        audio, audio_len = np.zeros((n, self._max_samples), np.int16), np.zeros(n, np.int32)
        targets = np.full((n, self._seq_len), self._pad_id, np.int32)
        weights = np.zeros((n, self._seq_len), np.float32)
        for row, (i, samples) in enumerate(zip(rows.index.tolist(), read)):
            tokens = self._recordings.tokens_of(i)
            targets[row, : len(tokens)] = tokens
            if samples is not None:
                audio[row, : len(samples)] = samples
                audio_len[row] = len(samples)
                weights[row, : len(tokens)] = 1
        return {
            "audio": audio,
            "audio_len": audio_len,
            "targets": targets,
            "weights": weights,
            "example": rows.index.astype(np.int32),
        }

    def _read(self, i: int, epoch: int) -> np.ndarray | None:
        rng = np.random.default_rng([self.seed, epoch, i]) if self._changed else None
        return self._recordings.read(i, rng, self._change)

    def _change(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._augment(samples, rng, self._rate, self._max_samples)


class Inputs(Sequence[np.ndarray]):
    """The recordings of a split as evaluation reads them, int16 [n] each, read when they are asked
    for; [0] if one cannot be read: `unreadable` knows why."""

    def __init__(self, recordings: Recordings) -> None:
        self._recordings, self.unreadable = recordings, recordings.unreadable

    def __len__(self) -> int:
        return len(self._recordings)

    @overload
    def __getitem__(self, i: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, i: slice) -> list[np.ndarray]: ...

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        samples = self._recordings.read(range(len(self))[i])
        return np.zeros(0, np.int16) if samples is None else samples
