"""Conversations of files: their forms, and what is refused."""

import json

import pytest

from bigjax.data import conversation_rows
from bigjax.data.store import split_of
from bigjax.errors import UserError
from tests import helpers
from tests.chats import ADD, CALL, ONE, TOOL_CONVERSATION, turn


def section(**values):
    return helpers.data_section("conversations", **values)


def write(path, rows) -> str:
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path, **values):
    options = dict(valid_fraction=0.0, test_fraction=0.0, **values)
    return conversation_rows.read_parts(section(train=str(path), **options), ["train"])["train"]


SHAREGPT = [
    {"from": "human", "value": "The quick fox?"},
    {"from": "gpt", "value": ONE[1]["content"]},
]
PROMPT = {"prompt": ONE[0]["content"], "completion": ONE[1]["content"]}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": ONE},
        {"conversations": SHAREGPT},
        {"conversations": ONE},
        PROMPT,
        {"prompt": ONE[:1], "completion": ONE[1:]},
        {"messages": [turn(m["role"], [{"type": "text", "text": m["content"]}]) for m in ONE]},
    ],
)
def test_all_forms_are_the_same_conversation(tmp_path, suffix, row):
    path = write(tmp_path / f"a{suffix}", [row, row])
    for number, one in enumerate(read(path), 1):
        assert one["messages"] == ONE and one["tools"] is None
        assert one["where"] == f"{path}:{number}" and one["dataset"] == "train"


def test_a_system_prompt_is_of_the_row_or_of_the_config(tmp_path):
    rows = [
        {"conversations": SHAREGPT, "system": "Own."},
        {"conversations": [{"from": "system", "value": "Own."}, *SHAREGPT]},
        {"messages": ONE},
    ]
    given = read(write(tmp_path / "a.jsonl", rows), system="Default.")
    assert [row["messages"][0]["content"] for row in given] == ["Own.", "Own.", "Default."]
    assert all(row["messages"][1:] == ONE for row in given)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tools_and_their_calls(tmp_path, suffix):
    as_text = {**CALL, "function": {"name": "add", "arguments": json.dumps({"a": 1})}}
    messages = [
        turn("user", "Add."),
        turn("assistant", None, tool_calls=[as_text]),
        turn("tool", "2", tool_call_id="1"),
        turn("assistant", "It is 2."),
    ]
    tools = json.dumps([ADD]) if suffix == ".parquet" else [ADD]
    (row,) = read(write(tmp_path / f"a{suffix}", [{"messages": messages, "tools": tools}]))
    assert row["tools"] == [ADD]
    called = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert row["messages"][1] == turn("assistant", "", tool_calls=[called])
    assert row["messages"][2] == TOOL_CONVERSATION["messages"][2] | {"content": "2"}


BAD = [
    ([turn("user", "a"), turn("assistant", "b"), turn("assistant", "c")], "message 3 has.*before"),
    (
        [turn("user", "a"), turn("user", "b"), turn("assistant", "c")],
        "message 2 has the role 'user'",
    ),
    ([*ONE, turn("system", "a")], "message 3 is a system message"),
    (
        [turn("user", "a"), turn("tool", "b"), turn("assistant", "c")],
        "message 2 is a tool's, after",
    ),
    ([turn("user", "a")], "no message is an assistant's"),
    ([turn("user", " \n"), turn("assistant", "c")], r"message 1 \(user\) is empty"),
    ([turn("user", "a"), turn("assistant", "")], r"message 2 \(assistant\) is empty"),
    ([turn("human", "a"), turn("assistant", "b")], "message 1 has the role 'human'; allowed: sys"),
    ([turn("user", 1), turn("assistant", "b")], "message 1: its content is the number 1"),
    ([turn("user", None), turn("assistant", "b")], "message 1: its content is null"),
    ([turn("user", [{"type": "image"}]), *ONE[1:]], "message 1: its content is a list"),
    ([{"content": "a"}], "message 1 is an object; it has to be like"),
    (["a"], "message 1 is the text 'a'"),
    ([], "'messages' holds a list; it has to be a list that is not empty"),
    ("a", "'messages' holds the text 'a'"),
    (
        [turn("user", "a"), turn("assistant", "b", tool_calls=["x"])],
        "message 2: a call of a tool is the text",
    ),
]


@pytest.mark.parametrize("messages, message", BAD)
def test_what_is_no_conversation_is_refused_with_its_line(tmp_path, messages, message):
    path = write(tmp_path / "a.jsonl", [{"messages": ONE}, {"messages": messages}])
    with pytest.raises(UserError, match=f"a.jsonl:2: {message}"):
        read(path)


def test_other_bad_rows_files_and_keys(tmp_path):
    for row, message in (
        ({"text": "a"}, "a.jsonl:1: found the columns 'text'. A conversation needs 'messages'"),
        ({"conversations": [{"from": "bot", "value": "a"}]}, "message 1 has \"from\": 'bot'"),
        ({"conversations": [{"value": "a"}]}, 'like {"from": "human"'),
        ({"messages": ONE, "tools": "add"}, "'tools' holds the text 'add'"),
        ({"prompt": "a"}, "needs 'messages'"),
    ):
        with pytest.raises(UserError, match=message):
            read(write(tmp_path / "a.jsonl", [row]))
    for values, message in (
        (dict(train="a.csv"), "read from .jsonl or .parquet"),
        (dict(train="docstrings:titles"), "there is no set 'docstrings:titles'"),
        (dict(train=""), "data.train is empty"),
        (dict(train="a.jsonl", mixture={"a": "b.jsonl"}), "data.train and data.mixture are both"),
        (dict(train="a.jsonl", weights={"a": 1.0}), "data.weights.a is set"),
    ):
        with pytest.raises(UserError, match=message):
            read(values.pop("train"), **values)


def test_splits_are_by_a_hash_of_the_question_or_files_of_their_own(tmp_path):
    rows = [
        {"messages": [turn("user", f"q{i // 2}"), turn("assistant", f"{i}")]} for i in range(80)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    parts = conversation_rows.read_parts(section(train=path, valid_fraction=0.2, test_fraction=0.2))
    assert sum(map(len, parts.values())) == 80 and all(parts.values())
    for name, part in parts.items():
        assert {split_of(row["messages"][0]["content"], 0.2, 0.2) for row in part} == {name}
    own = write(tmp_path / "own.parquet", rows[:3])
    mixture = {"a": path, "b": own}
    parts = conversation_rows.read_parts(
        section(mixture=mixture, valid=own, valid_fraction=0.5, test_fraction=0.0)
    )
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [83, 3, 0]
    assert [row["dataset"] for row in parts["train"][-4:]] == ["a", "b", "b", "b"]
    only = conversation_rows.read_parts(section(valid=own), ["valid"])
    assert len(only["valid"]) == 3


def test_questions_of_docstrings():
    data = section(train="docstrings:questions", valid_fraction=0.02)
    rows = conversation_rows.read_parts(data, ["valid"])["valid"]
    assert len(rows) > 100
    for row in rows:
        question, answer = row["messages"]
        assert question["content"] == f"What does {row['where'].removeprefix('docstring of ')} do?"
        assert "\n" not in answer["content"] and len(answer["content"].split()) > 1
    again = conversation_rows.read_parts(
        section(train="x.jsonl", valid=data.train, valid_fraction=0.02), ["valid"]
    )["valid"]
    assert [row["messages"] for row in again] == [row["messages"] for row in rows]


def test_what_a_template_may_read_is_kept(tmp_path):
    """Nulls of JSON too: a default of null is no missing default. Unknown keys, such as those of
    reasoning, are passed on."""
    arguments = {"q": "a", "limit": None}
    call = {"type": "function", "function": {"name": "add", "arguments": json.dumps(arguments)}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {"default": None}}}
    answer = {**turn("assistant", "b"), "thinking": "hm", "weight": 1, "tool_calls": [call]}
    row = {"messages": [turn("user", "a"), answer], "tools": [tool], "system": "Be brief."}
    (kept,) = read(write(tmp_path / "a.jsonl", [row]))
    assert kept["messages"][0] == turn("system", "Be brief.") and kept["tools"] == [tool]
    assert kept["messages"][2]["tool_calls"][0]["function"]["arguments"] == arguments
    assert kept["messages"][2]["thinking"] == "hm" and "weight" not in kept["messages"][2]
    own = {**row, "messages": [turn("system", "Own."), *row["messages"]]}
    (kept,) = read(write(tmp_path / "b.jsonl", [own]))
    assert kept["messages"][0] == turn("system", "Own.")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [turn("user", "a"), {**turn("assistant", "b"), "weight": 0}]},
        {"conversations": [SHAREGPT[0], {**SHAREGPT[1], "train": False}]},
    ],
)
def test_an_answer_that_its_row_leaves_out_is_refused(tmp_path, row):
    with pytest.raises(UserError, match="an answer that is not learned. Set data.train_on='last'"):
        read(write(tmp_path / "a.jsonl", [row]))
