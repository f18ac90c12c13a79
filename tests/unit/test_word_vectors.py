"""Files of word vectors, tables made of them, and neighbours."""

import numpy as np
import pytest

from bigjax.data import word_vectors as wv
from bigjax.errors import UserError

VECTORS = wv.WordVectors(
    ["king", "queen", "北京", "mat", "zero"],
    np.array([[1, 0.1, 0], [10, 2, 0], [0, 1 / 3, -1e-30], [-1, 0, 0.2], [0, 0, 0]], np.float32),
)


@pytest.mark.parametrize("header", [True, False])
def test_what_is_written_is_read_back(tmp_path, header):
    path = tmp_path / "v.txt"
    wv.write(path, VECTORS, header)
    assert path.read_text("utf-8").startswith("5 3\nking 1 " if header else "king 1 ")
    vectors = wv.read(path)
    assert vectors.words == VECTORS.words and vectors.table.dtype == np.float32
    assert (vectors.table == VECTORS.table).all()


def test_words_with_spaces_and_trailing_spaces(tmp_path):
    path = tmp_path / "v.txt"
    path.write_bytes("a 1 2 \n. . 3 4\nat x@y.z -5 6e-1\r\n\u2028 7 8\n".encode())
    vectors = wv.read(path)
    assert vectors.words == ["a", ". .", "at x@y.z", "\u2028"]
    assert vectors.table[2].tolist() == [-5, np.float32(0.6)]


@pytest.mark.parametrize(
    "content, message",
    [
        ("a 1 2\nb 3\n", r"v.txt:2: found 'b 3', 2 fields .* 2 numbers"),
        ("a 1 2\nb 3 4 5\n", "v.txt:2: found"),
        ("a 1 2\n\nb 3 4\n", "v.txt:2: found"),
        ("alone\n", "v.txt:1: found"),
        ("a 1 2\nb 3 x\n", "v.txt:2: 'x' is not a finite number"),
        ("a nan 2\n", "v.txt:1: 'nan'"),
        ("3 2\na 1 2\nb 3 4\n", "v.txt:1: the header says 3 words, and there are 2"),
        ("1 3\na 1 2\n", "v.txt:2: found 'a 1 2', 3 fields"),
        ("a 1 2\na 3 4\n", "v.txt:2: the word 'a' has a vector in .*v.txt:1"),
        ("", "holds no vectors"),
        ("a 1 2\n\udcff 3 4\n", "v.txt:2: byte 0"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "v.txt"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        wv.read(path)


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        wv.read(tmp_path / "absent.txt")
    with pytest.raises(UserError, match="cannot write .*absent"):
        wv.write(tmp_path / "absent" / "v.txt", VECTORS)
    with pytest.raises(UserError, match="'two words'"):
        wv.write(tmp_path / "v.txt", wv.WordVectors(["two words"], np.ones((1, 2), np.float32)))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e300])
def test_what_could_not_be_read_is_not_written(tmp_path, number):
    vectors = wv.WordVectors(["a", "b", "c"], np.array([[1, 2], [3, number], [5, 6]]))
    with pytest.raises(UserError, match="v.txt: the vector of 'b', as those of 1 of 3 words"):
        wv.write(tmp_path / "v.txt", vectors)
    twice = wv.WordVectors(["a", "b", "b"], np.ones((3, 2), np.float32))
    with pytest.raises(UserError, match="two vectors of the word 'b'"):
        wv.write(tmp_path / "v.txt", twice)
    assert not (tmp_path / "v.txt").exists()


def test_neighbours_by_cosine():
    neighbours = wv.neighbours(VECTORS, "king", 2)
    assert [word for word, _ in neighbours] == ["queen", "北京"]
    a, b = VECTORS.table[:2]
    assert neighbours[0][1] == pytest.approx(
        a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6
    )
    assert len(wv.neighbours(VECTORS, "zero", 9)) == 4 and wv.neighbours(VECTORS, "?", 2) == []
