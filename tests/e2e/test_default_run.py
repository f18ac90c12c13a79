"""The first run of a new user, as it is."""

import re

import pytest

from tests import helpers


@pytest.mark.slow
def test_bare_train_learns_the_docstrings(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.chdir(tmp_path)
    code, out, err = helpers.run("train", timeout=600)
    assert code == 0, err
    assert out.count("Return the") == 2  # a sample before, a sample after
    numbers = helpers.read_metrics(tmp_path / "runs" / "gpt-docstrings")
    losses = [m["eval/valid/loss"] for m in numbers if "eval/valid/loss" in m]
    assert losses[0] > 7.5 and losses[-1] < 4.8
    assert re.search(r"Wrote runs/gpt-docstrings: checkpoints/600, metrics.jsonl", out)
