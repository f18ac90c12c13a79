"""Preferences as batches: pairs, ratings with answers to other prompts, lengths."""

import numpy as np
import pytest

from bigjax.data import preferences
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.errors import UserError
from tests.unit.test_conversation_rows import write
from tests.unit.test_preference_rows import section

BYTES = Bytes()
PAIRS = [
    {"prompt": f"q{i}", "chosen": f"yes{i}", "rejected": "no" * (i % 5 + 1), "margin": i / 4}
    for i in range(30)
]
RATINGS = [
    {"prompt": f"q{i}", "completion": f"a{i * i}", "label": i % 3 == 0, "reference_completion": -i}
    for i in range(30)
]


def load(train="", form="pairs", with_reference=False, **values):
    lines: list[str] = []
    given = {"chat_template": "plain", "seq_len": 48, "valid_fraction": 0.0, **values}
    data = section(train=train, tokenizer={"kind": "bytes"}, test_fraction=0.0, **given)
    loaded = preferences.load_preferences(
        data, form, with_reference=with_reference, log=lines.append
    )
    return loaded, lines


def row_texts(batch, at, prefix=""):
    """(the text of a row, of what is weighted)."""
    weights = batch[f"{prefix}weights"][at] > 0
    inputs, targets = batch[f"{prefix}inputs"][at], batch[f"{prefix}targets"][at]
    n = int((inputs != BYTES.pad_id).sum())
    assert (inputs[1:n] == targets[: n - 1]).all() and (targets[n - 1 :] == BYTES.pad_id).all()
    assert targets[weights][-1] == BYTES.eos_id and not weights[n:].any()
    return BYTES.decode(inputs), BYTES.decode(targets[weights])


def test_pairs_hold_each_row_once_with_weights_on_the_answers(tmp_path):
    path = write(tmp_path / "a.jsonl", PAIRS)
    data, lines = load(path, valid_fraction=0.3)
    n_valid = len(data.rows("valid"))
    assert 3 < n_valid < 15 and any(f"{30 - n_valid} pairs" in line for line in lines)
    for split in ("train", "valid"):
        batches, seen = data.split(split, 4, shuffle=False), []
        for step in range(batches.n_batches):
            batch = batches.batch_at(step)
            assert batch["inputs"].shape == (4, 2, 48) and {*batch} == {
                *("inputs", "targets", "weights", "lengths", "margin")
            }
            for b in range(4):
                if not batch["lengths"][b].any():  # the rows after the last one
                    assert not batch["weights"][b].any()
                    continue
                assert (batch["lengths"][b] == (batch["inputs"][b] != BYTES.pad_id).sum(-1)).all()
                (text, good), (other, bad) = (row_texts(batch, (b, j)) for j in (0, 1))
                row = next(r for r in PAIRS if text.startswith(f"User: {r['prompt']}\n"))
                assert text == f"User: {row['prompt']}\nAssistant: {row['chosen']}\n"
                assert good == f" {row['chosen']}" and bad == f" {row['rejected']}"
                assert other == f"User: {row['prompt']}\nAssistant:{bad}\n"
                assert batch["margin"][b] == np.float32(row["margin"])
                seen.append(row["prompt"])
        assert sorted(seen) == sorted(r["messages"][0]["content"] for r in data.rows(split))
    train = data.split("train", 4, seed=1)
    part = train.batch_at(7, slice(1, 3))
    for name, x in train.batch_at(7).items():
        np.testing.assert_array_equal(part[name], x[1:3])
    assert len(train.examples_at(7)) == 4 and data.end_id == BYTES.eos_id
    assert BYTES.decode(data.prompt_ids("so?")) == "User: so?\nAssistant:"
    assert load(path)[0].fingerprint != data.fingerprint


def test_each_rating_has_an_answer_to_another_prompt(tmp_path):
    data, _ = load(write(tmp_path / "a.jsonl", RATINGS), "ratings")
    answer = {r["prompt"]: f" {r['completion']}" for r in RATINGS}
    others = {}
    for seed in (1, 2):
        batches, pairs = data.split("train", 5, seed=seed), {}
        for step in range(12):  # two epochs
            batch = batches.batch_at(step)
            for b in range(5):
                text, own = row_texts(batch, b)
                mismatched, other = row_texts(batch, b, "kl_")
                prompt = text.split("\n")[0].removeprefix("User: ")
                assert own == answer[prompt] and other != own
                assert mismatched == f"User: {prompt}\nAssistant:{other}\n"
                assert batch["label"][b] == (int(prompt[1:]) % 3 == 0)
                assert pairs.setdefault(prompt, other) == other  # of the data, not of the step
        assert sorted(pairs.values()) == sorted(answer.values())
        others[seed] = pairs
    assert others[1] != others[2]


def test_log_probabilities_of_the_reference_are_required(tmp_path):
    rows = [
        {**r, "mismatched": f"m{i}", "reference_mismatched": -0.5} for i, r in enumerate(RATINGS)
    ]
    data, _ = load(write(tmp_path / "a.jsonl", rows), "ratings", True)
    batch = data.split("train", 30, shuffle=False).batch_at(0)
    np.testing.assert_array_equal(batch["reference"], -np.arange(30))
    assert (batch["kl_reference"] == -0.5).all()
    assert [row_texts(batch, b, "kl_")[1] for b in range(3)] == [" m0", " m1", " m2"]
    assert "reference" not in load(write(tmp_path / "a.jsonl", rows), "ratings")[0].split(
        "train", 2
    ).batch_at(0)
    with pytest.raises(UserError, match=r"a.jsonl:1: .*'reference_mismatched'; 30 of 30 rows lack"):
        load(write(tmp_path / "a.jsonl", RATINGS), "ratings", True)
    scored = [{**r, "reference_chosen": -1, "reference_rejected": -2} for r in PAIRS]
    data, _ = load(write(tmp_path / "b.jsonl", scored), with_reference=True)
    assert (data.split("train", 2).batch_at(0)["reference"] == [-1, -2]).all()
    del scored[3]["reference_rejected"]
    with pytest.raises(UserError, match=r"b.jsonl:4: .*bigjax score"):
        load(write(tmp_path / "b.jsonl", scored), with_reference=True)


LONG = [
    {"prompt": "q", "chosen": "a" * 60, "rejected": "b"},
    {"prompt": "q" * 60, "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": "a" * 60 + "x", "rejected": "a" * 60 + "y"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
]


def test_long_rows_are_refused_or_cut(tmp_path):
    path = write(tmp_path / "a.jsonl", LONG[:1])
    with pytest.raises(
        UserError, match=r"a.jsonl:1: the conversation is 8. tokens long and 40 are"
    ):
        load(path, seq_len=40)
    path = write(tmp_path / "a.jsonl", LONG)
    with pytest.raises(UserError, match=r"a.jsonl:2: the prompt has 78 tokens .* no room for"):
        load(path, seq_len=40)
    data, lines = load(path, seq_len=40, truncate=True)
    assert [row["where"][-1] for row in data.rows("train")] == ["1", "4"]
    batch = data.split("train", 2, shuffle=False).batch_at(0)
    assert batch["lengths"].tolist() == [[40, 23], [23, 23]]
    text = "\n".join(lines)
    for words in (
        "3 of 4 conversations are truncated",
        "1 of 4 rows left out: the prompt",
        "equal",
    ):
        assert words in text
    with pytest.raises(UserError, match="none of the 1 prompts leaves room for an answer"):
        load(write(tmp_path / "a.jsonl", LONG[1:2]), seq_len=40, truncate=True)


def test_several_sources_have_weights(tmp_path):
    make = lambda name: [
        {"prompt": f"{name}{i}", "chosen": name, "rejected": "x"} for i in range(20)
    ]
    mixture = {x: write(tmp_path / f"{x}.jsonl", make(x)) for x in "ab"}
    data, _ = load(mixture=mixture, weights={"a": 3.0})
    batches, counts = data.split("train", 4), dict.fromkeys("ab", 0)
    for step in range(20):
        batch = batches.batch_at(step)
        for b in range(4):
            counts[row_texts(batch, (b, 0))[1].strip()] += 1
    assert counts == {"a": 60, "b": 20}
