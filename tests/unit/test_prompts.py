"""Prompts of files and built-in ones, and options of reinforcement that are refused."""

import json

import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import modules, tasks
from bigjax.data import letters, prompts
from bigjax.errors import UserError
from bigjax.train import rewards
from tests import helpers
from tests.chats import turn


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(train, prompt_len=48, names=("train",), **values):
    given = {"chat_template": "plain", "valid_fraction": 0.0, "test_fraction": 0.0, **values}
    data = helpers.data_section(
        "prompts", train=str(train), tokenizer={"kind": "bytes"}, seq_len=58, **given
    )
    return prompts.load_prompts(data, prompt_len=prompt_len, names=names, log=lambda text: None)


CHAT = [turn("user", "Hi"), turn("assistant", "Yes?"), turn("user", "Go.")]


def test_rows_are_texts_or_conversations_with_columns_for_the_rewards(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        [
            {"prompt": "One?", "answer": "1", "level": 3},
            {"messages": CHAT, "answer": "2"},
            {"prompt": CHAT[2:]},
        ],
    )
    data = load(file)
    rows = data.rows("train")
    assert [row["prompt"] for row in rows] == ["One?", CHAT, CHAT[2:]]
    assert [row["columns"] for row in rows] == [{"answer": "1", "level": 3}, {"answer": "2"}, {}]
    texts = [data.tokenizer.decode(ids) for ids in data.inputs("train")]
    assert texts == [
        "User: One?\nAssistant:",
        "User: Hi\nAssistant: Yes?\nUser: Go.\nAssistant:",
        "User: Go.\nAssistant:",
    ]
    batch = data.split("train", 3, shuffle=False).batch_at(0)
    assert batch["prompt"].shape == (3, 48) and batch["example"].tolist() == [0, 1, 2]
    for ids, prompt, n in zip(data.inputs("train"), batch["prompt"], batch["prompt_length"]):
        assert prompt[:n].tolist() == ids and (prompt[n:] == 258).all()
    with pytest.raises(UserError, match="a.jsonl:3.*'answer'.*data.columns.answer"):
        data.references("train")


def test_tools_and_a_system_prompt_are_given_to_the_template(tmp_path):
    row = {"prompt": "a", "tools": [{"name": "add"}], "system": "Be brief."}
    template = tmp_path / "t.jinja"
    template.write_text("{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}")
    data = load(write(tmp_path / "a.jsonl", [row]), chat_template=str(template))
    text = data.tokenizer.decode(data.examples["train"].tokens)
    assert text == '[{"name": "add"}]Be brief.a'


def test_continued_texts_have_no_template(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"prompt": "Once "}, {"prompt": "It was"}])
    data = load(file, chat_template="", continued=True)
    assert data.template is None and data.end_ids == (257,)
    assert data.inputs("train")[0] == [256, *b"Once "]
    with pytest.raises(UserError, match="continued=True it has to be text"):
        load(write(tmp_path / "b.jsonl", [{"messages": CHAT}]), chat_template="", continued=True)
    with pytest.raises(UserError, match="data.chat_template have no effect"):
        load(file, continued=True)


def test_letters_have_right_answers_and_the_same_splits_as_conversations():
    data = load(letters.SORT, names=("train", "valid"), valid_fraction=0.1)
    rows = data.rows("train") + data.rows("valid")
    assert len(rows) == 1680 and 100 < len(data.rows("valid")) < 250
    for row in rows[:50]:
        given = row["prompt"].removeprefix("Sort: ")
        assert row["columns"]["answer"] == "".join(sorted(given))
    assert data.references("valid")[0] == " " + data.rows("valid")[0]["columns"]["answer"]
    parts = {row["where"]: row["part"] for row in letters.conversations(0.1, 0.0)}
    assert all(parts[row["where"]] == "valid" for row in data.rows("valid"))


@pytest.mark.parametrize(
    "row, words",
    [
        ({"prompt": "x" * 31}, "a.jsonl:2: the prompt has 49 tokens, and 48 are allowed"),
        ({"prompt": " "}, "a.jsonl:2: 'prompt' is empty"),
        ({"text": "a"}, "a.jsonl:2: found the columns 'text'. A row needs 'prompt' or 'messages'"),
        ({"messages": CHAT[:2]}, "a.jsonl:2: the last message is of the role 'assistant'"),
        ({"messages": [turn("user", "a")] * 2}, "a.jsonl:2: message 2 has the role 'user', as the"),
        ({"prompt": 3}, "a.jsonl:2: 'prompt' holds the number 3; it has to be text, or messages"),
    ],
)
def test_a_bad_row_is_named(tmp_path, row, words):
    with pytest.raises(UserError) as e:
        load(write(tmp_path / "a.jsonl", [{"prompt": "good"}, row]))
    assert words in str(e.value)


def test_a_missing_file_and_a_wrong_kind_of_file(tmp_path):
    with pytest.raises(UserError, match="data.train is empty.*letters:sort"):
        load("")
    with pytest.raises(UserError, match="prompts are read from .jsonl or .parquet"):
        load(tmp_path / "a.tsv")


def test_the_fingerprint_follows_the_columns_that_rewards_get(tmp_path):
    rows = [{"prompt": "One?", "answer": "1"}]
    one = load(write(tmp_path / "a.jsonl", rows)).fingerprint
    assert one == load(write(tmp_path / "b.jsonl", rows)).fingerprint
    rows[0]["answer"] = "2"
    assert one != load(write(tmp_path / "a.jsonl", rows)).fingerprint


# --- Options -----------------------------------------------------------------------------------


def config(**values):
    c = helpers.load_config("tests/tiny_grpo.py")
    with c.unlocked():
        for key, value in values.items():
            section, _, name = key.replace("__", ".").partition(".")
            c[section][name] = value
    return c


@pytest.mark.parametrize(
    "values, words",
    [
        ({"task__loss": "mean"}, "task.loss is 'mean'; allowed: grpo, dr_grpo, dapo, bnpo"),
        ({"task__level": "word"}, "task.level is 'word'; allowed: token, sequence"),
        ({"task__scale": "all"}, "task.scale is 'all'; allowed: group, batch, none"),
        ({"task__samples": 1}, "task.samples=1: completions are compared"),
        ({"task__rewards": {}}, "task.rewards is empty"),
        ({"task__beta": 0.1}, "task.beta=0.1 needs a reference"),
        ({"task__reference": "runs/a"}, "task.reference='runs/a' has no effect with task.beta=0"),
        ({"task__max_new_tokens": 40}, "data.seq_len=40 leaves no room for a prompt"),
        ({"task__overlong_tokens": 7}, "task.overlong_tokens=7 is more than task.max_new_tokens"),
        ({"task__temperature": 0.0}, "config.task.temperature is 0.0; it must be positive"),
        ({"model__name": "bert"}, "needs a family that defines Model and decoder"),
        ({"data__name": "text"}, "needs data with load_prompts, such as data.name='prompts'"),
        (
            {"task__rewards": {"a": {"kind": "rule", "path": "a:b"}}},
            "'rule'; allowed: function, run",
        ),
        ({"task__rewards": {"a": {"kind": "function", "path": "a"}}}, "as 'my_module:function'"),
    ],
)
def test_options_that_do_not_suit_are_refused(values, words):
    c = config()
    with c.unlocked():
        for key, value in values.items():
            section, name = key.split("__")
            if name == "name":  # the others are keys of another module
                c[section] = {}
            c[section][name] = value
    with pytest.raises(UserError) as e:
        tasks.build(helpers.filled(c))
    assert words in str(e.value)


def test_a_batch_that_does_not_divide_into_updates_is_refused_with_the_arithmetic():
    from bigjax.parallel import mesh as mesh_lib
    from bigjax.train import program

    c = config(task__updates=3)
    mesh = mesh_lib.make_mesh({"data": 2}, mesh_lib.jax.devices()[:2])
    with pytest.raises(UserError) as e:
        program.make(c, tasks.build(c), mesh)
    assert "train.batch_size=8 is not divisible by task.updates=3" in str(e.value)
    assert "= 6: 8 = 1 x 6 + 2" in str(e.value)


# --- Rewards -----------------------------------------------------------------------------------

MODULE = """
def named(prompts, completions, answer):
    return [float(a == c) for a, c in zip(answer, completions)]

def all_columns(prompts, completions, **columns):
    return [len(columns)] * len(prompts)

def needs_level(prompts, completions, level):
    return [0.0] * len(prompts)

def without(texts):
    return [0.0] * len(texts)

number = 3
"""


def scorers(folder, name, columns=("answer",)):
    (folder / "reward_lab.py").write_text(MODULE)
    c = config_lib.new_config()
    with c.unlocked():
        c.python_path = str(folder)
    entry = tasks.Reward("function", f"reward_lab:{name}")
    return rewards.build({"mine": entry}, columns, c)


def test_a_function_gets_the_columns_that_it_names(tmp_path):
    given = ["p", "q"], ["1", "2"], {"answer": ["1", "1"], "other": [0, 0]}
    columns = ("answer", "other")
    named = rewards.score(scorers(tmp_path, "named", columns), *given, 1)
    np.testing.assert_array_equal(named, [[1], [0]])
    everything = rewards.score(scorers(tmp_path, "all_columns", columns), *given, 1)
    np.testing.assert_array_equal(everything, [[2], [2]])


@pytest.mark.parametrize(
    "name, words",
    [
        ("needs_level", "has the parameters (prompts, completions, level), but it is called with"),
        ("without", "has the parameters (texts)"),
        ("namd", "has no function 'namd'. Did you mean 'named'?"),
        ("number", "has no function 'number'"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(tmp_path, name, words):
    with pytest.raises(UserError) as e:
        scorers(tmp_path, name)
    assert words in str(e.value)


def test_keys_that_a_resumed_run_may_change():
    c = helpers.filled(config())
    may = modules.declared(c, "MAY_CHANGE")
    assert "task.rewards.*" in may and "task.samples" not in may and "task.updates" not in may
