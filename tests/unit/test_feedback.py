"""Rated conversations: their format, snapshots, filters, and what is refused."""

import gzip
import json

import pytest

from bigjax import main
from bigjax.data import conversation_rows, feedback, preference_rows
from bigjax.data.feedback_snapshot import FILES, MANIFEST, Filters, snapshot, verify, write
from bigjax.errors import UserError
from tests.chats import turn
from tests.helpers import data_section


def record(number, answer="Paris.", question="Capital?", **more):
    """A liked answer, as a server would write it; None removes a key."""
    value = {
        "id": f"r{number}",
        "time": f"2026-03-{number + 1:02d}T12:00:00Z",
        "model": {"name": "chat-1", "checkpoint": "0123456789abcdef"},
        "messages": [turn("user", question), turn("assistant", answer)],
        "rating": 1,
        "consent": True,
        **more,
    }
    return {k: x for k, x in value.items() if x is not None}


def comparison(number, chosen, rejected, **more):
    messages = [turn("system", "Be brief."), turn("user", "Capital?")]
    more = {"messages": messages, "rating": None, **more}
    return record(number, chosen=chosen, rejected=rejected, **more)


def written(path, *records):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def frozen(tmp_path, *records, **filters):
    """({file: rows}, manifest) of a snapshot of these records."""
    source = feedback.read(written(tmp_path / "in.jsonl", *records), False)
    files, manifest = snapshot([source], Filters(**filters))
    rows = {name: [json.loads(line) for line in files[name].splitlines()] for name in FILES}
    return rows, manifest


def answers(rows, key):
    return sorted(row[key][-1]["content"] for row in rows)


def test_the_files_of_a_snapshot(tmp_path):
    rows, manifest = frozen(
        tmp_path,
        record(1, "liked"),
        record(2, "disliked", rating=-1),
        record(3, "original", rating=-1, edited="corrected"),
        record(4, "three stars", rating=3, scale=[1, 5]),
        record(5, "other question", question="Else?", rating=4, scale=[1, 5]),
        comparison(6, "better", "worse"),
        record(
            7, "first", question="Q", rating=None, alternative=dict(content="x", preferred=True)
        ),
    )
    assert answers(rows["sft.jsonl"], "messages") == ["corrected", "liked", "other question"]
    labels = {row["completion"][0]["content"]: row["label"] for row in rows["ratings.jsonl"]}
    liked = {"liked": True, "other question": True}
    assert labels == {**liked, "disliked": False, "original": False}
    pairs = {(r["chosen"][0]["content"], r["rejected"][0]["content"]) for r in rows["pairs.jsonl"]}
    own = {("corrected", "original"), ("better", "worse"), ("x", "first")}
    assert pairs == own | {("liked", "disliked"), ("liked", "original")}
    (pair,) = (r for r in rows["pairs.jsonl"] if r["chosen"][0]["content"] == "better")
    assert pair["prompt"] == [turn("system", "Be brief."), turn("user", "Capital?")]
    assert pair["chosen"] == [turn("assistant", "better")]
    assert [manifest["outputs"][name]["rows"] for name in FILES] == [3, 4, 5]
    assert manifest["records"] == 7 and manifest["format"] == feedback.FORMAT


def test_conversations_and_preferences_can_read_the_files(tmp_path):
    """`preferences` reads prompt with chosen and rejected, or with completion and label, each as
    messages; `conversations` reads the other two files."""
    source = feedback.read(written(tmp_path / "in.jsonl", record(1), record(2, "B", rating=-1)), 0)
    write(snapshot([source], Filters())[0], str(tmp_path / "out"))
    for name in FILES[:2]:
        data = data_section("conversations", "sft", train=str(tmp_path / "out" / name))
        rows = sum(conversation_rows.read_parts(data).values(), [])
        assert {row["messages"][-1]["content"] for row in rows} <= {"Paris.", "B"} and rows
    (pair,) = map(json.loads, (tmp_path / "out" / "pairs.jsonl").read_text().splitlines())
    conversation_rows.check(pair["prompt"] + pair["chosen"], "pair")
    assert pair["rejected"] == [turn("assistant", "B")]


def test_the_bytes_do_not_depend_on_the_order_of_the_input(tmp_path):
    records = [record(i, f"answer {i}", f"question {i % 3}", user=f"u{i % 2}") for i in range(9)]
    records += [record(i + 9, f"bad {i}", f"question {i}", rating=-1) for i in range(3)]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    both = []
    for order in (1, -1):
        written(paths[0], *records[:6][::order])
        written(paths[1], *records[6:])
        sources = [feedback.read(p, False) for p in paths[::order]]
        both.append(snapshot(sources, Filters(max_per_user=2))[0])
    a, b = ({k: x for k, x in files.items() if k in FILES} for files in both)
    assert a == b
    written(paths[0], *records[:6])
    again = [snapshot([feedback.read(p, False) for p in order], Filters(max_per_user=2))[0]
             for order in (paths, paths[::-1])]  # fmt: skip
    assert again[0] == again[1]  # the manifest too
    other = snapshot([feedback.read(p, False) for p in paths], Filters(max_per_user=2, seed=1))[0]
    assert other["sft.jsonl"] != a["sft.jsonl"]


def test_duplicates_and_later_versions(tmp_path):
    rows, manifest = frozen(
        tmp_path,
        record(1, "a"),
        record(1, "a"),
        record(2, "b"),
        record(2, "b", rating=-1, time="2026-04-01"),
        record(3, "a", user="another"),
    )
    assert manifest["removed"] == {"duplicates": 1, "replaced": 1}
    assert answers(rows["sft.jsonl"], "messages") == ["a"]  # equal rows once
    assert [row["label"] for row in rows["ratings.jsonl"]].count(False) == 1
    with pytest.raises(UserError, match="in.jsonl:1 and .*:2 have the same id 'r1' and time"):
        frozen(tmp_path, record(1, "a"), record(1, "b"))


def test_an_answer_on_which_users_disagree_is_in_no_pair(tmp_path):
    given = [record(1, "x"), record(2, "x", rating=-1), record(3, "y")]
    rows, _ = frozen(tmp_path, *given)
    assert rows["pairs.jsonl"] == [] and len(rows["ratings.jsonl"]) == 3


@pytest.mark.parametrize(
    "filters, removed, left",
    [
        (dict(require_consent=True), {"require_consent": 1}, ["kept", "old", "star", "theirs"]),
        (dict(model=("chat-*",)), {"model": 1}, ["kept", "no consent", "old", "star"]),
        (dict(model=("fedcba",)), {"model": 4}, ["theirs"]),
        (dict(since="2026-03-01"), {"since": 1}, ["kept", "no consent", "star", "theirs"]),
        (dict(until="2026-03-01T00:00:00Z"), {"until": 4}, ["old"]),
        (dict(min_rating=0.75), {"min_rating": 1}, ["kept", "no consent", "old", "theirs"]),
        (dict(max_rating=0.75), {"max_rating": 4}, ["star"]),
        (dict(min_chars=5), {"min_chars": 3}, ["no consent", "theirs"]),
        (dict(drop_pattern=r"\bo[ld]+\b|no"), {"drop_pattern": 2}, ["kept", "star", "theirs"]),
        (dict(drop_pattern="question of [ns]"), {"drop_pattern": 2}, ["kept", "old", "theirs"]),
    ],
)  # fmt: skip
def test_filters(tmp_path, filters, removed, left):
    ask = lambda text, n, **more: record(n, text, f"question of {text}", **more)
    rows, manifest = frozen(
        tmp_path,
        ask("kept", 1),
        ask("no consent", 2, consent=None),
        ask("theirs", 3, model=dict(name="other", checkpoint="fedcba")),
        ask("old", 4, time="2026-02-28T23:59:59+00:00"),
        ask("star", 5, rating=4, scale=[1, 5]),
        **filters,
    )
    assert answers(rows["sft.jsonl"], "messages") == left
    assert {k: n for k, n in manifest["removed"].items() if n} == removed


_CALL = {"type": "function", "function": {"name": "mail", "arguments": {}}}


@pytest.mark.parametrize(
    "more",
    [
        dict(tool_calls=[{**_CALL, "function": {"name": "mail", "arguments": {"to": "secret"}}}]),
        dict(tool_calls=[{**_CALL, "function": {"name": "mail", "arguments": {"secret": 1}}}]),
        dict(tool_calls=[{"name": "m", "arguments": json.dumps({"to": ["\u00fcsecret"]})}]),
        dict(tool_calls=[{"name": "m", "arguments": '{"to": "\\u0073ecret"}'}]),
        dict(tool_calls=[{"name": "secret", "arguments": {}}]),
        dict(reasoning_content="The secret"),
        dict(name="secret"),
    ],
)
def test_a_pattern_finds_what_is_not_the_content_of_a_message(tmp_path, more):
    asks = [turn("user", "q"), turn("assistant", "Wait.", **more), turn("user", "And?")]
    given = [record(1), record(2, messages=[*asks, turn("assistant", "Done.")])]
    rows, manifest = frozen(tmp_path, *given, drop_pattern="secret")
    assert manifest["removed"]["drop_pattern"] == 1
    assert answers(rows["sft.jsonl"], "messages") == ["Paris."]
    kept, _ = frozen(tmp_path, *given, drop_pattern="user|content|tool_calls")  # of the format
    assert len(kept["sft.jsonl"]) == 2


def test_records_of_each_user_are_limited(tmp_path):
    given = [record(i, f"a{i}", user="one") for i in range(5)]
    given += [record(9, "b", user="two"), record(10, "c"), record(11, "d")]
    rows, manifest = frozen(tmp_path, *given, max_per_user=2)
    kept = answers(rows["sft.jsonl"], "messages")
    assert len(kept) == 5 and {"b", "c", "d"} < {*kept}
    assert manifest["removed"]["max_per_user"] == 3


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"id": "1"', "not JSON in UTF-8"),
        ('{"id": NaN}', "NaN is no JSON number"),
        ("[1]", "found a list"),
        (record(1, raiting=1), "unknown key 'raiting'"),
        (record(1, time=None), "'time' is missing"),
        (record(1, time="yesterday"), "'time' is 'yesterday'; it has to be a time in ISO 8601"),
        (record(1, model="chat"), "'model' is the text 'chat'"),
        (record(1, consent="yes"), "'consent' is the text"),
        (record(1, rating=None), "there is no judgement"),
        (record(1, rating=4), r"'rating' is 4; without 'scale' it is -1 or 1.*\[1, 5\]"),
        (record(1, rating=6, scale=[1, 5]), r"'rating' is 6 on the scale \[1, 5\]"),
        (record(1, rating=1, scale=[5, 1]), "worst first"),
        (record(1, rating=True), "'rating' is True"),
        (record(1, edited="  "), "'edited' cannot be used: it is empty"),
        (record(1, messages=[turn("user", "q")]), "end with the rated answer"),
        (record(1, messages=[turn("assistant", "a")]), "at least one other message"),
        (record(1, messages=[turn("user", "a"), turn("user", "b")]), "end with the rated answer"),
        (record(1, messages=[turn("user", 3), turn("assistant", "b")]), "message 1 is an object"),
        (record(1, messages=[turn("user", "q"), turn("assistant", "")]), "is empty"),
        (
            record(1, messages=[turn("user", "q", email="x"), turn("assistant", "a")]),
            "message 1 has the unknown key 'email'; known: role, content, tool_calls",
        ),
        (
            record(1, messages=[turn("user", "q"), turn("assistant", "a", tool_calls=[{}])]),
            "has 'tool_calls'",
        ),
        (comparison(1, "a", "a"), "compared answers are equal"),
        (comparison(1, "a", None), "is missing or empty"),
        (comparison(1, "a", "b", edited="c"), "a comparison has none"),
        (comparison(1, "a", "b", messages=[turn("assistant", "x")]), "as the one before"),
        (record(1, alternative="x"), "'alternative' is the text"),
        (record(1, alternative=dict(content="Paris.", preferred=False)), "answers are equal"),
    ],
)
def test_damaged_records_are_refused_with_their_place(tmp_path, line, message):
    path = written(tmp_path / "in.jsonl", record(8), "", line)
    with pytest.raises(UserError, match=f"in.jsonl:3.*{message}"):
        feedback.read(path, False)
    source = feedback.read(path, True)
    assert (len(source.records), source.n_bad) == (1, 1)


@pytest.mark.parametrize(
    "filters, message",
    [
        (dict(min_rating=4), "--min_rating is 4; it must be from -1 to 1"),
        (dict(min_rating=0.5, max_rating=0), "above --max_rating"),
        (dict(since="soon"), "--since is 'soon'"),
        (dict(drop_pattern="("), "no regex"),
        (dict(min_chars=-1), "--min_chars is -1"),
        (dict(min_chars=99), "No row is left for a snapshot.*min_chars 1"),
    ],
)
def test_invalid_filters_are_refused(tmp_path, filters, message):
    with pytest.raises(UserError, match=message):
        frozen(tmp_path, record(1), **filters)


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """With two files of records; one is compressed."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    written(tmp_path / "in" / "a.jsonl", record(1, "liked"), record(2, "bad", rating=-1))
    line = json.dumps(record(3, "third", question="Third?")).encode()
    (tmp_path / "in" / "more" / "b.jsonl.gz").write_bytes(gzip.compress(line))
    (tmp_path / "in" / "notes.txt").write_text("not read")
    return tmp_path


def run(folder, *flags):
    return main.main(
        ["feedback", "snapshot", f"--input={folder / 'in'}", f"--output={folder / 'out'}", *flags]
    )


def test_a_snapshot_is_written_once_and_verified(folder, capsys):
    assert run(folder) == 0
    assert "Wrote" in capsys.readouterr().out
    before = {p.name: p.read_bytes() for p in (folder / "out").iterdir()}
    assert {*before} == {*FILES, MANIFEST} and sorted(p.name for p in folder.iterdir()) == [
        "in",
        "out",
    ]
    names = [one["name"] for one in json.loads(before[MANIFEST])["inputs"]]
    assert names == ["a.jsonl", "b.jsonl.gz"]
    # once more, with one file named twice
    assert run(folder, f"--input={folder / 'in' / 'a.jsonl'}") == 0
    assert "already there" in capsys.readouterr().out
    assert run(folder, "--min_chars=5") == 2
    assert "never overwritten" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in (folder / "out").iterdir()}
    assert main.main(["feedback", "verify", str(folder / "out")]) == 0
    assert "all hashes are right; sft.jsonl 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, words", [("pairs.jsonl", "sha256 is"), (MANIFEST, "not a snapshot")]
)
def test_a_changed_snapshot_is_found(folder, name, words):
    assert run(folder) == 0
    path = folder / "out" / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=words):
        verify(str(folder / "out"))
    path.unlink()
    with pytest.raises(UserError, match="missing" if name in FILES else words):
        verify(str(folder / "out"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["snapshot"], "needs --input=FILE"),
        (["freeze"], "Write `bigjax feedback snapshot"),
        (["verify"], "Write `bigjax feedback snapshot"),
        (["verify", "x", "--seed=1"], "--seed has no effect on verify"),
        (["snapshot", "--input=/nowhere.jsonl", "--output=o"], "/nowhere.jsonl does not exist"),
    ],
)
def test_commands_that_cannot_be_meant_are_refused(flags, message, capsys):
    assert main.main(["feedback", *flags]) == 2
    assert message in capsys.readouterr().err


def test_files_of_other_kinds_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("{}")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(UserError, match="read from .jsonl files"):
            feedback.files_of([str(path)])


def test_the_files_of_a_snapshot_are_preferences(tmp_path):
    source = written(
        tmp_path / "in.jsonl",
        record(1, "liked"),
        record(2, "disliked", rating=-1),
        comparison(3, "better", "worse"),
    )
    files, _ = snapshot([feedback.read(source, False)], Filters())
    for name, form, n in (("pairs.jsonl", "pairs", 2), ("ratings.jsonl", "ratings", 2)):
        (tmp_path / name).write_bytes(files[name])
        section = data_section("preferences", "preference", train=str(tmp_path / name))
        rows = preference_rows.read_rows(str(tmp_path / name), section, form)
        assert len(rows) == n and all(row["messages"][-1]["role"] == "user" for row in rows)
