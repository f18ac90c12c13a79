"""Every config's :tiny variant trains, on the text that every install carries."""

import pytest

from bigjax import config, main
from tests import helpers


@pytest.mark.parametrize("path", config.config_files(), ids=lambda p: p.stem)
def test_tiny(path, tmp_path, cache_dir, capsys):
    arguments = ["train", f"--config={path}:tiny", f"--workdir={tmp_path}/run",
                 f"--config.data.cache_dir={cache_dir}"]
    assert main.main(arguments) == 0, capsys.readouterr().err
    of = lambda name: [m[name] for m in helpers.read_metrics(tmp_path / "run") if name in m]
    losses = of("loss") or of("generator/loss")[:2]  # SeqGAN's first two rounds: MLE
    assert losses[-1] < losses[0] - 0.1
