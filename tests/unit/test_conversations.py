"""Conversations as batches, and the task that learns their answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.data import conversations
from bigjax.data.tokenizers import tokenizer_json
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from tests import chats, helpers, published_tokenizers
from tests.chats import turn
from tests.unit.test_conversation_rows import section, write

BYTES = Bytes()
ROWS = [
    {
        "messages": [
            turn("user", f"q{i}" + "é" * (i % 4)),
            turn("assistant", f"a{i * i}"),
            turn("user", "and?"),
            turn("assistant", "b" * (i % 7 + 1)),
        ]
    }
    for i in range(40)
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("chats") / "a.jsonl", ROWS)


def load(train="", **values):
    lines: list[str] = []
    given = {"chat_template": "plain", "seq_len": 128, "valid_fraction": 0.2, **values}
    data = section(train=train, tokenizer={"kind": "bytes"}, test_fraction=0.0, **given)
    return conversations.load_conversations(data, log=lines.append), lines


def text_of(row) -> str:
    names = {"user": "User", "assistant": "Assistant"}
    return "".join(f"{names[m['role']]}: {m['content']}\n" for m in row["messages"])


def answers_of(row) -> list[str]:
    return [f" {m['content']}" for m in row["messages"] if m["role"] == "assistant"]


@pytest.mark.parametrize("packing", [True, False])
def test_rows_hold_each_conversation_once_with_weights_on_the_answers(file, packing):
    data, _ = load(file, packing=packing)
    batches = data.split("train", 4, shuffle=False)
    seen = []
    for step in range(batches.n_batches):
        batch = batches.batch_at(step)
        assert {x.shape for x in batch.values()} == {(4, 128)}
        segments = batch.get("segment_ids", (batch["inputs"] != BYTES.pad_id).astype(int))
        for b, row in enumerate(segments):
            for segment in range(1, row.max() + 1):
                at = np.flatnonzero(row == segment)
                assert (np.diff(at) == 1).all()
                inputs, targets = batch["inputs"][b, at], batch["targets"][b, at]
                assert inputs[0] == BYTES.bos_id and (inputs[1:] == targets[:-1]).all()
                if packing:
                    assert batch["positions"][b, at].tolist() == list(range(len(at)))
                learned = targets[batch["weights"][b, at] > 0]
                assert (learned == BYTES.eos_id).sum() == 2
                seen.append((BYTES.decode(targets), BYTES.decode(learned)))
        assert (batch["weights"][segments == 0] == 0).all()
    rows = data.rows("train")
    want = [(text_of(row), "".join(answers_of(row))) for row in rows]
    assert sorted(seen) == sorted(want)
    shuffled = data.split("train", 4, seed=3)
    assert shuffled.batch_at(0)["inputs"].tolist() != batches.batch_at(0)["inputs"].tolist()
    assert len(batches.examples_at(0)) >= 4


def test_evaluation_has_each_conversation_once_with_its_prompt_and_reference(file):
    data, lines = load(file)
    n = len(data.rows("valid"))
    assert 0 < n < 20 and any(f"{n} conversations" in line for line in lines)
    batches = data.split("valid", 2)
    total = sum(float(batches.batch_at(i)["weights"].sum()) for i in range(batches.n_batches))
    assert total == data.examples["valid"].learned.sum()
    for row, prompt, reference in zip(
        data.rows("valid"), data.inputs("valid"), data.references("valid")
    ):
        before = {"messages": row["messages"][:-1]}
        assert BYTES.decode(prompt) == text_of(before) + "Assistant:" and prompt[0] == BYTES.bos_id
        assert reference == f" {row['messages'][-1]['content']}"
    assert data.end_id == BYTES.eos_id


def test_only_the_last_answer_is_learned_on_request(file):
    data, _ = load(file, train_on="last")
    chats_ = data.examples["train"]
    for i, row in enumerate(data.rows("train")):
        part = slice(chats_.offsets[i], chats_.offsets[i + 1])
        learned = chats_.tokens[part][chats_.learned[part]]
        assert BYTES.decode(learned) == answers_of(row)[-1] and learned[-1] == BYTES.eos_id
    assert data.fingerprint != load(file)[0].fingerprint
    with pytest.raises(UserError, match="data.train_on is 'first'; allowed: all, last"):
        conversations.Config(train_on="first")


# --- Lengths ----------------------------------------------------------------------------------

LONG = [
    {"messages": [turn("user", "q"), turn("assistant", "a")] * 3 + [turn("user", "x")]},
    {"messages": [turn("user", "q"), turn("assistant", "a" * 90)]},
    {"messages": [turn("user", "q" * 90), turn("assistant", "a")]},
    {
        "messages": [
            turn("user", "q"),
            turn("assistant", "a"),
            turn("user", "q" * 90),
            turn("assistant", "b"),
        ]
    },
]


def test_long_conversations_are_refused(tmp_path):
    for rows, message in (
        (LONG[1:2], r"a.jsonl:1: the conversation is 112 tokens long and 41 are"),
        (LONG[2:3], r"a.jsonl:1: the conversation \(its first prompt alone has \d+ tokens\) is"),
    ):
        with pytest.raises(UserError, match=message):
            load(write(tmp_path / "a.jsonl", rows), seq_len=40, valid_fraction=0.0)


def test_truncation_leaves_out_complete_turns_and_counts(tmp_path):
    path = write(tmp_path / "a.jsonl", LONG)
    data, lines = load(path, seq_len=40, valid_fraction=0.0, truncate=True)
    kept = [row["messages"] for row in data.rows("train")]
    assert kept == [LONG[0]["messages"][:2], LONG[3]["messages"][:2]]
    assert len(data.examples["train"]) == 2
    assert any("the last turns of 2 of 4 conversations, longer than" in line for line in lines)
    assert any("2 of 4 conversations left out" in line for line in lines)
    exact = len("User: q\nAssistant: a\n") + 2  # with bos and eos
    data, _ = load(path, seq_len=exact - 1, valid_fraction=0.0, truncate=True)
    assert len(data.examples["train"]) == 2
    with pytest.raises(UserError, match="none of the 4 conversations fits in data.seq_len=21"):
        load(path, seq_len=exact - 2, valid_fraction=0.0, truncate=True)[0].split("train", 1)


# --- Several sources --------------------------------------------------------------------------


def test_several_sources_have_weights(tmp_path):
    make = lambda name, n: [
        {"messages": [turn("user", f"{name}{i}"), turn("assistant", name)]} for i in range(n)
    ]
    mixture = {x: write(tmp_path / f"{x}.jsonl", make(x, 30)) for x in ("a", "b", "c")}
    options = dict(mixture=mixture, packing=False, valid_fraction=0.1)
    data, _ = load(**options, weights={"a": 3.0})
    batches = data.split("train", 5)
    counts = dict.fromkeys(mixture, 0)
    for step in range(30):
        batch = batches.batch_at(step)
        for row, weights in zip(batch["targets"], batch["weights"]):
            counts[BYTES.decode(row[weights > 0]).strip()] += 1
    assert counts == {"a": 90, "b": 30, "c": 30}
    valid = data.split("valid", 4)
    assert valid.n_examples == len(data.rows("valid")) > 3
    packed, _ = load(**{**options, "packing": True})
    assert packed.fingerprint != data.fingerprint
    for name in packed.split("train", 2).examples_at(0):
        assert name.startswith("train:")


# --- The task ---------------------------------------------------------------------------------


def config_of(file, **data):
    c = config_lib.new_config()
    c.model = dict(name="gpt", vocab_size=304, max_len=128, d_model=16, n_layers=1, n_heads=2)
    c.task = dict(name="sft")
    given = dict(chat_template="plain", seq_len=128, valid_fraction=0.2, test_fraction=0.0)
    given["tokenizer"] = dict(kind="bytes")
    c.data = dict(name="conversations", train=file, **given | data)
    return helpers.filled(c)


def test_the_loss_is_the_mean_over_learned_tokens_however_the_rows_are_split(file):
    config = config_of(file)
    task = tasks.build(config)
    data = task.load_data(lambda line: None, None, splits=["train"])
    batch = data.split("train", 4).batch_at(0)
    shapes = task.batch_shapes(4, 0)
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in shapes.items()
    }
    params = task.init(jax.random.key(0))["params"]
    parts = [{k: jnp.asarray(x[i : i + 1]) for k, x in batch.items()} for i in range(4)]
    whole = {k: jnp.asarray(x) for k, x in batch.items()}
    loss = jax.jit(lambda b: task.loss(params, {}, {}, b, jax.random.key(0), False))
    (total, weight), (metrics, _) = loss(whole)
    assert weight == batch["weights"].sum() > 0
    sums = [loss(part)[0] for part in parts]
    np.testing.assert_allclose(sum(s for s, _ in sums), total, rtol=1e-5)
    assert sum(w for _, w in sums) == weight and {*metrics} == {"nll", "accuracy"}
    # What is not learned does not count.
    other = {**whole, "targets": jnp.where(whole["weights"] > 0, whole["targets"], 7)}
    np.testing.assert_allclose(loss(other)[0][0], total, rtol=1e-6)


def test_a_run_keeps_its_template(file, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(chats.CHATML)
    folder = published_tokenizers.write("qwen", tmp_path / "qwen")
    tokenizer = dict(kind="tokenizer_json", path=str(folder))
    config = config_of(file, chat_template=str(path), tokenizer=tokenizer)
    config.model.vocab_size = 600
    tasks.resolve(config)
    assert config.task.chat_template == chats.CHATML
    path.unlink()
    data = tasks.build(config).load_data(lambda line: None, tokenizer_json.load(folder))
    assert data.template.marked and data.end_id == data.tokenizer.special["<|im_end|>"]


def test_a_task_that_needs_conversations():
    with pytest.raises(UserError, match="needs data with load_conversations, such as data.name='c"):
        c = helpers.load_config("tests/tiny.py")
        c.task = dict(name="sft")
        tasks.build(helpers.filled(c))
