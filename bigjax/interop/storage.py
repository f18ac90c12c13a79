"""Safetensors files byte for byte, one tensor at a time in memory.

A file is the length of a header, the header in JSON, and the tensors' bytes without gaps:
https://github.com/huggingface/safetensors. The header determines the layout, so the same header
with the same tensors gives the same file, whichever program wrote it.
"""

from collections.abc import Callable, Iterable
import json
from typing import NamedTuple

import numpy as np

# The library's order of dtypes in a file, the last first; tensors of a dtype are sorted by name.
_ORDER = (
    "BOOL",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "F8_E8M0",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "C64",
    "F64",
    "I64",
    "U64",
)


class Part(NamedTuple):
    """A tensor in a file: the code of its dtype, its shape, and the range of its bytes."""

    code: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path) -> str:
    """The header's text. Raises ValueError if it is invalid, OSError if it cannot be read."""
    with path.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        if size > f.seek(0, 2) - 8:
            raise ValueError(f"its header of {size} bytes ends after the file")
        f.seek(8)
        return f.read(size).decode("utf-8")


def parts(header: str) -> dict[str, Part]:
    """{tensor: its Part}. Raises ValueError if the header is invalid."""
    try:
        return {
            name: Part(x["dtype"], tuple(x["shape"]), *x["data_offsets"])
            for name, x in json.loads(header).items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"its header does not describe tensors: {e!r}") from None


def metadata(header: str) -> dict[str, str]:
    return json.loads(header).get("__metadata__") or {}


def read(path, header: str, part: Part) -> np.ndarray:
    """A tensor's bytes, as uint8. Raises ValueError if the file is too short."""
    out = np.empty(part.end - part.start, np.uint8)
    with path.open("rb") as f:
        f.seek(8 + len(header.encode("utf-8")) + part.start)
        if f.readinto(memoryview(out)) != out.size:
            raise ValueError("the file ends before its last tensor")
    return out


def new_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]
) -> str:
    """A header as the library writes it. tensors: (name, code of the dtype, shape, bytes)."""
    out, start = {"__metadata__": metadata} if metadata else {}, 0
    rank = {code: i for i, code in enumerate(_ORDER)}
    for name, code, shape, size in sorted(tensors, key=lambda t: (-rank.get(t[1], -1), t[0])):
        out[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(out, ensure_ascii=False, separators=(",", ":"))
    return text + " " * (-len(text.encode("utf-8")) % 8)


def write(path, header: str, load: Callable[[str], np.ndarray]) -> None:
    """Writes the file of this header; load(name) returns a tensor's bytes, as uint8."""
    text = header.encode("utf-8")
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, part in sorted(parts(header).items(), key=lambda x: x[1].start):
            data = load(name)
            if data.size != part.end - part.start:
                raise ValueError(
                    f"{name} has {data.size} bytes, its header says {part.end - part.start}"
                )
            f.write(memoryview(data))


def as_bytes(x: np.ndarray) -> np.ndarray:
    """The bytes of an array, as uint8."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)
