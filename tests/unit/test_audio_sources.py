"""Recordings from folders, tables, buckets; and recordings without texts."""

import json
import threading
import types

import numpy as np
import pytest

from bigjax.data import file_list
from bigjax.data.audio import sources
from bigjax.data.audio.decode import read_blocks
from bigjax.errors import UserError
from tests import bucket
from tests.audio_files import (
    RATE,
    content,
    every,
    load,
    make_folder,
    make_table,
    samples,
    whole,
    write,
)


def said(data, name="train"):
    return [row["text"] for row in data.rows(name)]


def test_a_folder_with_splits(tmp_path):
    for first, name in ((0, "train"), (10, "dev"), (20, "test")):
        make_folder(tmp_path / "set" / name, n=2, first=first)
    data = load(tmp_path, train=str(tmp_path / "set"))
    assert [said(data, name) for name in data.names] == [
        [f"number {i}" for i in (first, first + 1)] for first in (0, 10, 20)
    ]
    make_folder(tmp_path / "own", n=1, first=30)
    data = load(tmp_path, train=str(tmp_path / "set"), test=str(tmp_path / "own"))
    assert said(data, "test") == ["number 30"] and said(data, "valid") == ["number 10", "number 11"]


def test_transcripts_as_librispeech_has_them(tmp_path):
    folder = tmp_path / "84" / "121123"
    for i in range(3):
        write(folder / f"84-121123-000{i}.flac", samples(i))
    lines = ["84-121123-0000 GO  DO YOU HEAR", "84-121123-0001 BUT", "84-121123-0009 NOT THERE"]
    (folder / "84-121123.trans.txt").write_text("\n".join(lines) + "\n")
    (folder / "84-121123-0002.txt").write_text(" a text\nof its own ")
    data = whole(tmp_path, train=str(tmp_path))
    assert said(data) == ["GO DO YOU HEAR", "BUT", "a text of its own"]
    assert data.rows("train")[1]["where"] == f"{folder}/84-121123.trans.txt:2"
    np.testing.assert_array_equal(
        every(data.split("train", 2, shuffle=False))["audio"][:, :800],
        [samples(i) for i in range(3)],
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_tables_with_other_columns_and_absolute_paths(tmp_path, kind):
    path = write(tmp_path / "clips" / "a.wav", samples(0))
    rows = [("clips/a.wav", "one, two"), (path, "7")]
    table = tmp_path / f"list.{kind}"
    text = "file,said\n" + "".join(f'{file},"{text}"\n' for file, text in rows)
    if kind == "jsonl":
        text = "".join(json.dumps({"file": file, "said": text}) + "\n" for file, text in rows)
    table.write_text(text)
    data = whole(tmp_path, train=str(table), columns=dict(audio="file", text="said"))
    assert said(data) == ["one, two", "7"]
    rows = every(data.split("train", 2, shuffle=False))
    np.testing.assert_array_equal(rows["audio"][:, :800], [samples(0)] * 2)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t + "clips/x.wav\tx\n", r"1 of 4 recordings of .* do not exist, .*list.tsv:5: "),
        (lambda t: t + "clips/000.flac\t \n", "list.tsv:5: column 'text' is empty"),
        (lambda t: t.replace("audio", "file"), "no columns are called 'audio'"),
    ],
)
def test_bad_tables(tmp_path, change, words):
    table = make_table(tmp_path, n=3)
    text = open(table).read()
    open(table, "w").write(change(text))
    with pytest.raises(UserError, match=words):
        whole(tmp_path, train=table)


def test_bad_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"data.train: the folder .*empty has no recordings \(.wav"):
        whole(tmp_path, train=str(tmp_path / "empty"))
    root = make_folder(tmp_path / "clips", n=3)
    (root / "001.txt").unlink()
    with pytest.raises(UserError, match="1 of the 3 recordings .*001.wav. Write .* to 001.txt bes"):
        whole(tmp_path, train=str(root))
    (root / "001.txt").write_text(" \n")
    with pytest.raises(UserError, match="001.txt: the text is empty; 1 of 3 are"):
        whole(tmp_path, train=str(root))


def test_a_file_of_a_format_that_is_not_read_is_not_left_out(tmp_path):
    root = make_folder(tmp_path / "clips", n=3)
    (root / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    (root / "x.txt").write_text("x")
    with pytest.raises(UserError, match="x.m4a: an MP4 file.*Convert it: ffmpeg -i x.m4a x.flac"):
        whole(tmp_path, train=str(root))


def test_lengths_are_read_once(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "clips", n=3)
    lines = []
    whole(tmp_path, train=str(root), lines=lines)
    assert any("3 recordings" in line and "longest 0.1 s" in line for line in lines)
    monkeypatch.setattr(sources.files, "check", None)
    whole(tmp_path, train=str(root))
    write(root / "001.wav", samples(1, 801))
    with pytest.raises(TypeError):  # another file: read again
        whole(tmp_path, train=str(root))


@pytest.mark.parametrize("make", [make_folder, make_table])
def test_data_that_moved_are_the_same(tmp_path, make):
    """A run resumes with them; with other files it does not."""
    make(tmp_path / "a", n=3)
    kind = "list.tsv" if make is make_table else ""
    first = whole(tmp_path, train=str(tmp_path / "a" / kind)).fingerprint
    (tmp_path / "a").rename(tmp_path / "b")
    assert whole(tmp_path, train=f"{tmp_path}/b/{kind}").fingerprint == first
    next((tmp_path / "b").rglob("002.*a*")).write_bytes(content(samples(2, 900)))
    assert whole(tmp_path, train=f"{tmp_path}/b/{kind}").fingerprint != first


def test_lengths_of_files_of_equal_names_and_sizes(tmp_path):
    """They are kept for each folder."""
    for name, rate in (("a", RATE), ("b", RATE // 2)):
        write(tmp_path / name / "x.wav", samples(0), rate)
        (tmp_path / name / "x.txt").write_text("x")
    a, b = (whole(tmp_path, train=str(tmp_path / name)) for name in "ab")
    assert a.examples["train"].seconds == [0.1] and b.examples["train"].seconds == [0.2]


def test_sizes_in_a_bucket_are_asked_for_together(monkeypatch):
    together = threading.Barrier(32, timeout=10)

    class Path:
        def __init__(self, name):
            self.name = name

        def stat(self):
            together.wait()
            if self.name == "gs://b/7":
                raise FileNotFoundError
            return types.SimpleNamespace(length=5)

    monkeypatch.setattr(file_list, "epath", types.SimpleNamespace(Path=Path))
    sizes = file_list.sizes_of([f"gs://b/{i}" for i in range(32)])
    assert sizes == [5] * 7 + [None] + [5] * 24


def input_paths(spec):
    return sources.input_paths(spec, "FILE", "audio", str)


def test_recordings_without_texts(tmp_path):
    """Files, folders, patterns and tables of them."""
    write(tmp_path / "calls" / "long.wav", samples(0))
    write(tmp_path / "calls" / "b" / "short.flac", samples(1))
    (tmp_path / "calls" / "notes.md").write_text("x")
    (tmp_path / "calls" / "list.tsv").write_text("audio\tid\nlong.wav\t7\n")
    long, short = "long.wav", "b/short.flac"
    for spec, names in (
        ("calls", [short, long]),
        ("calls/*.wav", [long]),
        ("calls/**/*.flac", [short]),
        ("calls/b/short.flac", [short]),
        ("calls/list.tsv", [long]),
        ("calls/notes.md", ["notes.md"]),
    ):
        assert input_paths(f"{tmp_path}/{spec}") == [f"{tmp_path}/calls/{name}" for name in names]


def test_bad_input(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match=r"FILE='.*none.wav': no file .*Give a recording, a "):
        input_paths(f"{tmp_path}/none.wav")
    with pytest.raises(UserError, match=r"names 1 file\(s\) and folder\(s\) without recordings"):
        input_paths(str(tmp_path))


def test_recordings_in_a_bucket(tmp_path, monkeypatch):
    with bucket.emulator() as url:
        bucket.use(monkeypatch, url)
        for i in range(2):
            bucket.put(url, f"set/a/{i}.ogg", content(samples(i, 3000), kind="OGG"))
            bucket.put(url, f"set/a/{i}.txt", f"number {i}".encode())
        bucket.put(url, "set/list.tsv", b"audio\ttext\na/1.ogg\tone\n")
        data = whole(tmp_path, train="gs://bucket/set")
        assert said(data) == ["number 0", "number 1"]
        rows = every(data.split("train", 2, shuffle=False))
        assert rows["audio_len"].tolist() == [3000, 3000]
        data = whole(tmp_path, train="gs://bucket/set/list.tsv")
        assert data.rows("train")[0]["file"] == "gs://bucket/set/a/1.ogg"
        np.testing.assert_array_equal(data.inputs("train")[0], rows["audio"][1, :3000])
        (path,) = input_paths("gs://bucket/set/**/0.ogg")
        recording = np.concatenate([*read_blocks(path, RATE)])
        np.testing.assert_array_equal(recording, rows["audio"][0, :3000])
        data = whole(tmp_path, train="gs://bucket/set", max_seconds=0.1)
        with pytest.raises(UserError, match="gs://bucket/set/a/.*ogg: it is 0.4 s long"):
            data.split("train", 2).batch_at(0)
