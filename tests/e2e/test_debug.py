"""Profiling, the first NaN, and the compilation cache: config.train.profile and its neighbours."""

from etils import epath
import jax
import jax.numpy as jnp
import pytest

from bigjax.errors import UserError
from bigjax.main import main
from bigjax.train import debug, program
from tests import helpers

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def flags(corpus_file, cache_dir, tmp_path):
    return [
        "train",
        f"--config={helpers.TINY}",
        f"--config.data.sources.text.path={corpus_file}",
        f"--config.data.cache_dir={cache_dir}",
        f"--workdir={tmp_path}/run",
        "--config.mesh.data=1",
        "--config.train.steps=4",
        "--config.evals.valid.every=2",
        "--config.checkpoint.every=3",
    ]


def traced_names(workdir) -> list[str]:
    """The names of host events in the trace: in the protocol buffer an event's metadata has the
    name after its length, as field 2 of a message."""
    (path,) = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
    content = path.read_bytes()
    wanted = ("train", "compile", "data", "save", "eval valid", "eval zest", "step_num")
    return [w for w in wanted if b"\x12" + bytes([len(w)]) + w.encode() in content]


@pytest.mark.slow
def test_a_run_that_ends_early_keeps_its_profile(flags, tmp_path, capsys):
    assert (
        main(
            [
                *flags,
                "--config.train.profile=1:4",
                "--config.train.early_stop.patience=1",
                "--config.train.early_stop.metric=eval/valid/loss",
                "--config.checkpoint.every=1",
                "--config.train.early_stop.min_delta=100",
                "--config.evals.valid.every=1",
            ]
        )
        == 0
    )
    assert f"Wrote {tmp_path}/run/profile: steps 1 to 2" in capsys.readouterr().out
    found = traced_names(tmp_path / "run")
    assert found == ["train", "compile", "data", "save", "eval valid", "step_num"]


def test_a_profile_contains_only_its_steps(tmp_path):
    lines, done = [], []
    profile = debug.Profile("2:3", epath.Path(tmp_path), 0, lines.append)
    save = profile.named("save", lambda step: done.append(step))
    step = profile.step(lambda state, batch: (state, batch))
    for i, batch in enumerate(profile.batches(iter("abcd")), 1):
        assert step(i, batch) == (i, batch)
        save(i)
    assert done == [1, 2, 3, 4]
    # Step 1 compiles, and what follows step 3 is not in the trace.
    assert traced_names(tmp_path) == ["train", "data", "save", "step_num"]
    assert lines == [line for line in lines if "profile: steps 2 to 3" in line]
    debug.Profile("2:3", epath.Path(tmp_path), 2, lines.append).step(step)(1, 2)
    assert "past the first step of train.profile='2:3'" in lines[-1]
    assert debug.Profile("", epath.Path(tmp_path), 0, lines.append).step(step) is step


@pytest.mark.parametrize("span", ["3", "3:2", "0:2", "2:5", "a:b"])
def test_invalid_profile_spans(flags, capsys, span):
    assert main([*flags, f"--config.train.profile={span}"]) == 2
    assert "must be FIRST:LAST, two steps between 1 and train.steps=4" in capsys.readouterr().err


def test_a_run_names_the_operation_that_produced_the_nan(flags, capsys):
    assert (
        main(
            [
                *flags,
                "--config.train.debug_nans=True",
                "--config.optim.clip_norm=0",
                "--config.optim.learning_rate=2e17",
                "--config.train.steps=15",
                "--config.optim.warmup_steps=12",
            ]
        )
        == 1
    )
    error = capsys.readouterr().err
    assert "loss" in error and "of step 2 (batch 1, " in error
    assert "The first NaN: invalid value (nan) encountered in " in error
    assert ", at bigjax/layers/" in error or ", at bigjax/models/" in error


def square_root(x):
    return jnp.sqrt(x)


def logarithm(x):
    return jnp.log(x)


def test_the_first_nan_forward_backward_in_jit_and_in_scan():
    gradient = jax.jit(jax.grad(lambda x: (square_root(x) * x).sum()))
    found = debug.first_nan(gradient, jnp.zeros(3))  # 0 times infinity
    assert "in mul" in found and found.endswith("in square_root: return jnp.sqrt(x)")
    scanned = jax.jit(lambda x: jax.lax.scan(lambda c, _: (logarithm(c) + 1, c), x, None, 3)[0])
    found = debug.first_nan(scanned, jnp.array(0.3))  # log(.3) + 1 is below 0
    assert "in log" in found and found.endswith("in logarithm: return jnp.log(x)")
    assert debug.first_nan(scanned, jnp.array(1.0)) == ""


@pytest.mark.slow
def test_compiled_steps_are_cached(flags, tmp_path):
    """In a process of its own: once jax has a cache it keeps it."""
    cache = tmp_path / "compiled"
    code, _, err = helpers.run(
        *flags, f"--config.train.compilation_cache={cache}", "--config.train.steps=2", devices=1
    )
    assert code == 0, err
    assert any("jit_packed_step" in path.name for path in cache.iterdir())


def test_no_cache_for_programs_of_several_cpu_devices(tmp_path):
    several = jax.make_mesh((8,), ("data",), devices=jax.local_devices())
    with pytest.raises(UserError, match="8 devices of a CPU cannot be loaded safely"):
        program.use_compilation_cache(str(tmp_path / "compiled"), several)
