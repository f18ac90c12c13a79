"""Word vectors in text files, as word2vec and GloVe write them, and their uses.

Both have one line per word: the word and its d numbers, separated by spaces. word2vec's begins with
a line "n d" (https://arxiv.org/abs/1301.3781); GloVe's does not
(https://aclanthology.org/D14-1162).
"""

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import functools
import math
import os

import numpy as np

from bigjax.data.text_files import open_utf8
from bigjax.data.tokenizers.wordpiece import WordPiece
from bigjax.data.utf8 import decode
from bigjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class WordVectors:
    """`words`, n different ones, and `table` float32 [n, d], their vectors.

    Attributes: `row`, the row of each word; `unit` float32 [n, d], the vectors at length
    1 (zeros stay zeros).
    """

    words: list[str]
    table: np.ndarray

    @functools.cached_property
    def row(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @functools.cached_property
    def unit(self) -> np.ndarray:
        norms = np.linalg.norm(self.table, axis=1, keepdims=True)
        return self.table / np.where(norms > 0, norms, 1)


def numbered_lines(path: str | os.PathLike, what: str) -> Iterator[tuple[str, str]]:
    """("FILE:LINE", line without its end) of a file, local or gs://.

    Raises UserError, saying that it has to be `what`, if it cannot be read or is not UTF-8.
    """
    with open_utf8(path, what) as f:
        for i, raw in enumerate(f, 1):  # of bytes: U+2028 does not end a line
            line = decode(raw, path, f"It has to be {what}, in UTF-8.", i)
            yield f"{path}:{i}", line.removeprefix("\ufeff" if i == 1 else "").rstrip("\r\n")


def read(path: str | os.PathLike) -> WordVectors:
    """The vectors of a text file. A first line of two whole numbers is word2vec's header.

    A word may have spaces in it (some of GloVe's do), where what follows them is no number.
    Raises UserError, with file and line, for a line with more or fewer numbers than the first,
    for a number that is not finite, for a repeated word, and for a header with another count.
    """
    header, d = None, 0
    words: dict[str, str] = {}  # and its line
    rows = []
    for where, line in numbered_lines(path, "a file of word vectors in text"):
        fields = line.rstrip(" ").split(" ")
        if header is None and not rows and len(fields) == 2 and all(map(str.isdecimal, fields)):
            header, d = (where, int(fields[0])), int(fields[1])
            continue
        d = d or len(fields) - 1
        word, row = _parse(fields, d, where)
        if word in words:
            raise UserError(
                f"{where}: the word {word!r} has a vector in {words[word]} already. "
                "Take one of them out."
            )
        words[word] = where
        rows.append(row)
    if header and header[1] != len(rows):
        raise UserError(
            f"{header[0]}: the header says {header[1]:,} words, and there are "
            f"{len(rows):,}. Is the file cut off? Else correct the header."
        )
    if not rows:
        raise UserError(
            f"{path} holds no vectors. Give a file with at least one line of a word "
            "and its numbers."
        )
    return WordVectors(list(words), np.stack(rows))


def write(path: str | os.PathLike, vectors: WordVectors, header: bool = True) -> None:
    """Writes a file, local or gs://, that `read` gives back exactly; without `header` it is
    GloVe's kind. Raises UserError for a word that is empty, has white space or is repeated, for
    a number that is not finite in float32, and for a path that cannot be written."""
    from etils import epath

    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(vectors.table, np.float32)).all(1)
    if not finite.all():
        word = vectors.words[int(finite.argmin())]
        raise UserError(
            f"cannot write {path}: the vector of {word!r}, as those of {int((~finite).sum()):,} of "
            f"{len(finite):,} words, has numbers that are not finite. Train the vectors again, or "
            "leave these words out."
        )
    if len(vectors.row) < len(vectors.words):
        word, _ = collections.Counter(vectors.words).most_common(1)[0]
        raise UserError(
            f"cannot write {path}: there are two vectors of the word {word!r}. Take one of them "
            "out."
        )
    for word in vectors.words:
        if not word or any(char in word for char in " \r\n\ufeff\0"):
            raise UserError(
                f"cannot write a vector for {word!r}: a word in such a file is not "
                "empty and has no white space. Leave it out, or put _ in its place."
            )
    n, d = vectors.table.shape
    try:
        with epath.Path(path).expanduser().open("wb") as f:
            if header:
                f.write(f"{n} {d}\n".encode())
            for word, row in zip(vectors.words, vectors.table.tolist()):
                # Nine digits tell any two float32 apart.
                line = " ".join([word, *(f"{number:.9g}" for number in row)])
                f.write(f"{line}\n".encode())
    except OSError as e:
        raise UserError(
            f"cannot write {path}: {e}. Give a path in a folder that exists and that "
            "you may write to."
        ) from None


def neighbours(vectors: WordVectors, word: str, k: int) -> list[tuple[str, float]]:
    """The k nearest other words and their cosines, nearest first; none of an unknown word."""
    if word not in vectors.row:
        return []
    row = vectors.row[word]
    cosines = vectors.unit @ vectors.unit[row]
    order = np.argsort(-cosines, kind="stable")
    return [(vectors.words[i], float(cosines[i])) for i in order[order != row][:k]]


def _parse(fields: list[str], d: int, where: str) -> tuple[str, np.ndarray]:
    """The word and float32 [d] of a line."""
    extra = len(fields) - 1 - d
    if d < 1 or extra < 0 or any(map(_is_number, fields[1 : 1 + extra])) or not fields[0]:
        raise UserError(
            f"{where}: found {' '.join(fields[:4])!r}, {len(fields)} fields with a "
            f"space between; there have to be a word and {max(d, 1)} numbers, as in "
            "the lines before. Correct the line, or take it out."
        )
    numbers = fields[1 + extra :]
    try:
        row = np.array(numbers, np.float32)
    except ValueError:
        row = np.array([np.nan])
    if not np.isfinite(row).all():
        wrong = next((number for number in numbers if not _is_number(number)), "a number over 3e38")
        raise UserError(
            f"{where}: {wrong!r} is not a finite number. Correct the line, or take it out."
        )
    return " ".join(fields[: 1 + extra]), row


def _is_number(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def piece_names(tokenizer: WordPiece) -> list[str]:
    """Each id's piece, with the ## of those that continue a word; special ones are ''."""
    marks = np.where(tokenizer.is_continuation, "##", "")
    return [
        f"{mark}{piece.decode()}" if piece else "" for mark, piece in zip(marks, tokenizer.pieces)
    ]


def pieces_of(texts: Sequence[str], tokenizer: WordPiece) -> list[list[str]]:
    """The texts as lists of piece names, for word vectors; without [UNK]."""
    names = piece_names(tokenizer)
    return [[names[i] for i in ids.tolist() if names[i]] for ids in tokenizer.encode_batch(texts)]
