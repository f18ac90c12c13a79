"""A run that is killed 20 times at random moments ends like an uninterrupted one."""

import random
import re
import time

import pytest

from bigjax.train import load
from tests import helpers

KILLS = 20
KEEP = 2


def saved(workdir) -> dict:
    """{step: checksums of all its arrays}."""
    return {
        int(p.name): helpers.saved_checksums(workdir, int(p.name))
        for p in (workdir / "checkpoints").iterdir()
        if p.name.isdigit()
    }


@pytest.mark.slow
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_a_run_killed_twenty_times_gives_the_same_result(
    corpus_file, cache_dir, tmp_path, param_dtype
):
    flags = [
        "train",
        f"--config={helpers.TINY}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        f"--config.train.compilation_cache={tmp_path}/compiled",
        "--config.model.dtype=bfloat16",
        f"--config.model.param_dtype={param_dtype}",
        "--config.train.ema=0.5",
        "--config.train.steps=1000",
        # The loss rises again, so that the best step is long before the latest ones.
        "--config.optim.learning_rate=0.3",
        "--config.optim.warmup_steps=40",
        "--config.checkpoint.every=5",
        f"--config.checkpoint.keep={KEEP}",
        "--config.checkpoint.best=eval/valid/loss",
        "--config.evals.valid.every=5",
        "--config.train.early_stop.metric=eval/valid/loss",
        "--config.train.early_stop.patience=10",
    ]
    started = time.monotonic()
    code, out, err = helpers.run(*flags, f"--workdir={tmp_path}/whole", devices=1, timeout=900)
    life = time.monotonic() - started
    assert code == 0 and "Stopping early at step" in out, err
    uninterrupted = saved(tmp_path / "whole")
    best = load.best_step(f"{tmp_path}/whole")
    assert len(uninterrupted) == KEEP + 1 and best == min(uninterrupted)
    assert f"The best saved step by eval/valid/loss is {best} " in out

    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, a life of {life:.1f} s")
    rng, kills, runs = random.Random(seed), 0, 0
    while kills < KILLS:  # a run that finishes is followed by another
        workdir, lives = tmp_path / f"killed-{runs}", 0
        runs += 1
        while True:
            process = helpers.command(*flags, f"--workdir={workdir}", devices=1)
            if kills < KILLS:
                time.sleep(rng.uniform(0, life))
            else:
                process.wait(900)
            over = process.poll() is not None
            process.kill()
            out, err = process.communicate()
            lives += 1
            if over:
                break
            kills += 1
        assert process.returncode == 0, (lives, err)
        assert "may have ended" not in out and not list(workdir.glob(".lease*"))
        assert helpers.read_metrics(workdir) == helpers.read_metrics(tmp_path / "whole")
        assert saved(workdir) == uninterrupted
        assert load.best_step(str(workdir)) == best
        assert re.search(rf"best saved step by eval/valid/loss is {best} |run is done", out), out
        print(f"run {runs}: {lives} starts")
