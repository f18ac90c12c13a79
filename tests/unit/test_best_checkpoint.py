"""The best saved step: kept and reported by the files on disk, not by a process's memory."""

import json
import math
import shutil
import threading

import pytest

from bigjax import arguments, cloud, config
from bigjax.errors import TransientError, UserError
from bigjax.train import hooks, load, meta
from bigjax.train.checkpoint import Checkpoints, Damaged
from tests.unit.test_checkpoint import ABSTRACT, cut, saved, state

LOSS = "eval/valid/loss"
NAN, INF = math.nan, math.inf


def run(folder, values: dict, keep=2, mode="min", each_alone=False) -> list[int]:
    """Saves steps with these metrics (None: not evaluated); returns the steps that are kept."""
    for steps in [[s] for s in values] if each_alone else [list(values)]:
        metrics = {s: {LOSS: values[s]} for s in steps if values[s] is not None}
        checkpoints = saved(folder, steps, metrics, keep=keep, best=LOSS, best_mode=mode)
        kept = checkpoints.steps()
        checkpoints.close()
    return kept


def named(folder, mode="min") -> int | None:
    """The best step by --step=best and by the end of `bigjax train`."""
    c = config.new_config()
    c.checkpoint.best, c.checkpoint.best_mode = LOSS, mode
    (folder / "config.json").write_text(config.to_json(c))
    return load.best_step(str(folder))


VALUES = {
    "min": ("min", {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0, 5: 5.0, 6: 6.0}, 2),
    "max": ("max", {1: 3.0, 2: 7.0, 3: 2.0, 4: 4.0, 5: 5.0, 6: 6.0}, 2),
    "ties": ("min", {1: 2.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 5.0, 6: 1.0}, 2),
    "ties, max": ("max", {1: 0.5, 2: 1.0, 3: 1.0, 4: 1.0, 5: 0.5, 6: 1.0}, 2),
    "NaN after it": ("min", {1: 3.0, 2: 1.0, 3: NAN, 4: NAN, 5: NAN, 6: NAN}, 2),
    "NaN before it": ("max", {1: NAN, 2: 1.0, 3: NAN, 4: 0.5, 5: NAN, 6: 0.1}, 2),
    "-inf": ("min", {1: 3.0, 2: 1.0, 3: -INF, 4: 4.0, 5: INF, 6: 6.0}, 2),
    "inf": ("max", {1: 3.0, 2: 5.0, 3: INF, 4: 4.0, 5: -INF, 6: 1.0}, 2),
    "not all evaluated": ("min", {1: None, 2: 1.0, 3: None, 4: 4.0, 5: None, 6: None}, 2),
    "none finite": ("min", {1: NAN, 2: INF, 3: -INF, 4: NAN, 5: NAN, 6: None}, None),
}


@pytest.mark.parametrize("case", VALUES)
def test_the_best_step_is_kept_and_reported(tmp_path, case):
    mode, values, best = VALUES[case]
    kept = run(tmp_path, values, mode=mode, each_alone=case in ("min", "ties", "NaN before it"))
    assert kept == ([best, 5, 6] if best else [5, 6])
    assert named(tmp_path, mode) == best
    if not best:
        command = arguments.Command((arguments.STEP,))
        given = arguments.Arguments([f"--workdir={tmp_path}", "--step=best"], command)
        with pytest.raises(UserError, match="no saved step .* has a finite value"):
            _ = given.step


def test_a_better_step_replaces_it_after_a_restart(tmp_path):
    assert run(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}) == [2, 3, 4]
    assert run(tmp_path, {5: 0.5, 6: 6.0, 7: 7.0, 8: 8.0}) == [5, 7, 8]
    assert named(tmp_path) == 5


def test_the_best_step_after_a_checkpoint_was_moved_aside(tmp_path):
    run(tmp_path, {2: 1.0, 3: 2.0, 4: 0.5}, keep=3)
    cut(tmp_path / "checkpoints" / "4" / "meta" / "metadata", 0.9)
    assert named(tmp_path) == 2  # 4 cannot be used
    checkpoints = Checkpoints(tmp_path, keep=2, best=LOSS)
    assert checkpoints.restore_latest(ABSTRACT, print)[1]["step"] == 3
    checkpoints.close()
    assert run(tmp_path, {4: 5.0, 5: 5.0, 6: 5.0}, each_alone=True) == [2, 5, 6]
    # If the best one itself is moved aside, the best of the remaining ones.
    cut(tmp_path / "checkpoints" / "2" / "meta" / "metadata", 0.9)
    assert named(tmp_path) == 5 and run(tmp_path, {7: 9.0, 8: 9.0}) == [5, 7, 8]


def test_best_enabled_for_a_run_saved_without_metrics(tmp_path, monkeypatch):
    """It is read from metrics.jsonl, which runs of all versions have."""
    monkeypatch.setattr(meta, "saved_metrics", lambda metrics: {})
    saved(tmp_path, [10, 20, 30, 40], keep=9).close()
    for step in (10, 20, 30, 40):  # as they were before `meta` held metrics
        path = tmp_path / "checkpoints" / str(step) / "meta" / "metadata"
        old = json.loads(path.read_text())
        del old["metrics"]
        path.write_text(json.dumps({**old, "crc32": meta.crc(old)}))
    monkeypatch.undo()
    lines = [(0, 9.0), (10, "nan"), (15, 0.1), (20, 1.0), (30, 1.0), (40, "-inf")]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, LOSS: v}) + "\n" for s, v in lines) + '{"step": 40, "los'
    )
    assert named(tmp_path) == 20
    assert run(tmp_path, {50: 2.0, 60: 3.0}) == [20, 50, 60]
    assert run(tmp_path, {70: 0.5, 80: 3.0, 90: 3.0}) == [70, 80, 90]


def test_metrics_are_saved_so_that_best_can_be_enabled_later(tmp_path):
    metrics = {s: {LOSS: v} for s, v in {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}.items()}
    saved(tmp_path, [1, 2, 3, 4], metrics, keep=9).close()
    assert run(tmp_path, {5: 5.0, 6: 6.0}) == [2, 5, 6] and named(tmp_path) == 2


WRONG = ([], {}, "x", None, True, 10**400, [1.0], {"a": []}, {"a": {"b": "x"}}, {"metric": []})
EARLY_STOP = {"metric": LOSS, "mode": "min", "best": 1.0, "best_step": 1, "bad": 0}
# Of each field of `meta`, those of WRONG that it may have.
ALLOWED = {
    "metrics": ({},),
    "step": (),
    "data": ("x",),
    "checksums": ({},),
    "early_stop": ({},),
    "crc32": (),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two steps")
    saved(folder, [1, 2], {s: {LOSS: float(s)} for s in (1, 2)}, keep=2).close()
    return folder


def forged(folder, change) -> None:
    """Replaces meta of step 1, the best one, by change(meta) with a valid checksum."""
    path = folder / "checkpoints" / "1" / "meta" / "metadata"
    content = json.loads(path.read_text())
    content = {**content, "data": "", "early_stop": EARLY_STOP}
    content["crc32"] = 0
    content = change(content)
    if isinstance(content, dict) and content["crc32"] == 0:
        content["crc32"] = meta.crc(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("field", ALLOWED)
def test_meta_with_a_field_of_a_wrong_type_is_damaged(two_steps, tmp_path, field):
    shutil.copytree(two_steps, tmp_path / "run")
    forged(tmp_path / "run", lambda m: m)
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    assert named(tmp_path / "run") == 1 and checkpoints.meta(1)["step"] == 1
    for value in WRONG:
        valid = any(value is not True and value == x for x in ALLOWED[field])
        forged(tmp_path / "run", lambda m, v=value: {**m, field: v})
        assert (meta.read(tmp_path / "run", 1) is not None) == valid, value
        best = named(tmp_path / "run")
        assert best == (1 if valid and field != "metrics" else 2)
        if not valid:
            with pytest.raises(Damaged):
                checkpoints.meta(1)


@pytest.mark.parametrize("value", [[], [1.0], {}, True, "one", 10**400, None])
def test_meta_with_an_entry_of_a_wrong_type_is_damaged(two_steps, tmp_path, value):
    shutil.copytree(two_steps, tmp_path / "run")
    for field, name in (
        ("metrics", LOSS),
        *(("early_stop", n) for n in ("best", "best_step", "bad")),
    ):
        if name == "best" and value is None or type(value) is int and name in ("best_step", "bad"):
            continue
        forged(tmp_path / "run", lambda m, f=field, n=name: {**m, f: {**m[f], n: value}})
        assert named(tmp_path / "run") == 2, (field, name)


@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, '{"crc32": 1}', "\ufeff{}", ""])
def test_meta_that_is_not_an_object_is_damaged(two_steps, tmp_path, text):
    shutil.copytree(two_steps, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2" / "meta" / "metadata").write_text(text)
    assert named(tmp_path / "run") == 1
    messages = []
    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    assert checkpoints.restore_latest(ABSTRACT, messages.append)[1]["step"] == 1
    assert "Checkpoint 2 is damaged" in messages[0]


def test_a_run_resumes_from_meta_without_the_state_of_early_stopping():
    c = config.new_config().train.early_stop
    hook = hooks.EarlyStop(c, print)
    before = dict(hook.state)
    hook.restore({})
    assert hook.state == before


def test_checkpoints_that_cannot_be_read_are_not_deleted(tmp_path, monkeypatch):
    """A momentary disk failure must not make the best step look like one without a metric."""
    run(tmp_path, {1: 3.0, 2: 1.0, 3: 2.0})

    def fail(workdir, step):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(meta, "read", fail)
    messages = []
    checkpoints = Checkpoints(tmp_path, keep=2, best=LOSS, log=messages.append)
    checkpoints.save(4, state(4), {}, {LOSS: 9.0})
    checkpoints.wait()
    assert "Input/output error" in messages[0] and checkpoints.steps() == [2, 3, 4]
    monkeypatch.undo()
    assert run(tmp_path, {5: 9.0}) == [2, 4, 5]


def test_a_failed_deletion_does_not_end_the_run_and_is_retried(tmp_path, monkeypatch):
    def fail(path, mark, suffix):
        raise PermissionError(13, "Permission denied", str(path))

    messages = []
    checkpoints = Checkpoints(tmp_path, keep=1, log=messages.append)
    with monkeypatch.context() as patch:
        patch.setattr(cloud, "delete_folder", fail)
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {}, {})
        checkpoints.wait()
    assert len(messages) == 2 and "could not be deleted" in messages[0]
    assert "Permission denied" in messages[1] and "Saved and intact: [1, 2, 3]" in messages[1]
    assert checkpoints.restore_latest(ABSTRACT, print)[1]["step"] == 3
    checkpoints.save(4, state(4), {}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [4] and len(messages) == 2


def test_a_deletion_that_fails_because_the_folder_is_lost_ends_the_run(tmp_path, monkeypatch):
    lost = []

    def fail(path, mark, suffix):
        lost.append(path)
        raise FileNotFoundError(2, "No such file or directory", str(path))

    def check_held():
        if lost:
            raise TransientError("The folder is lost.")

    monkeypatch.setattr(cloud, "delete_folder", fail)
    checkpoints = Checkpoints(tmp_path, keep=1, check_held=check_held)
    for step in (1, 2):
        checkpoints.save(step, state(step), {}, {})
    with pytest.raises(TransientError, match="is lost"):
        checkpoints.wait()


def test_closing_waits_for_a_deletion(tmp_path, monkeypatch):
    """After close() another process may take the folder."""
    started, released, real = threading.Event(), threading.Event(), cloud.delete_folder

    def delete(path, mark, suffix):
        started.set()
        released.wait(20)
        real(path, mark, suffix)

    monkeypatch.setattr(cloud, "delete_folder", delete)
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        checkpoints.save(step, state(step), {}, {})
    assert started.wait(20)
    threading.Timer(0.2, released.set).start()
    checkpoints.close()
    assert checkpoints.steps() == [2]


def test_a_killed_deletion_leaves_no_partial_step(tmp_path, monkeypatch):
    def killed(path, mark, suffix):
        real = type(path).rmtree
        monkeypatch.setattr(type(path), "rmtree", lambda *a, **k: None)
        real_delete(path, mark, suffix)
        monkeypatch.setattr(type(path), "rmtree", real)
        raise SystemExit

    real_delete = cloud.delete_folder
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with monkeypatch.context() as patch:
        patch.setattr(cloud, "delete_folder", killed)
        saved(tmp_path, [1, 2], keep=1).close()
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"1.orbax-checkpoint-tmp-deleted", "2"}
    assert Checkpoints(tmp_path, read_only=True).steps() == [2]
    saved(tmp_path, [3], keep=1).close()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["3"]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_early_stopping_ignores_non_finite_values(mode, bad):
    c = config.new_config().train.early_stop
    c.metric, c.mode, c.patience = LOSS, mode, 2
    sign = 1 if mode == "min" else -1

    def watch(values, state=None):
        messages = []
        hook = hooks.EarlyStop(c, messages.append)
        if state:
            hook.restore(json.loads(json.dumps(state)))
        for step, value in enumerate(values, start=1):
            hook.latest.clear()
            hook.latest[step] = {LOSS: sign * value if math.isfinite(value) else value}
            if hook(step, None):
                return step, hook.state, messages
        return None, hook.state, messages

    # Neither a first nor a later non-finite value becomes the best.
    assert watch([bad, 3.0, 2.0, 1.0])[:2] == (None, {**c_state(c), "best": sign, "best_step": 4})
    stopped, last, messages = watch([3.0, 2.0, bad, bad])
    assert stopped == 4 and last["best"] == 2 * sign and "(step 2) in 2 evaluations" in messages[0]
    stopped, last, messages = watch([bad, bad])
    assert stopped == 2 and last["best"] is None and "has never been finite" in messages[0]
    # Saved by a version that accepted NaN as the best value.
    assert watch([2.0], {**c_state(c), "best": bad, "best_step": 3, "bad": 1})[1]["best_step"] == 1


def c_state(c):
    return {"metric": c.metric, "mode": c.mode, "best": None, "best_step": 0, "bad": 0}
