"""watch.sh against a fake gcloud: it restarts a run after preemptions, and ends when it should."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import fake_cloud
from tests.fake_cloud import ODD, QUEUED, TPU, TRAIN, ok, refused

SPEAKS = fake_cloud.REPO / "bigjax" / "train" / "run.py"


def words(calls):
    """The actions in gcloud calls, one word each, without checks of the state."""
    done = []
    for call in calls:
        verb = call.split()[3]
        if verb == "ssh":
            verb = call.split("on_worker.sh ")[-1].split()[0].rstrip(";")
        done.append(verb)
    return [d for d in done if d not in ("describe", "state")]


def test_a_preempted_run_is_restarted_until_it_is_finished(cloud):
    cloud.states(
        "WAITING_FOR_RESOURCES",
        "ACTIVE",
        "ACTIVE",
        "!500 backend error",
        "!timed out",
        "ACTIVE",
        "SUSPENDING",
        "SUSPENDED",
        "!NOT_FOUND: no such resource",
        "PROVISIONING",
        "ACTIVE",
        "ACTIVE",
        "ACTIVE end=0",
        "ACTIVE",
    )
    out = ok(cloud.run("watch.sh", "--", *ODD))
    calls = cloud.calls()
    assert words(calls) == ["scp", "setup", "start", "delete", "create", "scp", "setup", "start"]
    assert f"{QUEUED} delete pod WHERE --force --quiet" in calls
    assert sum(c.startswith(f"{QUEUED} create pod") for c in calls) == 1
    assert cloud.trained() == {"pod-0": TRAIN + ODD, "pod-1": TRAIN + ODD}
    output = [line.split("pod: ")[1] for line in out.splitlines() if "pod: " in line]
    assert [s for s in output if "restart" in s] == [
        "the pod is requested again (1 of at most 5 restarts)."
    ]
    assert output[-1].startswith("the run is finished")
    assert out.count("started.") == 4


def test_one_of_several_slices_is_preempted(cloud):
    """While the queued resource is still active, and another slice is not ready, but not dead."""
    cloud.settings(SLICES="2")
    # Two slices: one not found; both well; the second preempted; one new; both well; the first
    # preempted, so that the second is not read; one new; both well.
    cloud.states(
        "READY",
        "!NOT_FOUND",
        "READY",
        "READY",
        "REPAIRING",
        "PREEMPTED",
        "CREATING",
        "READY",
        "READY",
        "READY",
        "PREEMPTED",
        "CREATING",
        "READY",
        "READY",
        "READY end=0",
        "READY",
        kind="tpu-vm",
    )
    cloud.states(
        "ACTIVE",
        "ACTIVE",
        "ACTIVE",
        "!NOT_FOUND",
        "ACTIVE",
        "ACTIVE",
        "ACTIVE",
        "!NOT_FOUND",
        "ACTIVE",
    )
    ok(cloud.run("watch.sh"))
    begin = ["scp", "scp", "setup", "setup", "start", "start"]
    assert words(cloud.calls()) == (begin + ["delete", "create"]) * 2 + begin


@pytest.mark.parametrize("dead", ["PREEMPTED", "TERMINATED"])
def test_a_tpu_vm_without_a_queued_resource(cloud, dead):
    cloud.settings(QUEUED="false", MAX_RESTARTS="1")
    cloud.states("READY", dead, "!NOT_FOUND", "READY", dead, "!NOT_FOUND", kind="tpu-vm")
    assert "MAX_RESTARTS=1 is reached" in refused(cloud.run("watch.sh"), 1)
    calls = cloud.calls()
    assert words(calls) == [
        "scp",
        "setup",
        "start",
        "delete",
        "create",
        "scp",
        "setup",
        "start",
        "delete",
    ]
    assert f"{TPU} delete pod WHERE --quiet" in calls


def test_a_run_stopped_by_a_signal_is_restarted_but_not_one_stopped_by_stop_sh(cloud):
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    ok(cloud.run("stop.sh"))
    assert "stop.sh has stopped the run" in ok(cloud.run("watch.sh"))
    for worker in "01":  # as if the machine had sent the signal
        (cloud.folder / f"homes/pod/{worker}/bigjax-run/stop").unlink()
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    cloud.calls()
    out = ok(cloud.run("watch.sh"))
    assert "restarting the run, which a signal has stopped (1 of" not in out  # the first start
    assert "restarting the run, which a signal has stopped" in out
    assert words(cloud.calls()) == ["scp", "setup", "start"]


def test_a_run_that_is_still_loading_can_be_stopped(cloud):
    """It does not handle signals yet, so SIGTERM ends it with 143; it has nothing to save."""
    program = cloud.folder / "bin" / "bigjax"
    listens = program.read_text()
    program.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    assert ok(cloud.run("stop.sh")).count("stopped.") == 2
    assert "stop.sh has stopped the run" in ok(cloud.run("watch.sh"))
    (cloud.folder / "homes/pod/0/bigjax-run/stop").unlink()  # it was the machine
    for worker in "01":
        (cloud.folder / f"homes/pod/{worker}/bigjax/.venv/bin/bigjax").write_text(listens)
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    assert "which a signal has stopped" in ok(cloud.run("watch.sh"))


@pytest.mark.parametrize(
    "end, code, output",
    [
        ("75", 0, "stop.sh has stopped the run"),
        ("143", 0, "stop.sh has stopped the run"),
        ("2", 2, "(bad input)"),
        ("1", 1, "failed 1 (its exit code) on a healthy pod"),
    ],
)
def test_a_run_that_was_asked_to_stop_may_have_failed(cloud, end, code, output):
    """75, after its peers have stopped, is part of a stop; other failures are not."""
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    (cloud.folder / "homes/pod/0/bigjax-run/stop").touch()  # as stop.sh does, at that moment
    (cloud.folder / "end-pod-0").write_text(end)
    result = cloud.run("watch.sh")
    assert result.returncode == code and output in result.stdout + result.stderr


def test_a_watch_that_ended_after_its_own_stop_continues_when_called_again(cloud):
    """watch.sh stops the rest of a run before it restarts it, which is not a stop by stop.sh."""
    cloud.settings(MAX_RESTARTS="1")
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    (cloud.folder / "end-pod-0").write_text("75")  # worker 1 hangs, so only worker 0 starts again
    cloud.on(
        "scp",
        """echo >> "$FAKE/copied"
        rm -f "$FAKE/end-pod-0"
        (($(wc -l < "$FAKE/copied") != 2))  # after the stop""",
    )
    cloud.calls()
    assert "MAX_RESTARTS=1 is reached" in refused(cloud.run("watch.sh"), 1)
    assert words(cloud.calls()) == ["scp", "setup", "start", "stop", "scp"]
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    assert "restarting the run, which a signal has stopped" in ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == ["scp", "setup", "start"]


@pytest.mark.parametrize(
    "end, code, complaint",
    [("2", 2, "(bad input)"), ("1", 1, "failed 1 (its exit code) on a healthy pod")],
)
def test_a_run_that_fails_on_a_healthy_pod_is_not_restarted(cloud, end, code, complaint):
    (cloud.folder / "end").write_text(end)
    assert complaint in refused(cloud.run("watch.sh"), code)
    assert words(cloud.calls()) == ["scp", "setup", "start"]


@pytest.mark.parametrize("end", ["1", "2"])
def test_a_run_that_fails_before_gcloud_reports_the_preemption_is_restarted(cloud, end):
    cloud.states(f"ACTIVE end={end}", "ACTIVE", "SUSPENDED", "!NOT_FOUND", "ACTIVE end=0", "ACTIVE")
    ok(cloud.run("watch.sh"))
    assert words(cloud.calls()).count("create") == 1


def test_a_transient_failure_ends_a_run_but_not_the_watch(cloud):
    """Worker 0 exits with 75; worker 1 still hangs, and is stopped before all are restarted."""
    ok(cloud.run("setup.sh"))
    (cloud.folder / "end-pod-0").write_text("75")
    # Not before all have started: by then it is to run.
    cloud.on("scp", 'if [[ -e $FAKE/bigjax-pod-0.txt ]]; then rm -f "$FAKE/end-pod-0"; fi')
    cloud.states(*["ACTIVE"] * 6, "ACTIVE end=0", "ACTIVE")
    cloud.calls()
    out = ok(cloud.run("watch.sh"))
    begin = ["scp", "setup", "start"]
    assert words(cloud.calls()) == [*begin, "stop", *begin]
    assert "(1 of at most 5 restarts)" in out
    assert "Stopped by" in (cloud.folder / "homes/pod/1/bigjax-run/log-before.txt").read_text()


def test_a_run_that_fails_repeatedly_is_given_up(cloud):
    cloud.settings(MAX_RESTARTS="1")
    (cloud.folder / "end").write_text("75")
    assert "MAX_RESTARTS=1 is reached" in refused(cloud.run("watch.sh"), 1)
    assert words(cloud.calls()).count("start") == 2


def test_a_run_refused_because_of_another_process_is_retried(cloud):
    """Less and less often, and without counting as a restart."""
    cloud.settings(MAX_RESTARTS="1", INTERVAL="10")
    (cloud.folder / "refusals").write_text("6")
    program = cloud.folder / "bin" / "bigjax"
    program.write_text(fake_cloud.REFUSED + program.read_text())
    (cloud.folder / "end").write_text("0")
    out = ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == ["scp", "setup", "start"] * 7
    assert out.count("another process trains in gs://bucket/runs/pod") == 6 and "(1 of" not in out
    slept = [int(s) for s in (cloud.folder / "sleeps.txt").read_text().split()]
    assert set(slept) == {10, 20, 40, 80, 160} and slept.count(160) > 3


def test_a_pod_deleted_by_somebody_is_not_created_again(cloud):
    cloud.states("!NOT_FOUND")
    assert "create.sh creates it" in refused(cloud.run("watch.sh"), 1)
    assert len(cloud.calls()) == 2  # only a second check is believed


def test_a_watch_requires_a_bucket(cloud):
    cloud.settings(ACCELERATOR_TYPE="v5litepod-8", WORKDIR="runs/pod")
    assert "lost with the pod" in refused(cloud.run("watch.sh"))


def test_a_dry_run_shows_the_commands_for_one_preemption(cloud):
    shown = ok(cloud.run("watch.sh", "--dry-run", "--", *ODD)).splitlines()
    assert not cloud.argv()
    cloud.states("ACTIVE", "SUSPENDED", "!NOT_FOUND", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    ok(cloud.run("watch.sh", "--", *ODD))
    called = cloud.argv()
    shown = [s for s in map(shlex.split, shown) if s[0] == "gcloud"]
    assert len(shown) == 8 and all(s in called for s in shown)
    assert all(c in shown for c in called)


def test_a_stop_is_distinguished_from_the_end_by_the_log():
    """on_worker.sh searches the log for it, since both exit with 0."""
    assert "Stopped by SIG" in (fake_cloud.REPO / "tpu_scripts" / "on_worker.sh").read_text()
    assert 'f"Stopped by {signal} at step' in SPEAKS.read_text()


@pytest.mark.slow
def test_the_real_bigjax_on_a_worker(tmp_path):
    """Started as on a worker's VM, stopped by a signal, and run until it is finished."""
    folder = tmp_path / "bigjax-1"
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(fake_cloud.REPO / "tpu_scripts", folder / "tpu_scripts")
    program = folder / ".venv" / "bin" / "bigjax"
    program.write_text(
        f'#!/bin/sh\ncd {fake_cloud.REPO} && exec {sys.executable} -m bigjax.main "$@"\n'
    )
    program.chmod(0o755)
    run = tmp_path / "bigjax-run"

    def worker(*arguments):
        return ok(
            subprocess.run(
                ["bash", str(folder / "tpu_scripts" / "on_worker.sh"), *arguments],
                text=True,
                capture_output=True,
                timeout=300,
                env={**os.environ, "HOME": str(tmp_path)},
            )
        )

    def train():
        worker("start", "--config=configs/gpt/docstrings.py:tiny", f"--workdir={tmp_path / 'w'}")

    def wait(condition):
        for _ in range(2400):
            if condition():
                return
            time.sleep(0.1)
        raise AssertionError((run / "log.txt").read_text())

    assert worker("state") == "none\n"
    train()
    assert worker("state") == "running\n"
    wait(lambda: (tmp_path / "w" / "metrics.jsonl").exists())
    os.kill(int((run / "pid").read_text()), signal.SIGTERM)
    wait(lambda: worker("state") != "running\n")
    assert worker("state") == "stopped\n", (run / "log.txt").read_text()
    train()
    wait(lambda: "Resuming from step" in (run / "log.txt").read_text())
    assert "Stopped by SIGTERM" in (run / "log-before.txt").read_text()
    wait(lambda: worker("state") != "running\n")
    assert worker("state") == "finished\n"
