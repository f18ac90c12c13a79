"""Training on rollouts: it resumes exactly, and a reward that fails loses nothing."""

import json
import pathlib
import re

import pytest

from bigjax import main
from tests import helpers
from tests.conftest import write_table

pytestmark = pytest.mark.usefixtures("one_device")
CONFIG = pathlib.Path(__file__).parent.parent / "tiny_grpo.py"

REWARDS = """
import pathlib

CALLS = []


def fails(prompts, completions):
    CALLS.append(1)
    if len(CALLS) % 3 == 0 and pathlib.Path({flag!r}).exists():
        raise ValueError("no such word")
    return [float(len(text)) for text in completions]


def lazy(prompts, completions):
    CALLS.append(1)
    for text in completions:  # raises when it is iterated
        if len(CALLS) % 3 == 0 and pathlib.Path({flag!r}).exists():
            raise TypeError("no such word")
        yield float(len(text))


def bad(prompts, completions):
    return {values}
"""


def train(workdir, *flags) -> int:
    return main.main(["train", f"--config={CONFIG}", f"--workdir={workdir}", *flags])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run of 4 steps."""
    folder = tmp_path_factory.mktemp("done")
    assert train(folder / "run") == 0
    return folder / "run"


def samples(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]


def test_a_resumed_run_is_the_same(done, tmp_path, capsys):
    assert train(tmp_path / "run", "--config.train.steps=2") == 0
    assert {row["step"] for row in samples(tmp_path / "run")} == {1, 2}
    with (tmp_path / "run" / "samples.jsonl").open("a") as f:
        f.write('{"step": 3}\n')  # of a run that was killed before it saved
    assert train(tmp_path / "run") == 0
    assert "Resuming from step 2" in capsys.readouterr().out
    assert helpers.read_metrics(tmp_path / "run") == helpers.read_metrics(done)
    assert samples(tmp_path / "run") == samples(done)
    saved = helpers.saved_checksums(tmp_path / "run", 4)
    assert saved == helpers.saved_checksums(done, 4)


@pytest.mark.slow
def test_ppo_starts_from_a_model_without_values_and_exports_one(done, tmp_path, capsys):
    config = f"--config={CONFIG}:ppo"
    flags = [f"--config.init_from={done}", "--config.task.beta=0.1", "--config.train.steps=1"]
    assert main.main(["train", config, f"--workdir={tmp_path / 'run'}", *flags]) == 0
    assert re.search(r"new +value +2 ", capsys.readouterr().out)
    metrics = helpers.read_metrics(tmp_path / "run")[-1]
    assert metrics["value_loss"] > 0 and {"policy_loss", "kl"} <= {*metrics}
    generate = [f"--workdir={tmp_path / 'run'}", "--prompt=Hi", "--max_tokens=3"]
    assert main.main(["generate", *generate]) == 0
    # A model of that family has no such head: init_from shows it as unused.
    flags[0] = f"--config.init_from={tmp_path / 'run'}"
    assert train(tmp_path / "back", *flags[:1], "--config.train.steps=1") == 0
    assert re.search(r"unused +value +2 ", capsys.readouterr().out)


def test_samples_have_prompts_completions_and_rewards(done):
    rows = samples(done)
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [4] * 4
    for row in rows:
        assert row["prompt"].startswith("Sort: ") and len(row["completions"]) == 4
        assert {name: len(x) for name, x in row["rewards"].items()} == {"letters": 4, "short": 4}
        first = row["completions"][0]
        assert row["rewards"]["short"][0] == pytest.approx(1 - len(first.encode()) / 10)
    metrics = helpers.read_metrics(done)[-1]
    total = 2 * metrics["rewards/letters"] + metrics["rewards/short"]
    assert metrics["reward"] == pytest.approx(total, rel=1e-5)


def config_with(folder, name, values="[0.0] * 4"):
    """The config with one reward, of a module in the folder."""
    text = REWARDS.format(flag=str(folder / "fail"), values=values)
    (folder / "my_rewards.py").write_text(text)
    config = CONFIG.read_text()
    begin, end = config.index("        rewards=dict("), config.index("        samples=")
    mine = f'        rewards=dict(mine=dict(kind="function", path="my_rewards:{name}")),\n'
    (folder / "mine.py").write_text(config[:begin] + mine + config[end:])
    return f"--config={folder / 'mine.py'}"


def run(workdir, config, *flags) -> int:
    return main.main(["train", config, f"--workdir={workdir}", *flags])


@pytest.mark.parametrize("name, error", [("fails", "ValueError"), ("lazy", "TypeError")])
def test_a_reward_that_raises_is_shown_and_loses_nothing(tmp_path, capsys, name, error):
    config = config_with(tmp_path, name)
    assert run(tmp_path / "whole", config, "--config.train.steps=3") == 0
    flags = ["--config.train.steps=3", "--config.checkpoint.every=100"]
    (tmp_path / "fail").touch()
    capsys.readouterr()
    assert run(tmp_path / "run", config, *flags) == 2
    out = "".join(capsys.readouterr())
    assert f"The reward 'mine' (config.task.rewards.mine) raised {error} at step 3" in out
    assert f'raise {error}("no such word")' in out and "my_rewards.py" in out
    assert "rewards.py, line" not in out.replace("my_rewards.py", "")
    (tmp_path / "fail").unlink()
    assert run(tmp_path / "run", config, *flags) == 0
    assert "Resuming from step 2" in capsys.readouterr().out
    one, other = (tmp_path / name for name in ("run", "whole"))
    assert helpers.saved_checksums(one, 3) == helpers.saved_checksums(other, 3)
    assert helpers.read_metrics(one) == helpers.read_metrics(other)


@pytest.mark.parametrize(
    "values, words",
    [
        ("[1.0] * 3", "returned 3 rewards for 32 completions at step 1"),
        ("[0.0] * 31 + [float('nan')]", "gave nan at step 1; it must be a finite number"),
        ("[0.0] * 31 + ['good']", "gave 'good' at step 1"),
        ("[1e39] + [0.0] * 31", "gave 1e+39 at step 1"),
        ("7", "returned 7 at step 1; it must return a list"),
        ("[10**400] + [0.0] * 31", "gave 1000000"),
        ("[10**5000] + [0.0] * 31", "gave a value of type int at step 1"),
    ],
)
def test_a_bad_reward_is_named_with_its_completion(tmp_path, capsys, values, words):
    config = config_with(tmp_path, "bad", values)
    assert run(tmp_path / "run", config) == 2
    out = "".join(capsys.readouterr())
    assert words in out and "config.task.rewards.mine" in out and "Traceback" not in out
    if "gave" in words:
        assert "The prompt: 'Sort: " in out and "The completion: '" in out


@pytest.mark.slow
def test_a_classifier_is_a_reward(tmp_path, capsys):
    """Its reward of a text is the probability that `bigjax predict` gives."""
    table = write_table(tmp_path / "rows.tsv", 60)
    flags = [f"--config={helpers.TINY_BERT}:labelled", f"--config.data.train={table}"]
    flags += ["--config.train.steps=5", f"--config.data.cache_dir={tmp_path}"]
    assert main.main(["train", *flags, f"--workdir={tmp_path / 'judge'}"]) == 0
    config = config_with(tmp_path, "bad")
    text = (tmp_path / "mine.py").read_text()
    entry = f'kind="run", path="{tmp_path / "judge"}", label="left"'
    text = text.replace('kind="function", path="my_rewards:bad"', entry)
    (tmp_path / "mine.py").write_text(text)
    assert run(tmp_path / "run", config, "--config.train.steps=1") == 0
    rows = samples(tmp_path / "run")
    texts = [text for row in rows for text in row["completions"]]
    given = [score for row in rows for score in row["rewards"]["mine"]]
    kept = [(t, s) for t, s in zip(texts, given) if t.strip()]
    lines = [json.dumps({"text": text}) for text, _ in kept]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    places = [f"--input={tmp_path / 'texts.jsonl'}", f"--output={tmp_path / 'out.jsonl'}"]
    assert main.main(["predict", f"--workdir={tmp_path / 'judge'}", *places]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = [row["probabilities"]["left"] for row in rows]
    assert [score for _, score in kept] == pytest.approx(expected, abs=1e-5) and len(kept) > 8
    capsys.readouterr()
    (tmp_path / "mine.py").write_text(text.replace('label="left"', 'label="up"'))
    assert run(tmp_path / "other", config, "--config.train.steps=1") == 2
    assert "label is 'up'; the labels of" in "".join(capsys.readouterr())
