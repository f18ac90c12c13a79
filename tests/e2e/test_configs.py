"""Every config's :tiny variant trains, on some of the text that every install carries."""

import pytest

from bigjax import config, main
from tests import helpers

# One of each kind of task. What the others differ in is tested by itself, and golden resolved
# configs (test_golden_configs) see a default that changes.
QUICK = ("docstrings", "oracle")


@pytest.mark.usefixtures("one_device", "fewer_docstrings")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
        for path in config.config_files()
    ],
)
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
