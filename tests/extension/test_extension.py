"""The modules of tests/extension train, resume after a kill, evaluate, generate and are planned."""

import json
import pathlib
import random
import re
import shutil
import time

import jax
import numpy as np
import pytest

from bigjax import config as config_lib
from bigjax import tasks
from bigjax.arguments import Arguments
from bigjax.data.tokenizers.bytes import Bytes
from bigjax.parallel import mesh as mesh_lib
from bigjax.train import frozen, stages
from bigjax.train import load as load_lib
from bigjax.train import program as program_lib
from bigjax.train import workdir as workdir_lib
from tests import helpers

HERE = pathlib.Path(__file__).parent
NAMES = ("vision", "translate", "distil", "experts", "conv", "lora", "table", "poems")
UNITS = {"vision": "images", "table": "examples"}  # the others have tokens


@pytest.fixture(scope="module")
def flags(tmp_path_factory, corpus_file, cache_dir, tiny_flags):
    """{name: flags of its run}."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdef", k=rng.randint(2, 5))) for _ in range(300)]
    (folder / "pairs.txt").write_text("".join(f"{w}\t{w[::-1]}\n" for w in words))
    x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    rows = np.column_stack([x, np.sin(2 * x[:, 0]) + x[:, 1]])
    (folder / "table.csv").write_text("a,b,y\n" + "\n".join(",".join(map(str, r)) for r in rows))
    lines = [" ".join(rng.choices(words[:40], k=8)) for _ in range(400)]
    (folder / "poems.csv").write_text("line,year\n" + "".join(f"{x},1900\n" for x in lines))
    teacher = folder / "teacher"
    code, _, err = helpers.run(
        "train", *tiny_flags, f"--workdir={teacher}", "--config.train.steps=10"
    )
    assert code == 0, err
    text = [
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
    ]
    given = {
        "vision": [],
        "translate": [f"--config.data.path={folder}/pairs.txt"],
        "distil": [*text, f"--config.task.teacher={teacher}"],
        "experts": text,
        "conv": text,
        "lora": [*text, "--config.optim.freeze="],  # all parameters, from scratch
        "table": [f"--config.data.path={folder}/table.csv"],
        "poems": [
            f"--config.data.sources.poems.path={folder}/poems.csv",
            f"--config.data.cache_dir={cache_dir}",
        ],
    }
    return {name: [f"--config={HERE}/{name}.py", *given[name]] for name in NAMES}


@pytest.mark.slow  # tests/e2e/test_own_modules.py is quicker
@pytest.mark.parametrize("name", NAMES)
def test_trained_killed_resumed_and_evaluated(name, flags, tmp_path, monkeypatch):
    """From any folder, with the same numbers on 1 and on 8 devices."""
    monkeypatch.chdir(tmp_path)
    given = [*flags[name], "--config.train.steps=400", "--config.checkpoint.every=100"]
    given.append("--config.evals.valid.every=200")
    code, _, err = helpers.run("train", *given, f"--workdir={tmp_path}/complete", devices=1)
    assert code == 0, err
    process = helpers.command("train", *given, f"--workdir={tmp_path}/killed", devices=1)
    while not (tmp_path / "killed" / "checkpoints" / "100").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "killed" / "checkpoints" / "400").exists()  # killed before its end
    code, out, err = helpers.run("train", *given, f"--workdir={tmp_path}/killed", devices=1)
    assert code == 0 and "from step" in out, (out, err)
    assert helpers.saved_checksums(tmp_path / "complete", 400) == helpers.saved_checksums(
        tmp_path / "killed", 400
    )
    lines = helpers.read_metrics(tmp_path / "complete")
    assert helpers.read_metrics(tmp_path / "killed") == lines
    timed = helpers.read_metrics(tmp_path / "complete", times=True)
    assert any(line.get(f"{UNITS.get(name, 'tokens')}_per_sec", 0) > 0 for line in timed)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.1
    # `eval` gives the last metrics of training, in a process that has not loaded the config file.
    code, out, err = helpers.run("eval", f"--workdir={tmp_path}/complete", "--json", devices=1)
    assert code == 0, err
    last = {k: v for line in lines if line["step"] == 400 for k, v in line.items() if "eval/" in k}
    metrics = json.loads(out.splitlines()[-1])
    assert last and {k: metrics[k] for k in last} == pytest.approx(last, rel=1e-5)
    code, _, err = helpers.run("train", *given, f"--workdir={tmp_path}/eight", devices=8)
    assert code == 0, err
    eight = [line["loss"] for line in helpers.read_metrics(tmp_path / "eight") if "loss" in line]
    np.testing.assert_allclose(eight[:3], losses[:3], rtol=2e-3)
    shutil.rmtree(tmp_path / "eight")


@pytest.mark.parametrize("name", NAMES)
def test_planned_by_shapes(name, flags):
    """Traced for 8 devices, sharded by fsdp and tensor too, without any data."""
    config, _ = Arguments(flags[name]).config()
    with config.unlocked():
        config.mesh.update(data=2, fsdp=2, tensor=2)
    config, _ = stages.resolve(config)
    task = tasks.build(config)
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:8])
    program = program_lib.make(config, task, mesh)
    specs = {str(x.sharding.spec) for x in jax.tree.leaves(program.abstract.params)}
    assert any("fsdp" in s or "tensor" in s for s in specs) or name == "vision", specs
    assert task.unit == UNITS.get(name, "tokens")
    parts = frozen.shapes(task, mesh)
    assert [*parts] == (["teacher"] if name == "distil" else [])
    if name == "experts":
        up = program.abstract.params["stack"]["layers"]["block_1_of_2"]["experts"]["up"]
        assert tuple(up.sharding.spec) == (None, "fsdp", None, "tensor")


@pytest.mark.slow
def test_an_encoder_decoder_generates(flags, tmp_path):
    """Greedy tokens are those of the uncached model; beam search finds a more likely text."""
    workdir = f"--workdir={tmp_path}/run"
    code, _, err = helpers.run("train", *flags["translate"], workdir, devices=1)
    assert code == 0, err
    given = [workdir, "--prompt=abc", "--prompt=deaf", "--max_tokens=6"]
    code, out, err = helpers.run("generate", *given, "--temperature=0", devices=1)
    assert code == 0, err
    written = re.findall("--- . of 2\n(.*)", out)
    config, _ = Arguments([workdir]).config(workdir_lib.read_config(f"{tmp_path}/run"))
    loaded = load_lib.load(f"{tmp_path}/run", config, None, None)
    tokenizer = Bytes()
    total = {}
    for prompt, text in zip(("abc", "deaf"), written):
        source = np.array([[*prompt.encode(), tokenizer.eos_id]])
        target = [256]
        while len(target) < 7 and target[-1] != tokenizer.eos_id:
            given_so_far = np.array([target])
            logits = loaded.task.model.apply({"params": loaded.params}, source, given_so_far)
            target.append(int(logits[0, -1].argmax()))
        log_p = jax.nn.log_softmax(logits[0])[np.arange(len(target) - 1), target[1:]]
        total[prompt] = float(log_p.mean())
        want = tokenizer.decode([t for t in target[1:] if t != tokenizer.eos_id])
        assert text == want, out
    code, out, err = helpers.run("generate", *given, "--beam=4", devices=1)
    assert code == 0, err
    for i, prompt in enumerate(total):
        scores = [float(x) for x in re.findall(rf"--- {i + 1} of 2, score (-[\d.]+)", out)]
        assert len(scores) == 4 and scores == sorted(scores, reverse=True)
        assert scores[0] >= total[prompt] - 0.001


def test_modules_are_imported_from_the_folder_of_the_config(flags):
    c = config_lib.load_file(str(HERE / "table.py"))
    assert c.python_path == str(HERE)
