"""bigjax.data.text_files and utf8: how files of text are decompressed, decoded and refused."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import zipfile

import numpy as np
import pytest

from bigjax.data import sources, text_files
from bigjax.data.augment import read_thesaurus
from bigjax.data.sources import text as text_module
from bigjax.data.tables import read_table
from bigjax.data.text_files import extension, open_utf8, read_lines, read_text
from bigjax.data.tokenizers.wordpiece import SPECIALS, read_wordpiece
from bigjax.data.word_vectors import read as read_vectors
from bigjax.errors import UserError
from bigjax.projects.seqgan.hot_words import read_hot_words
from tests.helpers import text_source

TEXT = "\n".join(f"Zeile {i}: schön, 中文 и кириллица, \U0001f600" for i in range(300)) + "\n"


def arrow(kind):
    def compress(raw):
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, kind) as f:
            f.write(raw)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": arrow("zstd"),
    "lz4": arrow("lz4"),
}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def documents(path, kind="text", **kwargs):
    return list(sources.documents(text_source(kind, path), **kwargs))


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed_files_are_read_whatever_their_name(tmp_path, kind):
    plain = documents(write(tmp_path / "plain.txt", TEXT))
    packed = COMPRESS[kind](TEXT.encode())
    for name in (f"a.txt.{kind}", "a.txt", "a.txt.gz"):
        assert documents(write(tmp_path / name, packed)) == plain
    two = COMPRESS[kind](TEXT[:100].encode()) + COMPRESS[kind](TEXT[100:].encode())
    assert documents(write(tmp_path / "two", two)) == plain  # as cat joins them
    for damaged in (packed[: len(packed) // 2], packed[:20]):
        with pytest.raises(UserError, match=r"cut: is|cut is a \w+ file that is cut short"):
            documents(write(tmp_path / "cut", damaged))
    with pytest.raises(UserError, match="compressed twice"):
        documents(write(tmp_path / "twice", COMPRESS[kind](packed)))


def test_a_name_may_say_compressed_where_the_file_is_not(tmp_path):
    assert read_text(write(tmp_path / "a.txt.gz", TEXT)) == TEXT


@pytest.mark.parametrize(
    "encoding, bom",
    [
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_byte_order_marks_and_line_ends(tmp_path, monkeypatch, encoding, bom, end, pack):
    monkeypatch.setattr(text_module, "_READ_BYTES", 1000)
    monkeypatch.setattr(text_files, "_BUFFER", 777)
    path = write(tmp_path / "a.txt", pack(bom + TEXT.replace("\n", end).encode(encoding)))
    plain = write(tmp_path / "plain.txt", TEXT)
    assert documents(path) == documents(plain)
    assert read_lines(path) == TEXT.splitlines()
    several = list(sources.documents(text_source("text", str(tmp_path / "*.txt"))))
    assert several == [TEXT, TEXT]


def test_characters_that_look_like_line_ends_are_none(tmp_path):
    odd = "a\u2028b\u0085c\x0bd\x0ce\x1cf\x1dg\x1eh\u2029i"
    assert documents(write(tmp_path / "a.txt", f"{odd}\n{odd}\n")) == [f"{odd}\n{odd}"]
    path = write(tmp_path / "a.jsonl", json.dumps({"text": odd}, ensure_ascii=False) + "\r\n")
    assert documents(path, "jsonl") == [odd]
    path = write(tmp_path / "a.tsv", f"text\tlabel\r\n{odd}\tx\r\n")
    assert [row["text"] for row in read_table(path, ["text", "label"])] == [odd]
    path = write(tmp_path / "a.csv", f"text,label\r\n{odd},x\r\n")
    assert [row["text"] for row in read_table(path, ["text", "label"])] == [odd]
    path = write(tmp_path / "a.conll", f"{odd}\tB\n")
    assert read_table(path, ["tokens", "tags"])[0]["tokens"] == [odd.strip(" \x0b\x0c")]
    # A form feed on a line of its own is a blank line, between other characters it is text.
    assert read_lines(write(tmp_path / "b.txt", "a\x0cb\n\x0c\nc")) == ["a\x0cb", "\x0c", "c"]


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as f:
        f.writestr("x.txt", TEXT)
    return buffer.getvalue()


def array():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(9))
    return buffer.getvalue()


BINARY = {
    "zip archive": zipped(),
    "Parquet": b"PAR1\x15\x04\x15" + bytes(99),
    "pickle": b"\x80\x04\x95\x0b" + bytes(99),
    "NumPy": array(),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "tar archive": b"x.txt".ljust(257, b"\0") + b"ustar\x0000" + bytes(300),
    "old Word": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(99),
    "binary file": b"\x01\x02\x03\0\0\0\x07abc\0\0" * 99,
    "UTF-16LE without": TEXT.replace("中文", "").encode("utf-16-le"),
    "UTF-16BE without": TEXT.replace("中文", "").encode("utf-16-be"),
    "UTF-32LE without": TEXT.encode("utf-32-le"),
    "UTF-32BE without": TEXT.encode("utf-32-be"),
}


@pytest.mark.parametrize("kind", BINARY)
def test_what_is_no_text_is_refused(tmp_path, kind):
    path = write(tmp_path / "a.tsv", BINARY[kind])
    for read in (
        lambda: documents(path),
        lambda: documents(path, "jsonl"),
        lambda: read_table(path, ["text"]),
        lambda: read_vectors(path),
        lambda: read_wordpiece(path),
        lambda: read_hot_words(path),
        lambda: read_thesaurus(path),
    ):
        with pytest.raises(UserError, match=f"a.tsv is .*{kind}"):
            read()
    with pytest.raises(UserError, match=kind):
        documents(write(tmp_path / "a.txt.gz", gzip.compress(BINARY[kind])))


def test_a_zstd_window_that_is_too_large_is_named(tmp_path):
    # A frame with a window of 2 GiB, as zstd --long=31 writes it, and one raw block.
    frame = b"\x28\xb5\x2f\xfd\x00\xa8" + (2 << 3 | 1).to_bytes(3, "little") + b"x\n"
    with pytest.raises(UserError, match=r"a.zst was compressed with zstd --long"):
        documents(write(tmp_path / "a.zst", frame))


def test_damaged_utf16_is_refused(tmp_path):
    half = codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1]
    with pytest.raises(UserError, match="begins as UTF-16 .*cut short"):
        read_text(write(tmp_path / "a.txt", half))


def test_nul_in_a_table_is_refused_with_its_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.tsv:3: byte 8 is NUL"):
        read_table(write(tmp_path / "a.tsv", b"text\na\nb\0c\n"), ["text"])


@pytest.mark.parametrize(
    "name, kind",
    [
        ("train.tsv", ".tsv"),
        ("a/b.c/TRAIN.TSV.GZ", ".tsv"),
        ("x.jsonl.zst", ".jsonl"),
        ("x.conll.xz", ".conll"),
        ("gs://b/x.json.bz2", ".json"),
        ("x.gz", ""),
        ("x", ""),
    ],
)
def test_the_kind_of_a_compressed_file_is_that_of_the_inner_name(name, kind):
    assert extension(name) == kind


@pytest.mark.parametrize("pack", [bytes, *COMPRESS.values()])
def test_tables_of_every_kind_are_decompressed(tmp_path, pack):
    import pyarrow as pa
    from pyarrow import parquet

    def rows(name, content, columns, kinds=None):
        return read_table(write(tmp_path / name, pack(content)), columns, kinds)

    (tsv,) = rows("a.tsv.gz", b"text\tlabel\r\nx y\t1\r\n", ["text", "label"])
    (csv,) = rows("a.csv.zst", b'\xef\xbb\xbftext,label\r"x y",1\r', ["text", "label"])
    (jsonl,) = rows("a.jsonl", '{"text": "x y", "label": "1"}\r\n'.encode("utf-16"), ["text"])
    assert tsv["text"] == csv["text"] == jsonl["text"] == "x y" and csv["label"] == "1"
    (conll,) = rows("a.conll.bz2", b"x A\r\ny B\r\n", ["tokens", "tags"])
    assert conll["tags"] == ["A", "B"]
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"text": ["x y"]}), sink)
    (row,) = rows("a.parquet.gz", sink.getvalue().to_pybytes(), ["text"])
    assert row["text"] == "x y"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_vocabularies_vectors_and_word_lists(tmp_path, end, bom, pack):
    def file(name, *lines):
        return write(tmp_path / name, pack((bom + end.join([*lines, ""])).encode()))

    assert read_vectors(file("v.txt", "2 2", "a\u00a0b 1 2", "c 3 4")).words == ["a\u00a0b", "c"]
    assert read_hot_words(file("h.txt", "b\t2", "a")) == {"b": 2.0, "a": 1.0}
    assert read_thesaurus(file("t.txt", "a\tb"))["a"] == ["b"]
    tokenizer = read_wordpiece(file("vocab.txt", *SPECIALS, "x", "##y"))
    assert tokenizer.pieces[-2:] == [b"x", b"y"]


def test_reading_goes_block_by_block(tmp_path):
    """A file of 32 MiB, packed to a few kilobytes, is never in memory as a whole."""
    import tracemalloc

    path = write(tmp_path / "a.txt.gz", gzip.compress((b"word " * 199 + b"\n") * 32768, 1))
    tracemalloc.start()
    with open_utf8(path) as f:
        assert sum(len(block) for block in iter(lambda: f.read(1 << 20), b"")) == 996 * 32768
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_file_that_is_not_there_names_what_was_wanted(tmp_path):
    with pytest.raises(UserError, match="cannot read .*none.txt: No such file.*a hot word"):
        read_hot_words(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot read .*Is a directory"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\xef\xbb\xbf", b"\xff\xfe", gzip.compress(b"", mtime=0)]
)
def test_empty_files_hold_no_text(tmp_path, content):
    path = write(tmp_path / "a.txt", content)
    assert read_lines(path) == []
    with pytest.raises(UserError, match="holds no text"):
        documents(path)
    with pytest.raises(UserError, match="holds no rows"):
        read_table(path, ["0"])


def test_one_line_that_ends_in_cr_and_files_put_behind_one_another(tmp_path):
    assert read_lines(write(tmp_path / "a.txt", "a\rb\r")) == ["a", "b"]
    assert read_lines(write(tmp_path / "a.txt", "a\r")) == ["a"]
    # The first block has no other end; a CRLF, also one cut by two blocks, is one end all the same.
    n = text_files._BUFFER
    for filler in (n - 4, n - 3, n - 2, n - 1):
        text = "a\r" + "b" * filler + "\r\r\nc\r\nd"
        lines = read_lines(write(tmp_path / "a.txt", text))
        assert lines == ["a", "b" * filler, "", "c", "d"]
    lines = "\ufeff" + '{"text": "x"}\n' + "\ufeff" + '{"text": "y"}\n'
    path = write(tmp_path / "a.jsonl", lines)
    assert documents(path, "jsonl") == ["x", "y"]
    assert [row["text"] for row in read_table(path, ["text"])] == ["x", "y"]


def test_an_unknown_kind_of_address_is_refused():
    with pytest.raises(UserError, match="cannot read nope://a/b.tsv"):
        read_table("nope://a/b.tsv", ["0"])
