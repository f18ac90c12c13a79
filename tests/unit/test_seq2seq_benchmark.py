"""benchmarks/seq2seq_cpu.py with sides that stand in."""

import json
import sys

import pytest

from tests.unit.test_vision_benchmarks import Side, script


def run(monkeypatch, changed):
    seq2seq_cpu = script(monkeypatch, "seq2seq_cpu")
    monkeypatch.setattr(Side, "changed", changed)
    monkeypatch.setattr(seq2seq_cpu.sides, "Side", Side)
    monkeypatch.setattr(seq2seq_cpu.shutil, "which", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["seq2seq_cpu.py", "--json", "--rounds=3"])
    seq2seq_cpu.main()


def test_the_fastest_form_of_each_counts(monkeypatch, capsys):
    run(monkeypatch, {})
    out = capsys.readouterr().out
    for line in ("train   ratio 4.000 (bar 1.1)", "encode  ratio 4.000", "decode  ratio 4.000"):
        assert line in out
    result = json.loads(out.splitlines()[-1])
    train = {"ours": 1536.0, "theirs": 384.0, "ratio": 4.0, "unit": "tokens/s, train"}
    assert result["jobs"]["train"] == train and result["name"] == "seq2seq_cpu"
    assert result["jobs"]["encode"]["ours"] == 30.0 and result["jobs"]["decode"]["theirs"] == 128.0


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"decode.ours_threads": {"parameters": 4}}, "models differ"),
        ({"train.ours": {"losses": [7.01, 6.0]}}, "losses of the first two steps differ"),
    ],
)
def test_sides_that_do_other_work_are_refused(monkeypatch, changed, words):
    with pytest.raises(SystemExit, match=words):
        run(monkeypatch, changed)
