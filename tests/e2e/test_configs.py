"""Every config's :tiny variant trains, on some of the text that every install carries."""

import pytest

from bigjax import config, main
from tests import helpers

# What the others differ in is tested by itself, and golden resolved configs (test_golden_configs)
# see a default that changes.
QUICK = ("gpt/docstrings",)


@pytest.mark.usefixtures("one_device", "fewer_docstrings")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.slow)
        for name in (f"{path.parent.name}/{path.stem}" for path in config.config_files())
    ],
)
def test_tiny(name, tmp_path, cache_dir, capsys):
    arguments = [
        "train",
        f"--config={helpers.ROOT}/configs/{name}.py:tiny",
        f"--workdir={tmp_path}/run",
        f"--config.data.cache_dir={cache_dir}",
    ]
    assert main.main(arguments) == 0, capsys.readouterr().err
    lines = helpers.read_metrics(tmp_path / "run")
    of = lambda metric: [m[metric] for m in lines if metric in m]
    if rewards := of("reward"):
        assert rewards[0] < 0.2 and rewards[-1] > 0.9
        return
    # Of data that is the same at each step; of the oracle, which has none, two rounds of MLE
    losses = of("eval/valid/loss") or of("eval/test/loss") or of("generator/loss")[:2]
    assert losses[-1] < losses[0] - min(0.1, losses[0] / 10)  # nats, or squares of pixels
