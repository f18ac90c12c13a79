"""Recordings that are files with a text each, local or on gs:// or s3://."""

from collections.abc import Sequence
import hashlib
import io
import os
from typing import Any

import numpy as np

from bigjax.data.audio.decode import BadAudio, check, decode
from bigjax.data.file_list import in_threads
from bigjax.data.files import cache_folder, write_cached

# What soundfile reads, and what somebody may expect it to read: those are named, not left out.
EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf")
EXTENSIONS += (".w64", ".rf64", ".sph", ".m4a", ".aac", ".mp4", ".wma", ".amr", ".webm", ".wv")
UNIT = "recordings"
_MANY = 20_000  # recordings, from which on reading their headers is reported


class Files:
    """paths: of the recordings, in `folder` or elsewhere. sizes: in bytes; the fingerprint is of
    them and of the names in the folder, which may move. rows: as of a Source. reading: a Reading.
    """

    def __init__(
        self,
        kind: str,
        folder: str,
        paths: Sequence[str],
        sizes: Sequence[int],
        rows: Sequence[dict[str, Any]],
        reading: Any,
    ) -> None:
        self.rows, self._paths, self._reading = rows, list(paths), reading
        self._lengths: np.ndarray | None = None
        self._sizes = list(sizes)
        names = [path.removeprefix(f"{folder.rstrip('/')}/") if folder else path for path in paths]
        self.fingerprint = f"{kind}-{_digest(names, self._sizes)}"

    def read(self, i: int, rng: np.random.Generator | None) -> np.ndarray:
        del rng
        return decode(self._paths[i], self._reading.sample_rate, self._reading.max_samples)

    def check(self, i: int) -> None:
        check(self._paths[i], self._reading.sample_rate, self._reading.max_samples)

    def seconds(self) -> np.ndarray | None:
        """By their headers; kept in the cache. None for files that are not local."""
        if any("://" in path for path in self._paths):
            return None
        if self._lengths is None:
            self._lengths = self._read_lengths()
        return self._lengths

    def _read_lengths(self) -> np.ndarray:
        n, cache_dir = len(self._paths), self._reading.cache_dir
        files = [*map(os.path.abspath, self._paths)]
        cached = cache_folder(cache_dir, "audio") / f"seconds-{_digest(files, self._sizes)}.npy"
        try:
            seconds = np.load(cached)
            if seconds.shape == (n,):
                return seconds
        except (OSError, ValueError, EOFError):  # absent or damaged
            pass
        if n > _MANY:
            self._reading.log(f"data: reading the headers of {n:,} recordings")
        seconds = np.array(in_threads(self._seconds, n, self._reading.threads), np.float64)
        buffer = io.BytesIO()
        np.save(buffer, seconds)
        write_cached(cached, buffer.getvalue())
        return seconds

    def _seconds(self, i: int) -> float:
        try:
            return check(self._paths[i], self._reading.sample_rate, np.inf)
        except BadAudio:
            return np.nan


def _digest(*content: list) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
