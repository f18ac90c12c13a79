"""A work folder that version 0.1.0 wrote: training goes on in it, and its model is used.

It is of `WHOLE` with train.steps=4 on the text that `text` writes, made in a checkout of commit
d0f9ff9; LOSSES are those of steps 5 to 8 of the same command there, with train.steps=8.
"""

import json
import pathlib
import tarfile

import pytest

from bigjax import main
from tests import helpers
from tests.conftest import write_text

pytestmark = pytest.mark.usefixtures("one_device")

WHOLE = [
    f"--config={helpers.TINY}",
    "--config.data.cache_dir=cache",
    "--config.data.sources.text.path=corpus.txt",
    "--config.data.test_fraction=0.3",
    "--config.model.d_model=8",
    "--config.model.n_layers=1",
    "--config.model.n_heads=2",
    "--config.model.d_ff=16",
    "--config.optim.warmup_steps=1",
    "--config.optim.schedule=constant",
    "--config.checkpoint.every=2",
    "--config.checkpoint.keep=1",
    "--config.log.every=1",
    "--config.mesh.data=1",
    "--workdir=run",
]
GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "run_0_1_0.tar.gz"
LOSSES = [5.048117, 4.915928, 4.780886, 4.635509]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open(GOLDEN) as f:
        f.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_training_goes_on_with_the_numbers_of_that_version(run, tmp_path, capsys):
    write_text(tmp_path / "corpus.txt", 12)
    code = main.main(["train", *WHOLE, "--config.train.steps=8"])
    out, err = capsys.readouterr()
    assert code == 0 and "saved by an earlier version" in out and "from step 4" in out, err
    losses = [m["loss"] for m in helpers.read_metrics(run) if m["step"] > 4 and "loss" in m]
    assert losses == pytest.approx(LOSSES, rel=1e-5)
    assert main.main(["train", *WHOLE, "--config.train.steps=9"]) == 0  # it is of this version now
    assert "earlier version" not in capsys.readouterr().out


def test_its_model_is_used_whatever_bounds_its_training_broke(run, capsys):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["seed"] = 2**32
    config["optim"].update(eps=0.0, final_fraction=2.0, weight_decay=-1.0)
    config["train"]["early_stop"]["min_delta"] = -5.0
    path.write_text(json.dumps(config))
    assert main.main(["config", "--workdir=run"]) == 0
    # max_len is 64: there is no room for the 128 tokens that are the default.
    code = main.main(["generate", "--workdir=run", "--prompt=the"])
    assert code == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main.main(["config", "--workdir=run", "--config.seed=-1"]) == 2
    assert "config.seed is -1" in capsys.readouterr().err
