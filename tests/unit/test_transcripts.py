"""Transcripts as text, subtitles and JSON, and the folder of them."""

import json

import pytest

from bigjax.errors import UserError
from bigjax.infer import transcripts
from bigjax.infer.transcribe import Segment


def segment(start, end, text, tokens=(1,)):
    return Segment(start, end, text, [*tokens], 0.0, -0.25, 1.5, 0.125)


TRANSCRIPT = transcripts.Transcript(
    "calls/a.wav",
    "en",
    7300.5,
    [
        segment(0, 4, " Hello,\n\n & <you> -->"),
        segment(59.9996, 61.5, " there."),
        segment(3599.25, 7261.042, " Bye."),
    ],
)


def test_subtitles():
    assert transcripts.srt(TRANSCRIPT) == (
        "1\n00:00:00,000 --> 00:00:04,000\nHello, & <you> ->\n\n"
        "2\n00:01:00,000 --> 00:01:01,500\nthere.\n\n"
        "3\n00:59:59,250 --> 02:01:01,042\nBye.\n"
    )
    assert transcripts.vtt(TRANSCRIPT) == (
        "WEBVTT\n\n"
        "00:00.000 --> 00:04.000\nHello, &amp; &lt;you&gt; --&gt;\n\n"
        "01:00.000 --> 01:01.500\nthere.\n\n"
        "59:59.250 --> 02:01:01.042\nBye.\n"
    )
    short = segment(4.9996, 5.0004, " Short.")  # both ends are 5,000 ms
    short = TRANSCRIPT._replace(segments=[short, *TRANSCRIPT.segments])
    assert transcripts.srt(short) == transcripts.srt(TRANSCRIPT)
    assert transcripts.vtt(short) == transcripts.vtt(TRANSCRIPT)
    empty = TRANSCRIPT._replace(segments=[])
    assert transcripts.srt(empty) == "" and transcripts.vtt(empty) == "WEBVTT\n"


def test_texts():
    assert transcripts.txt(TRANSCRIPT) == "Hello, & <you> -->\nthere.\nBye.\n"
    assert transcripts.line(TRANSCRIPT.segments[2]) == "[59:59.250 --> 02:01:01.042] Bye."
    joined = TRANSCRIPT._replace(separator=" ", segments=[segment(0, 1, "A B"), segment(1, 2, "C")])
    assert transcripts.txt(joined) == "A B C\n" and joined.text == "A B C"
    assert transcripts.txt(TRANSCRIPT._replace(segments=[])) == ""
    assert transcripts.txt(joined._replace(segments=[])) == ""


def test_json():
    text = transcripts.as_json(TRANSCRIPT._replace(segments=TRANSCRIPT.segments[1:2]))
    assert text == (
        '{\n "file": "calls/a.wav",\n "language": "en",\n "duration": 7300.5,\n'
        ' "text": "there.",\n "segments": [\n  {\n   "id": 0,\n   "start": 59.9996,\n'
        '   "end": 61.5,\n   "text": " there.",\n   "tokens": [\n    1\n   ],\n'
        '   "temperature": 0.0,\n   "avg_logprob": -0.25,\n   "compression_ratio": 1.5,\n'
        '   "no_speech_prob": 0.125\n  }\n ]\n}\n'
    )
    unknown = TRANSCRIPT._replace(language="", segments=[segment(0, 1, "ü\udc80")])
    content = json.loads(transcripts.as_json(unknown).encode("utf-8", "backslashreplace"))
    assert content["language"] is None and content["segments"][0]["text"] == "ü\udc80"


def test_names_do_not_collide_whatever_a_later_command_names(tmp_path):
    files = ["x/a.wav", "y/a.wav", "y/a.mp3", "y/A.wav", "y/b.c.wav", "gs://bucket/a.wav"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.c.srt").write_text("of somebody")
    folder = transcripts.Folder(str(tmp_path / "out"), ["txt", "srt"], files)
    assert not any(map(folder.has, files))
    for file in files:
        folder.write(TRANSCRIPT._replace(file=file, segments=[segment(0, 1, file)]))
    written = {p.name: p.read_text() for p in (tmp_path / "out").glob("*.txt")}
    assert [*map(written.get, ("a.txt", "a-2.txt", "a-3.txt", "A-2.txt"))] == [
        "x/a.wav\n",
        "y/a.wav\n",
        "y/a.mp3\n",
        None,
    ]
    assert sorted(written.values()) == sorted(f"{file}\n" for file in files)
    assert (tmp_path / "out" / "b.c.srt").read_text() == "of somebody"
    assert len({name.lower() for name in written}) == len(files)

    later = transcripts.Folder(str(tmp_path / "out"), ["txt"], ["z/a.wav", *files[::-1]])
    assert all(map(later.has, files)) and not later.has("z/a.wav")
    more = transcripts.Folder(str(tmp_path / "out"), ["txt", "vtt"], files)
    assert not any(map(more.has, files))
    assert not [p for p in (tmp_path / "out").iterdir() if ".tmp" in p.name]


def test_failures_of_earlier_commands_stay_until_they_are_transcribed(tmp_path):
    folder = lambda *files: transcripts.Folder(str(tmp_path), ["txt"], files)
    failures = lambda: [*(tmp_path / transcripts.FAILURES).read_text().splitlines()]
    folder("/x/a.wav", "/x/b.wav").write_failures({"/x/a.wav": "a: cut\noff", "/x/b.wav": "b"})
    assert failures() == ["/x/a.wav\ta: cut off", "/x/b.wav\tb"]
    assert folder("/x/c.wav").write_failures({})  # others
    folder("/x/c.wav").write_failures({"/x/c.wav": "c"})
    assert failures() == ["/x/a.wav\ta: cut off", "/x/b.wav\tb", "/x/c.wav\tc"]
    folder("/x/b.wav").write_failures({"/x/b.wav": "other"})
    assert failures() == ["/x/a.wav\ta: cut off", "/x/c.wav\tc", "/x/b.wav\tother"]
    folder("/x/a.wav").write(TRANSCRIPT._replace(file="/x/a.wav"))  # and ended before the list
    folder("/x/c.wav").write_failures({})
    assert failures() == ["/x/b.wav\tother"]
    assert folder("/x/b.wav").write_failures({}) == ""
    assert not (tmp_path / transcripts.FAILURES).exists()


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="of --output cannot be written"):
        transcripts.Folder(str(tmp_path / "file"), ["txt"], ["a.wav"])
    (tmp_path / transcripts.INDEX).write_text('{"name": "../x", "recording": "/a.wav"}\n')
    with pytest.raises(UserError, match="not a valid file name"):
        transcripts.Folder(str(tmp_path), ["txt"], ["a.wav"])
    (tmp_path / transcripts.INDEX).write_text("[1]\n")
    with pytest.raises(UserError, match="names of recordings in this folder, and cannot be read"):
        transcripts.Folder(str(tmp_path), ["txt"], ["a.wav"])


def test_long_and_odd_names(tmp_path):
    files = [f"{'ü' * 120}.wav", f"{'ü' * 121}.wav", "tab\there.wav", ".wav"]
    folder = transcripts.Folder(str(tmp_path), ["json"], files)
    for file in files:
        folder.write(TRANSCRIPT._replace(file=file))
    assert len([*tmp_path.glob("*.json"), *tmp_path.glob(".*.json")]) >= 4
