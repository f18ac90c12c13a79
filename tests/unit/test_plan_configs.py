"""Every config is planned on every chip, at full width with two layers. Half an hour or more."""

import importlib.util
import json

import pytest

from bigjax import config
from tests.unit.test_plan import plan

SLICES = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")


def arguments(path) -> list[str]:
    if path.stem == "finetune":  # the others start from a trained run
        return [f"--config={path}:tiny"]
    if path.parent.name == "seqgan":  # small ones may ask for one device
        return [f"--config={path}", "--mesh=data=-1"]
    return [
        f"--config={path}",
        "--config.model.n_layers=2",
        "--config.train.batch_size=16",
        "--config.train.accumulate=1",
    ]


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -e '.[plan]'"
)
@pytest.mark.parametrize("topology", SLICES)
@pytest.mark.parametrize("path", config.config_files(), ids=lambda p: p.stem)
def test_a_config_on_a_chip(path, topology, tmp_path):
    code, out, err = plan(tmp_path, *arguments(path), f"--topology={topology}", "--json")
    assert code == 0 and not err, err
    result = json.loads(out.splitlines()[-1])
    assert result["fits"] and result["flops"] > 0, result
    low, high = result["step_seconds"]
    assert 0 < low <= high and 0 < result["hbm_gib"] < result["hbm_limit_gib"]
