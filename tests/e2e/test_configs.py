"""Every config's :tiny variant trains, on some of the text that every install carries."""

import pytest

from bigjax import config, main
from bigjax.data import docstrings
from tests import helpers


@pytest.fixture(autouse=True)
def less_text(monkeypatch):
    """Every eighth file: reading all takes longer than training. test_default_run, which is slow,
    does."""
    files = docstrings.python_files()[::8]
    monkeypatch.setattr(docstrings, "python_files", lambda: files)


@pytest.mark.parametrize("path", config.config_files(), ids=lambda p: p.stem)
def test_tiny(path, tmp_path, cache_dir, capsys):
    arguments = [
        "train",
        f"--config={path}:tiny",
        f"--workdir={tmp_path}/run",
        f"--config.data.cache_dir={cache_dir}",
    ]
    assert main.main(arguments) == 0, capsys.readouterr().err
    of = lambda name: [m[name] for m in helpers.read_metrics(tmp_path / "run") if name in m]
    # Of data that is the same at each step; of the oracle, which has none, two rounds of MLE
    losses = of("eval/valid/loss") or of("generator/loss")[:2]
    assert losses[-1] < losses[0] - 0.1
