"""bigjax.data.text_files and utf8: encodings and damaged bytes."""

import pytest

from bigjax.data import sources, utf8
from bigjax.data.sources import text as text_module
from bigjax.data.tables import read_table
from bigjax.data.tokenizers.wordpiece import read_wordpiece
from bigjax.data.word_vectors import read as read_vectors
from bigjax.errors import UserError
from bigjax.projects.seqgan.hot_words import read_hot_words
from tests.helpers import text_source
from tests.unit.test_data_text_files import TEXT, documents, write

ENCODED = {
    "cp1252": ("L'été, où les élèves français étaient à l'école, fut très chaud. ", "Windows-1252"),
    "cp1251": ("Вчера вечером мы долго гуляли по набережной и говорили о книгах. ", "single-byte"),
    "koi8-r": ("Вчера вечером мы долго гуляли по набережной и говорили о книгах. ", "single-byte"),
    "gb18030": ("今天天气很好，我们一起去公园散步，然后回家吃饭。", "GB18030"),
    "big5": ("今天天氣很好，我們一起去公園散步，然後回家吃飯。", "BIG5"),
    "shift_jis": ("今日はとても良い天気なので、みんなで公園へ行きました。", "SHIFT_JIS"),
    "euc_jp": ("今日はとても良い天気なので、みんなで公園へ行きました。", "EUC-JP"),
    "euc_kr": ("오늘은 날씨가 아주 좋아서 모두 함께 공원에 갔습니다. ", "EUC-KR"),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_other_encodings_are_refused_by_name(tmp_path, encoding):
    text, name = ENCODED[encoding]
    raw = "".join(f"{text}{i}\n" for i in range(40)).encode(encoding)
    path = write(tmp_path / "a.txt", raw)
    with pytest.raises(UserError, match=rf"a\.txt: .*not UTF-8.*It looks like.*{name}.*iconv"):
        documents(path)
    with pytest.raises(UserError, match=rf"a\.txt: byte .*looks like.*{name}"):
        documents(path, on_bad_utf8="refuse")
    table = write(tmp_path / "a.tsv", b"text\n" + raw)
    with pytest.raises(UserError, match=rf"a\.tsv:2: byte .*looks like.*{name}"):
        read_table(table, ["text"])


def test_a_few_bad_bytes_are_replaced_reported_and_counted(tmp_path):
    raw = TEXT.encode().replace("Zeile 200: sch\u00f6n".encode(), b"Zeile 200: sch\xf6n")
    path, counts, lines = write(tmp_path / "a.txt", raw), {}, []
    text = "".join(documents(path, counts=counts, log=lines.append))
    assert "Zeile 200: sch\ufffdn" in text and counts == {"bad_utf8": 1}
    (line,) = lines
    assert "a.txt:201 has bytes that are not UTF-8" in line and "(0xF6)" in line
    assert "looks like" not in line  # most of the file is UTF-8


def test_a_short_file_may_have_a_few_and_a_long_one_a_share(tmp_path, monkeypatch):
    bad = b"caf\xe9 au lait\n"
    assert documents(write(tmp_path / "a.txt", bad * 10))
    with pytest.raises(UserError, match="11 byte sequences in 143 bytes .7.7%. are not UTF-8"):
        documents(write(tmp_path / "a.txt", bad * 11))
    assert documents(write(tmp_path / "a.txt", bad * 11 + b"plain ascii\n" * 100))
    # A long file is refused before its end is read.
    monkeypatch.setattr(utf8, "_EARLY", 1000)
    monkeypatch.setattr(text_module, "_READ_BYTES", 500)
    many = write(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}\n' * 1000)
    with pytest.raises(UserError, match=r"[\d]+ byte sequences in 1,\d\d\d bytes"):
        documents(many, "jsonl")


def test_each_file_of_a_source_has_a_share_of_its_own(tmp_path):
    write(tmp_path / "a.txt", "plain\n" * 10_000)
    write(tmp_path / "b.txt", b"caf\xe9 au lait\n" * 100)
    with pytest.raises(UserError, match=r"b\.txt: 100 byte sequences"):
        list(sources.documents(text_source("text", str(tmp_path / "*.txt"))))


def test_a_file_that_is_refused_is_told_its_own_first_byte(tmp_path):
    write(tmp_path / "a.txt", b"f\xfcr\n" + b"plain\n" * 100)
    write(tmp_path / "b.txt", b"caf\xe9 au lait\n" * 100)
    with pytest.raises(UserError, match=r"b\.txt: 100 .*the first is byte 3 \(0xE9\)"):
        documents(str(tmp_path / "*.txt"))


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_short_files_of_a_source_have_a_share_together(tmp_path, kind):
    line = '{"text": "\xe9t\xe9 \xe0 la mer"}\n'
    for i in range(50):
        write(tmp_path / f"{i:02d}.txt", line.encode("latin-1"))
    path = str(tmp_path / "*.txt")
    message = (
        rf"{kind} source at .*: 150 byte sequences in 1,250 bytes \(12.0%\) of its 50 files .*in "
        r"50 of them: [^,]*00.txt, [^,]*01.txt, [^,]*02.txt and 47 more\. .*looks like Windows-1252"
    )
    with pytest.raises(UserError, match=message):
        documents(path, kind)
    # Among enough other text they are replaced, and reported in two lines.
    write(tmp_path / "z.txt", '{"text": "plain"}\n' * 2000)
    counts, lines = {}, []
    assert len(documents(path, kind, counts=counts, log=lines.append)) >= 51
    assert counts == {"bad_utf8": 150} and len(lines) == 2
    assert "00.txt:1 has bytes" in lines[0]
    assert "50 of the 51 files of the" in lines[1] and "02.txt and 47 more" in lines[1]


def test_a_long_source_of_short_files_is_refused_before_its_end(tmp_path, monkeypatch):
    for i in range(50):
        write(tmp_path / f"{i:02d}.txt", "\xe9t\xe9 \xe0 la mer\n".encode("latin-1"))
    monkeypatch.setattr(utf8, "_EARLY", 300)
    with pytest.raises(UserError, match="of its 24 files"):
        documents(str(tmp_path / "*.txt"))


ISO_2022 = {
    "iso2022_jp": ("今日は良い天気です。", "ISO-2022-JP"),
    "iso2022_jp_2": ("今日は 한국 です。", "ISO-2022-JP"),
    "iso2022_jp_ext": ("ﾊﾝｶｸ", "ISO-2022-JP"),
    "iso2022_kr": ("오늘은 날씨가 좋다", "ISO-2022-KR"),
}


@pytest.mark.parametrize("encoding", [*ISO_2022, "iso2022_cn"])
def test_iso_2022_is_refused_by_name(tmp_path, encoding):
    text, name = ISO_2022.get(encoding, ("", "ISO-2022-CN"))
    raw = text.encode(encoding) if text else b"\x1b$)A\x0e=q\x0f\n"  # which Python cannot write
    for on_bad_utf8 in ("replace", "refuse"):
        with pytest.raises(
            UserError, match=rf"a\.txt:2: found an escape sequence of {name}.*iconv"
        ):
            documents(write(tmp_path / "a.txt", b"text\n" + raw), on_bad_utf8=on_bad_utf8)
    rest = b"more text\n" * 100_000  # the start does not show its kind
    with pytest.raises(UserError, match=rf"a\.txt:100001: .*{name}"):
        documents(write(tmp_path / "a.txt", rest + raw + rest))
    for file, read in (
        ("a.tsv", lambda path: read_table(path, ["text"])),
        ("a.conll", lambda path: read_table(path, ["tokens"])),
        ("hot.txt", read_hot_words),
        ("v.txt", read_vectors),
        ("vocab.txt", read_wordpiece),
        ("a.jsonl", lambda path: documents(path, "jsonl")),
    ):
        first = b'{"text": "x"}' if file == "a.jsonl" else b"text 1"
        with pytest.raises(UserError, match=rf"{file}:2: .*{name}"):
            read(write(tmp_path / file, first + b"\n" + raw + b"\n"))


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[1;31mred\x1b(B\x1b[m plain",  # of a terminal
        "\x1b(0lqqk\x1b(B",
        "\x1b $B and \x1b$ x",
        "Schön \x1b$B86\x1b(B",  # other bytes say that it is UTF-8
    ],
)
def test_other_escape_sequences_are_text(tmp_path, text):
    assert documents(write(tmp_path / "a.txt", text + "\n")) == [text]
