"""Lengths of MP3 and OGG files by all of their frames and pages.

libsndfile reads no further than the length that it finds at the beginning of a file. That is wrong
for files that were joined byte by byte, and for MP3 without a count of frames it is an estimate
from the size of the first one.
"""

from collections.abc import Iterator
import os
import re
from typing import Any, NamedTuple

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version
_MPEG_1 = 3
_KBPS = {
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # of MPEG 1
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAME = 0xFFFE0C00  # the bits of a frame's header that are equal in all frames of a stream
_CHUNK = 1 << 16
_OGG_FIRST = 2  # the flag of a stream's first page


class _Frame(NamedTuple):
    size: int  # bytes
    samples: int


def mp3_samples(file: Any, n: int) -> int:
    """The samples of all frames of an MP3 file; or n, which libsndfile finds, if the file says how
    many frames it has and no more are there. Moves the position in the file."""
    frames, samples, counted = 0, 0, None
    for offset, frame in _frames(file):
        is_header = False
        if not frames:
            is_header, counted = _header(file, offset)
        frames, samples = frames + 1, samples + frame.samples * (not is_header)
    if not frames or counted is not None and frames - 1 <= counted + 1:  # some count the header too
        return n
    return samples


def _header(file: Any, offset: int) -> tuple[bool, int | None]:
    """(whether the frame at `offset` has no sound but facts, how many frames follow by them)."""
    file.seek(offset)
    start = file.read(56)
    if found := re.search(rb"VBRI.{10}(.{4})", start, re.S):
        return True, int.from_bytes(found[1], "big")
    if found := re.search(rb"(?:Xing|Info)...(.)(.{4})", start, re.S):
        return True, int.from_bytes(found[2], "big") if found[1][0] & 1 else None
    return False, None


def _frames(file: Any) -> Iterator[tuple[int, _Frame]]:
    """(offset, _Frame) of all frames of MP3; tags and other bytes between them are skipped."""
    size = file.seek(0, os.SEEK_END)
    at, first = 0, 0
    while at < size:
        file.seek(at)
        head = file.read(4)
        number = int.from_bytes(head, "big")
        if frame := _frame(number):
            first = first or number
            yield at, frame
            at += frame.size
        elif head[:3] == b"ID3":
            tag = (head + file.read(6))[6:10]
            at += 10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(tag))
        elif head[:3] == b"TAG":
            at += 128
        else:
            at = _next_frame(file, at + 1, first)


def _next_frame(file: Any, at: int, first: int) -> int:
    """The offset, from `at` on, of a frame of the stream of the header `first` (0: of any) that
    another one follows; the end of the file if there is none."""
    while True:
        file.seek(at)
        chunk = file.read(_CHUNK)
        if len(chunk) < 4:
            return at + len(chunk)
        for found in re.finditer(rb"\xff(?=[\xe2-\xff]..)", chunk, re.S):
            head = int.from_bytes(chunk[found.start() : found.start() + 4], "big")
            if (frame := _frame(head)) and not (first and (head ^ first) & _SAME):
                file.seek(at + found.start() + frame.size)
                following = int.from_bytes(file.read(4), "big")
                if _frame(following) and not (head ^ following) & _SAME:
                    return at + found.start()
        at += len(chunk) - 3


def _frame(head: int) -> _Frame | None:
    """Of the four bytes of a header; None for other bytes."""
    version, layer = head >> 19 & 3, head >> 17 & 3
    kbps, rate, padding = head >> 12 & 15, head >> 10 & 3, head >> 9 & 1
    if head >> 21 != 0x7FF or version == 1 or layer != 1 or kbps in (0, 15) or rate == 3:
        return None
    samples = 1152 if version == _MPEG_1 else 576
    kbps = _KBPS[version == _MPEG_1][kbps - 1]
    return _Frame(samples // 8 * kbps * 1000 // _RATES[version][rate] + padding, samples)


def is_chained(file: Any) -> bool:
    """Whether streams follow each other in an OGG file. Moves the position in the file."""
    at, begun = 0, False
    while True:
        file.seek(at)
        page = file.read(27)
        if len(page) < 27 or page[:4] != b"OggS":
            return False
        first = bool(page[5] & _OGG_FIRST)
        if first and begun:  # streams at the same time all begin before the second page of one
            return True
        begun |= not first
        at += 27 + page[26] + sum(file.read(page[26]))
