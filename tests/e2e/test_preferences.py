"""Preferences from the command line: trained, resumed, scored, and a reward model."""

import json

import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import main
from bigjax.tasks import Reward
from bigjax.train import reward_model
from bigjax.train import rewards as rewards_lib
from tests import helpers
from tests.chats import turn
from tests.conftest import on_one_device
from tests.unit.test_conversation_rows import write

MODEL = dict(name="gpt", vocab_size=264, max_len=64, d_model=16, n_layers=1, n_heads=2, scan=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    ask = lambda i: f"{i}?"
    chats = [{"prompt": ask(i), "completion": f"yes {i}"} for i in range(24)]
    pairs = [
        {"prompt": ask(i), "chosen": f"yes {i}", "rejected": f"no{i}", "id": i} for i in range(24)
    ]
    ratings = [
        {"prompt": ask(i), "completion": f"{'yes' if i % 2 else 'no'} {i}", "label": bool(i % 2)}
        for i in range(24)
    ]
    named = {"chats": chats, "pairs": pairs, "ratings": ratings}
    return {name: write(folder / f"{name}.jsonl", rows) for name, rows in named.items()}


@pytest.fixture(scope="module")
def call(compiled_programs):
    """call(command, *flags): the exit code, on one device."""

    def run(command, *flags):
        with on_one_device(compiled_programs):
            return main.main([command, *map(str, flags)])

    return run


@pytest.fixture(scope="module")
def train(call, files, tmp_path_factory):
    """train(folder, task, data, **keys): the exit code of 4 steps."""
    config = tmp_path_factory.mktemp("config") / "small.py"
    config.write_text(
        "from bigjax import config\n\n\ndef get_config(variant=''):\n"
        "    c = config.new_config()\n"
        f"    c.model = {MODEL}\n"
        "    c.train.steps, c.train.batch_size, c.checkpoint.every = 4, 4, 2\n"
        "    c.log.every, c.log.tensorboard = 1, False\n"
        "    c.optim.learning_rate, c.optim.schedule = 1e-2, 'constant'\n"
        "    c.optim.warmup_steps = 0\n"
        "    c.evals = dict(valid=dict(kind='loss', every=4))\n"
        "    data = variant or 'preferences'\n"
        "    c.task = dict(name='sft' if variant else 'preference')\n"
        "    c.data = dict(name=data, chat_template='plain', seq_len=48, valid_fraction=0.3,\n"
        "                  test_fraction=0.0, tokenizer=dict(kind='bytes'))\n"
        "    if variant:\n        c.data.packing = False\n"
        "    return c\n"
    )

    def run(folder, data, *flags):
        kind = ":conversations" if data == files["chats"] else ""
        common = f"--config={config}{kind}", f"--workdir={folder}", f"--config.data.train={data}"
        return call("train", *common, *flags)

    return run


@pytest.fixture(scope="module")
def sft(train, files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft") / "run"
    assert train(folder, files["chats"]) == 0
    return folder


def losses(folder) -> list[float]:
    return [m["loss"] for m in helpers.read_metrics(folder) if "loss" in m]


def test_pairs_resumed_and_from_stored_log_probabilities(call, train, files, sft, tmp_path):
    start = f"--config.init_from={sft}"
    assert train(tmp_path / "a", files["pairs"], start) == 0
    lines = helpers.read_metrics(tmp_path / "a")
    own = losses(tmp_path / "a")
    assert own[0] == pytest.approx(np.log(2), abs=1e-6) and own[3] < own[0]
    accuracy = [m["eval/valid/accuracy"] for m in lines if "eval/valid/accuracy" in m]
    assert accuracy[0] == 0.0 and len(accuracy) == 2  # at the reference no reward is larger
    # Two steps, and two more, give the same bits.
    two = tmp_path / "two"
    assert train(two, files["pairs"], start, "--config.train.steps=2") == 0
    assert train(two, files["pairs"], start) == 0
    saved = helpers.saved_checksums
    assert saved(two, 4) == saved(tmp_path / "a", 4)
    scored = tmp_path / "scored.jsonl"
    flags = f"--workdir={sft}", f"--input={files['pairs']}", f"--output={scored}"
    assert call("score", *flags) == 0
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    assert [row["id"] for row in rows] == [*range(24)] and rows[3]["chosen"] == "yes 3"
    assert all(row["reference_chosen"] < 0 and row["reference_rejected"] < 0 for row in rows)
    stored = start, "--config.task.reference=data"
    assert train(tmp_path / "b", scored, *stored) == 0
    np.testing.assert_allclose(losses(tmp_path / "b"), own, atol=1e-6)


def test_a_reference_with_another_tokenizer_is_refused(train, files, sft, tmp_path, capsys):
    other = "--config.data.tokenizer.kind=wordpiece", "--config.data.tokenizer.vocab_size=60"
    flags = *other, f"--config.data.cache_dir={tmp_path}", f"--config.task.reference={sft}"
    assert train(tmp_path / "run", files["pairs"], *flags) == 2
    err = capsys.readouterr().err
    assert "The parameters of the reference=" in err and "another vocabulary (bytes, " in err
    assert "set task.reference to a model with this run's tokenizer" in err
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_ratings_from_stored_log_probabilities(call, train, files, sft, tmp_path, capsys):
    scored = tmp_path / "scored.jsonl"
    flags = f"--workdir={sft}", f"--input={files['ratings']}", f"--output={scored}"
    assert call("score", *flags) == 0
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    assert all(row["mismatched"] != row["completion"] for row in rows)
    common = f"--config.init_from={sft}", "--config.task.loss=kto"
    assert train(tmp_path / "a", scored, *common) == 0
    assert train(tmp_path / "b", scored, *common, "--config.task.reference=data") == 0
    own = losses(tmp_path / "a")
    assert own[0] == pytest.approx(0.5, abs=1e-6) and own[1] < own[0]
    np.testing.assert_allclose(losses(tmp_path / "b"), own, atol=1e-6)
    capsys.readouterr()
    assert call("score", *flags[:1], f"--input={scored}", f"--output={tmp_path / 'c.jsonl'}") == 2
    assert "already has the column 'reference_completion'" in capsys.readouterr().err
    assert call("score", *flags[:2], f"--output={tmp_path / 'c.tsv'}") == 2
    assert "has to end in .jsonl" in capsys.readouterr().err


def test_a_reward_model_from_a_chat_model(call, train, files, sft, tmp_path, compiled_programs):
    flags = f"--config.init_from={sft}", "--config.task.name=reward", "--config.train.steps=12"
    assert train(tmp_path / "r", files["pairs"], *flags, "--config.checkpoint.every=12") == 0
    lines = helpers.read_metrics(tmp_path / "r")
    accuracy = [m["eval/valid/accuracy"] for m in lines if "eval/valid/accuracy" in m]
    assert accuracy[-1] == 1.0
    with on_one_device(compiled_programs):
        model = reward_model.open_run(str(tmp_path / "r"))
        rewards = model([[turn("user", "3?")]] * 2, ["yes 3", "no3"])
        named = {"judge": Reward("run", str(tmp_path / "r"))}
        scorer = rewards_lib.build(named, [], config_lib.new_config())
        again = rewards_lib.score(scorer, ["3?", [turn("user", "3?")]], ["yes 3", "no3"], {}, 1)
    assert rewards[0] > rewards[1]
    np.testing.assert_allclose(again[:, 0], rewards, atol=1e-6)
    more = f"--input={files['pairs']}", f"--output={tmp_path / 'x.jsonl'}"
    assert call("score", f"--workdir={tmp_path / 'r'}", *more) == 2
