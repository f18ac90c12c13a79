"""`bigjax evaluate` against the numbers of transformers (see check_evaluate.py)."""

import json
import pathlib

import numpy as np
import pytest

from bigjax import main
from tests.conftest import on_one_device

FROZEN = dict(np.load(pathlib.Path(__file__).parent / "evaluate.npz"))


@pytest.fixture(scope="module", params=["llama3", "qwen"])
def evaluated(request, tmp_path_factory, compiled_programs):
    """(family, results, samples of each task by their name)."""
    root, family = tmp_path_factory.mktemp("evaluate"), request.param
    for name, content in FROZEN.items():
        if name.startswith("file/"):
            path = root / name.removeprefix("file/")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.tobytes())
    flags = [f"--tasks={root / name}.json" for name in ("choices", "examples", "rolling")]
    flags += [f"--output={root / 'out.json'}", f"--samples={root / 'out.jsonl'}"]
    with on_one_device(compiled_programs):
        imported = ["import", f"--from={root / family}", f"--workdir={root / 'run'}"]
        assert main.main(imported) == 0
        assert main.main(["evaluate", f"--workdir={root / 'run'}", *flags]) == 0
    samples: dict[str, list] = {}
    for line in (root / "out.jsonl").read_text().splitlines():
        samples.setdefault(json.loads(line)["task"], []).append(json.loads(line))
    return family, json.loads((root / "out.json").read_text())["results"], samples


@pytest.mark.parametrize("task", ["choices", "examples"])
def test_log_likelihoods_of_choices(evaluated, task):
    family, results, samples = evaluated
    found = [one for sample in samples[task] for one in sample["filtered_resps"]]
    want = lambda key: FROZEN[f"{family}/{task}/{key}"]
    np.testing.assert_allclose([x for x, _ in found], want("log_p"), atol=1e-4)
    assert [greedy for _, greedy in found] == want("greedy").tolist()
    for metric in ("acc", "acc_norm"):
        assert [sample[metric] for sample in samples[task]] == want(metric).tolist()
        assert results[task][f"{metric},none"] == pytest.approx(want(metric).mean())
        error = want(metric).std(ddof=1) / np.sqrt(len(want(metric)))
        assert results[task][f"{metric}_stderr,none"] == pytest.approx(error)


def test_log_likelihoods_of_whole_texts(evaluated):
    family, results, samples = evaluated
    found = [sample["filtered_resps"][0] for sample in samples["rolling"]]
    np.testing.assert_allclose(found, FROZEN[f"{family}/rolling/log_p"], rtol=1e-5)
    (bits,) = FROZEN[f"{family}/rolling/bits_per_byte"]
    assert results["rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
