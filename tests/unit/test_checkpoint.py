"""Checkpoints: which are kept, how damage is detected, and read errors."""

import concurrent.futures
import json
import pathlib
import re
import threading

from etils import epath
import fsspec.exceptions
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bigjax import config
from bigjax.errors import RunError, TransientError, UserError
from bigjax.parallel import hosts
from bigjax.train import run, stages
from bigjax.train.checkpoint import Checkpoints, Damaged, Missing, SaveError, checksums
from bigjax.train.state import State
from tests import helpers


def state(step: int) -> State:
    w = jnp.arange(6000, dtype=jnp.float32).reshape(20, 300) + step
    return State(
        jnp.int32(step),
        {"w": w},
        {"mu": {"w": w * 2}, "count": jnp.int32(step)},
        {},
        None,
        jnp.bool_(False),
    )


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0))


def saved(folder, steps, metrics=None, note="", **options):
    checkpoints = Checkpoints(folder, **options)
    for step in steps:
        checkpoints.save(step, state(step), {"note": note or step}, (metrics or {}).get(step, {}))
    checkpoints.wait()
    return checkpoints


def test_round_trip(tmp_path):
    checkpoints = saved(tmp_path, [3, 5], keep=2)
    got, meta = checkpoints.restore_latest(ABSTRACT, print)
    assert meta["note"] == 5 and int(got.step) == 5
    jax.tree.map(np.testing.assert_array_equal, got, state(5))


def test_the_latest_and_the_best_checkpoints_are_kept(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}
    metrics = {s: {"eval/valid/loss": v} for s, v in losses.items()}
    checkpoints = saved(tmp_path / "min", range(1, 6), metrics, keep=2, best="eval/valid/loss")
    assert checkpoints.steps() == [2, 4, 5]
    checkpoints = saved(
        tmp_path / "max", range(1, 6), metrics, keep=1, best="eval/valid/loss", best_mode="max"
    )
    assert checkpoints.steps() == [4, 5]


def array_files(folder, step):
    return sorted(
        (
            p
            for p in (pathlib.Path(folder) / "checkpoints" / str(step)).rglob("*")
            if p.is_file() and p.stat().st_size > 1000
        ),
        key=lambda p: p.stat().st_size,
    )


def flip(path, position: float):
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def cut(path, position: float):
    path.write_bytes(path.read_bytes()[: int(position * path.stat().st_size)])


def test_a_changed_meta_is_detected_as_damage(tmp_path):
    saved(tmp_path, [3, 5], keep=2).close()
    meta = tmp_path / "checkpoints" / "5" / "meta" / "metadata"
    meta.write_text(meta.read_text().replace('"note": 5', '"note": 6'))
    assert Checkpoints(tmp_path).restore_latest(ABSTRACT, print)[1]["step"] == 3


@pytest.mark.parametrize("item", ["params", "opt_state"])
@pytest.mark.parametrize("damage, position", [(flip, 0.1), (flip, 0.5), (flip, 0.9), (cut, 0.5)])
def test_a_damaged_checkpoint_is_moved_aside_and_the_previous_one_used(
    tmp_path, item, damage, position
):
    saved(tmp_path, [3, 5], keep=2).close()
    damage([p for p in array_files(tmp_path, 5) if item in p.parts][-1], position)
    messages = []
    checkpoints = Checkpoints(tmp_path, keep=2)
    got, meta = checkpoints.restore_latest(ABSTRACT, messages.append)
    assert meta["step"] == 3
    jax.tree.map(np.testing.assert_array_equal, got, state(3))
    assert "Checkpoint 5 is damaged" in messages[0] and (tmp_path / "damaged" / "5").exists()
    checkpoints.save(5, state(5), {}, {})  # and training can save that step again
    checkpoints.wait()
    assert checkpoints.steps() == [3, 5]


@pytest.mark.parametrize("saved_shape", ["2", "4 4 4", ""])
def test_a_state_with_other_arrays_is_not_called_damaged(tmp_path, saved_shape):
    """As an optimizer's state may be after an upgrade of its package or of bigjax."""
    shape = tuple(map(int, saved_shape.split()))
    old = state(3)
    other = {"nu": jnp.ones(shape)} if shape else {"mu": jnp.ones(3)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, old._replace(opt_state=other), {}, {})
    checkpoints.wait()
    wanted = ABSTRACT._replace(opt_state={"nu": jax.ShapeDtypeStruct((3,), "float32")})
    words = re.escape(f"nu has the shape {shape}" if shape else "nu is missing")
    with pytest.raises(UserError, match=f"another model, optimizer.*{words}.*init_from=") as e:
        Checkpoints(tmp_path).restore_latest(wanted, print)
    assert str(tmp_path) in str(e.value).split("init_from=")[1]
    assert Checkpoints(tmp_path).steps() == [3] and not (tmp_path / "damaged").exists()


@pytest.mark.parametrize(
    "wanted, words",
    [
        ({"opt_state": {"count": ABSTRACT.opt_state["count"]}}, "it has mu/w, which this run"),
        ({"ema": ABSTRACT.params}, "it has no ema"),
    ],
)
def test_a_state_with_fewer_or_more_items_is_not_called_damaged(tmp_path, wanted, words):
    saved(tmp_path, [3, 5], keep=2)
    with pytest.raises(UserError, match=f"5.* another model.*: {words}.*init_from={tmp_path}, "):
        Checkpoints(tmp_path).restore_latest(ABSTRACT._replace(**wanted), print)
    assert Checkpoints(tmp_path).steps() == [3, 5]


def test_a_missing_array_is_damage(tmp_path):
    saved(tmp_path, [3, 5], keep=2)
    metadata = tmp_path / "checkpoints" / "5" / "opt_state" / "_METADATA"
    tree = json.loads(metadata.read_text())
    tree["tree_metadata"] = {k: v for k, v in tree["tree_metadata"].items() if "mu" not in k}
    metadata.write_text(json.dumps(tree))
    messages = []
    _, meta = Checkpoints(tmp_path).restore_latest(ABSTRACT, messages.append)
    assert meta["step"] == 3 and "Checkpoint 5 is damaged" in messages[0]


def test_if_all_checkpoints_are_damaged_nothing_is_moved(tmp_path):
    saved(tmp_path, [3, 5], keep=2).close()
    for step in (3, 5):
        cut([p for p in array_files(tmp_path, step) if "params" in p.parts][-1], 0.5)
    with pytest.raises(UserError, match="No checkpoint in .* can be read: 5: .*; 3: "):
        Checkpoints(tmp_path).restore_latest(ABSTRACT, print)
    assert Checkpoints(tmp_path).steps() == [3, 5] and not (tmp_path / "damaged").exists()


@pytest.mark.parametrize(
    "error, kind",
    [
        (OSError(5, "Input/output error"), RunError),
        (PermissionError(13, "Permission"), RunError),
        (MemoryError(), RunError),
        (ValueError("PERMISSION_DENIED: Error opening file"), RunError),
        (ValueError("FAILED_PRECONDITION: local file [OS error 116: ESTALE]"), RunError),
        (fsspec.exceptions.FSTimeoutError(), TransientError),
    ],
    ids=lambda x: repr(x)[:20],
)
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
    tmp_path, monkeypatch, error, kind
):
    checkpoints = saved(tmp_path, [3, 5], keep=2)

    def fail(*args, **kwargs):
        raise Exception("Encountered error while reading") from error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._reader, "restore", fail)
        with pytest.raises(kind) as e:
            checkpoints.restore_latest(ABSTRACT, print)
    assert type(e.value) is kind and not (tmp_path / "damaged").exists()
    assert checkpoints.restore_latest(ABSTRACT, print)[1]["step"] == 5


def on_two_hosts(monkeypatch, act):
    """[what act(0) returns or raises, the same for act(1)], as two processes of one run."""
    me, both, messages = threading.local(), threading.Barrier(2, timeout=60), {}

    def gather(value):
        messages[me.index] = value
        both.wait()
        values = [messages[0], messages[1]]
        both.wait()
        return values

    def call_on_host(i):
        me.index = i
        try:
            return act(i)
        except Exception as e:
            return e

    with monkeypatch.context() as patch, concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name, value in ("gather", gather), ("count", lambda: 2), ("index", lambda: me.index):
            patch.setattr(hosts, name, value)
        return list(pool.map(call_on_host, range(2)))


@pytest.mark.parametrize(
    "errors, kind",
    [
        ([ValueError("DATA_LOSS: a checksum"), None], Damaged),  # of a shard that one alone reads
        ([ValueError("DATA_LOSS: a checksum"), OSError(5, "Input/output error")], RunError),
        ([FileNotFoundError("w"), ValueError("NOT_FOUND: w")], Missing),
        ([None, FileNotFoundError("w")], TransientError),
        ([KeyError("params"), None], TransientError),
        ([None, ValueError("NOT_FOUND: w")], TransientError),
        ([SaveError("x"), None], RunError),
        ([None, None], tuple),
    ],
    ids=repr,
)
def test_two_hosts_raise_the_same_error_for_a_checkpoint(tmp_path, monkeypatch, errors, kind):
    """A missing file is not damage if the other host has it."""
    saved(tmp_path, [3, 5], keep=2).close()
    checkpoints = [Checkpoints(tmp_path, read_only=True) for _ in errors]
    for checkpoint, error in zip(checkpoints, errors):
        if error:

            def fail(*args, error=error, **kwargs):
                raise error

            monkeypatch.setattr(checkpoint._reader, "restore", fail)
    errors_of_hosts = on_two_hosts(
        monkeypatch, lambda i: checkpoints[i].restore(5, {"params": ABSTRACT.params})
    )
    assert [type(x) for x in errors_of_hosts] == [kind, kind]


@pytest.mark.parametrize("steps", [[3], [3, 5]], ids=["other steps", "another step 5"])
def test_hosts_that_see_different_checkpoints_restore_none(tmp_path, monkeypatch, steps):
    saved(tmp_path / "0", [3, 5], keep=2).close()
    checkpoints = [
        Checkpoints(tmp_path / "0"),
        saved(tmp_path / "1", steps, note="of another run", keep=2),
    ]
    for act in (
        lambda c: c.restore_latest(ABSTRACT, print),
        lambda c: c.restore(c.resolve_step(None), {"params": ABSTRACT.params}),
    ):
        for error in on_two_hosts(monkeypatch, lambda i: act(checkpoints[i])):
            assert type(error) is TransientError and "differ from process 0" in str(error)
    assert not list(tmp_path.glob("*/damaged"))


def test_hosts_do_not_start_from_scratch_if_one_does_not_see_the_checkpoints(tmp_path, monkeypatch):
    saved(tmp_path / "0", [3]).close()
    monkeypatch.setattr(hosts, "start", lambda config, workdir: None)
    monkeypatch.setattr(stages, "resolve", lambda config, workdir: pytest.fail("it went on"))
    c = config.load_file(helpers.TINY)
    errors = on_two_hosts(monkeypatch, lambda i: run.train(c, str(tmp_path / str(i))))
    for error in errors:
        assert type(error) is TransientError and "is [] and not [3]" in str(error), errors


def test_checksums_depend_on_every_element_and_not_on_the_sharding():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.linspace(-1, 1, 64).reshape(8, 8)
    cut_up = jax.device_put(x, jax.NamedSharding(mesh, jax.P("x")))
    assert checksums({"x": x}) == checksums({"x": cut_up})
    for changed in (x.at[0, 0].add(1e-7), x.at[7, 7].add(1e-7), x.T):
        assert checksums({"x": x}) != checksums({"x": changed})
    for dtype in ("bfloat16", "int32", "uint32", "bool"):
        y = (jnp.round(100 * x) % 3).astype(dtype)
        assert checksums({"x": y}) != checksums({"x": y.T})


def test_a_failed_save_keeps_older_checkpoints(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, [3], keep=2)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(SaveError, match=r"No space left.*Saved and intact: \[3\]"):
        checkpoints.save(4, state(4), {}, {})
    assert Checkpoints(tmp_path).restore_latest(ABSTRACT, print)[1]["step"] == 3

    def lost(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    monkeypatch.setattr(checkpoints._manager, "save", lost)
    monkeypatch.setattr(hosts, "count", lambda: 2)
    with pytest.raises(TransientError, match="another process of this run has died"):
        checkpoints.save(4, state(4), {}, {})


def test_metadata_that_cannot_be_read(tmp_path, monkeypatch):
    checkpoints = saved(tmp_path, [3])
    (tmp_path / "checkpoints" / "3" / "params" / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="Checkpoint 3 in .* is damaged .AttributeError"):
        checkpoints.arrays(3)

    def fail(*args):
        raise ValueError("UNAVAILABLE: HTTP 503")

    monkeypatch.setattr(ocp.StandardCheckpointer, "metadata", fail)
    with pytest.raises(RunError, match="Checkpoint 3 in .* could not be read: ValueError"):
        checkpoints.arrays(3)
    monkeypatch.setattr(checkpoints, "folder", epath.Path("gs://bucket/checkpoints"))
    monkeypatch.setattr(type(checkpoints.folder), "exists", lambda path: True)
    with pytest.raises(TransientError, match="Cloud storage failed"):
        checkpoints.arrays(3)


def test_a_missing_step(tmp_path):
    with pytest.raises(UserError, match="no checkpoint of step 4 in .*Available: .3."):
        saved(tmp_path, [3]).resolve_step(4)
    with pytest.raises(UserError, match="Train first"):
        Checkpoints(tmp_path / "none").resolve_step(None)
