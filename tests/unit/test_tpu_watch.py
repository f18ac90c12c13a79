"""watch.sh against a fake gcloud: it brings a run through preemptions, and knows when to end."""

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
    """What was done, one word each; looks apart."""
    done = []
    for call in calls:
        verb = call.split()[3]
        if verb == "ssh":
            verb = call.split("on_worker.sh ")[-1].split()[0].rstrip(";")
        done.append(verb)
    return [d for d in done if d not in ("describe", "state")]


def test_a_preempted_run_is_brought_back_until_it_is_finished(cloud):
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
    said = [line.split("pod: ")[1] for line in out.splitlines() if "pod: " in line]
    assert [s for s in said if "restart" in s] == [
        "the pod is asked for again (1 of at most 5 restarts)."
    ]
    assert said[-1].startswith("the run is finished")
    assert out.count("started.") == 4


def test_one_of_several_slices_is_preempted(cloud):
    """While the queued resource is still active, and another slice not ready, but not dead."""
    cloud.settings(SLICES="2")
    # Two slices: one not told of; both well; the second preempted; one new; both well; the first
    # preempted, which is enough to know; one new; both well.
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
def test_a_tpu_vm_that_was_not_queued(cloud, dead):
    cloud.settings(QUEUED="false", MAX_RESTARTS="1")
    cloud.states("READY", dead, "!NOT_FOUND", "READY", dead, "!NOT_FOUND", kind="tpu-vm")
    assert "MAX_RESTARTS=1 is used up" in refused(cloud.run("watch.sh"), 1)
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


def test_a_stopped_run_is_left_alone_and_one_that_a_signal_stopped_is_not(cloud):
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    ok(cloud.run("stop.sh"))
    assert "stop.sh has stopped the run" in ok(cloud.run("watch.sh"))
    for worker in "01":  # as if the machine had sent the signal
        (cloud.folder / f"homes/pod/{worker}/bigjax-run/stop").unlink()
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    cloud.calls()
    out = ok(cloud.run("watch.sh"))
    assert "starting the run again, which a signal had stopped (1 of" not in out  # the first start
    assert "starting the run again, which a signal had stopped" in out
    assert words(cloud.calls()) == ["scp", "setup", "start"]


def test_a_run_that_is_still_loading_can_be_stopped(cloud):
    """It does not listen to signals yet, so one ends it with 143: it has nothing to save."""
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
    assert "which a signal had stopped" in ok(cloud.run("watch.sh"))


@pytest.mark.parametrize(
    "end, code, said",
    [
        ("75", 0, "stop.sh has stopped the run"),
        ("143", 0, "stop.sh has stopped the run"),
        ("2", 2, "its input is bad"),
        ("1", 1, "failed 1 (its exit code) though the pod is well"),
    ],
)
def test_a_run_that_is_told_to_stop_may_have_failed(cloud, end, code, said):
    """75, as it says when its peers are gone, is part of a stop; what it cannot help is not."""
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    (cloud.folder / "homes/pod/0/bigjax-run/stop").touch()  # as stop.sh does, at that moment
    (cloud.folder / "end-pod-0").write_text(end)
    result = cloud.run("watch.sh")
    assert result.returncode == code and said in result.stdout + result.stderr


def test_a_watch_that_ended_after_a_stop_of_its_own_goes_on_when_it_is_called_again(cloud):
    """It stops what is left of a run to start all anew. That is not the stop of stop.sh."""
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
    assert "MAX_RESTARTS=1 is used up" in refused(cloud.run("watch.sh"), 1)
    assert words(cloud.calls()) == ["scp", "setup", "start", "stop", "scp"]
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    assert "starting the run again, which a signal had stopped" in ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == ["scp", "setup", "start"]


@pytest.mark.parametrize(
    "end, code, complaint",
    [("2", 2, "its input is bad"), ("1", 1, "failed 1 (its exit code) though the pod is well")],
)
def test_a_run_that_fails_on_a_pod_that_is_well_is_not_started_again(cloud, end, code, complaint):
    (cloud.folder / "end").write_text(end)
    assert complaint in refused(cloud.run("watch.sh"), code)
    assert words(cloud.calls()) == ["scp", "setup", "start"]


@pytest.mark.parametrize("end", ["1", "2"])
def test_a_run_that_fails_before_gcloud_tells_of_the_preemption_is_brought_back(cloud, end):
    cloud.states(f"ACTIVE end={end}", "ACTIVE", "SUSPENDED", "!NOT_FOUND", "ACTIVE end=0", "ACTIVE")
    ok(cloud.run("watch.sh"))
    assert words(cloud.calls()).count("create") == 1


def test_what_passes_by_itself_ends_a_run_but_not_the_watch(cloud):
    """Exit code 75, of worker 0; worker 1 still hangs, and is stopped before all start again."""
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


def test_a_run_that_is_ended_again_and_again_is_given_up(cloud):
    cloud.settings(MAX_RESTARTS="1")
    (cloud.folder / "end").write_text("75")
    assert "MAX_RESTARTS=1 is used up" in refused(cloud.run("watch.sh"), 1)
    assert words(cloud.calls()).count("start") == 2


def test_a_run_that_another_process_keeps_out_is_tried_again_and_again(cloud):
    """Ever less often, and not as a restart."""
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


def test_a_pod_that_somebody_deleted_is_not_created(cloud):
    cloud.states("!NOT_FOUND")
    assert "create.sh creates it" in refused(cloud.run("watch.sh"), 1)
    assert len(cloud.calls()) == 2  # it is believed at the second look


def test_where_there_is_no_room_it_asks_again_and_again(cloud):
    """Ever less often; only a creation that succeeds is a restart."""
    cloud.settings(QUEUED="false", MAX_RESTARTS="1", INTERVAL="10")
    cloud.states("PREEMPTED", "!NOT_FOUND", kind="tpu-vm")
    cloud.on(
        "create",
        """echo >> "$FAKE/asked"
        if (($(wc -l < "$FAKE/asked") <= 25)); then
          echo 'RESOURCE_EXHAUSTED: There is no more capacity in the zone (see .../quota)' >&2
          exit 1
        fi
        printf "CREATING\\nREADY\\nREADY\\nREADY end=0\\nREADY" > "$FAKE/states-tpu-vm" """,
    )
    out = ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == ["delete", *["create"] * 26, "scp", "setup", "start"]
    assert out.count("(1 of at most 1 restarts)") == 1
    assert (cloud.folder / "sleeps.txt").read_text().split()[:28] == [
        "10",
        "20",
        "40",
        "80",
        *["160"] * 22,
        "10",
        "10",
    ]


def test_a_deletion_that_fails_is_tried_again(cloud):
    cloud.settings(MAX_RESTARTS="1", INTERVAL="10")
    cloud.states(
        "SUSPENDED",
        "SUSPENDED",
        "SUSPENDED",
        "!NOT_FOUND",
        "ACTIVE",
        "ACTIVE",
        "ACTIVE end=0",
        "ACTIVE",
    )
    cloud.on(
        "delete",
        """echo >> "$FAKE/asked"
        (($(wc -l < "$FAKE/asked") > 2)) ||
          { echo "Quota exceeded: Requests per minute" >&2; exit 1; }""",
    )  # not that of chips
    ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == ["delete"] * 3 + ["create", "scp", "setup", "start"]
    assert (cloud.folder / "sleeps.txt").read_text().split()[:3] == ["20", "40", "10"]


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_what_fails_for_another_reason_is_given_up_after_20_times(cloud, verb):
    cloud.states("SUSPENDED", "!NOT_FOUND")
    if verb == "delete":
        cloud.states("SUSPENDED")
    cloud.on(verb, "echo 'backend error' >&2; exit 1")
    result = cloud.run("watch.sh")
    assert "20 times in a row" in refused(result, 1) and "restarts)" not in result.stdout
    assert words(cloud.calls()).count(verb) == 20
    assert result.stderr.count("backend error") == 20


@pytest.mark.parametrize(
    "verb, said",
    [
        ("create", "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied"),
        ("create", "INVALID_ARGUMENT: Reserved capacity takes no --spot"),
        ("create", 'ERROR: { "code": 3, "message": "a bad request" }'),
        ("create", "RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded. Limit: 0 in zone"),
        ("delete", "PERMISSION_DENIED: Permission 'tpu.nodes.delete' denied"),
    ],
)
def test_what_does_not_pass_by_itself_is_asked_once(cloud, verb, said):
    cloud.states("SUSPENDED", "!NOT_FOUND")
    cloud.on(verb, f"cat >&2 << 'END'\n{said}\nEND\nexit 1")
    error = refused(cloud.run("watch.sh"), 1)
    assert said in error and f"could not {verb}" in error and "by itself" in error
    assert words(cloud.calls()) == ["delete", "create"][: 1 + (verb == "create")]


def test_a_watch_that_is_called_again_knows_that_it_has_deleted_the_pod_itself(cloud):
    cloud.settings(MAX_RESTARTS="0")
    cloud.states("SUSPENDED", "!NOT_FOUND")
    assert "MAX_RESTARTS=0 is used up" in refused(cloud.run("watch.sh"), 1)
    cloud.settings(MAX_RESTARTS="1")
    cloud.states("!NOT_FOUND", "ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == ["delete", "create", "scp", "setup", "start"]
    cloud.states("!NOT_FOUND")  # now it was somebody else
    assert "create.sh creates it" in refused(cloud.run("watch.sh"), 1)

    cloud.settings(MAX_RESTARTS="0")
    cloud.states("SUSPENDED", "!NOT_FOUND")
    refused(cloud.run("watch.sh"), 1)
    ok(cloud.run("delete.sh", "--yes"))
    cloud.settings(MAX_RESTARTS="1")
    assert "create.sh creates it" in refused(cloud.run("watch.sh"), 1)


def test_a_pod_that_somebody_deletes_while_it_is_waited_for_is_not_created(cloud):
    cloud.states("SUSPENDED", "!NOT_FOUND", "PROVISIONING", "!NOT_FOUND")
    assert "create.sh creates it" in refused(cloud.run("watch.sh"), 1)
    assert words(cloud.calls()) == ["delete", "create"]


def test_settings_that_are_edited_meanwhile_are_for_another_run(cloud):
    """Or deleted; and a file of theirs lies beside them. Nothing is kept where others clean up."""
    with open(cloud.folder / "settings.sh", "a") as f:
        f.write('source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"\n')
    (cloud.folder / "flags.sh").write_text("SSH_FLAGS=(--internal-ip '--tunnel=a  \"b\"\nc')")
    cloud.states("SUSPENDED", "!NOT_FOUND", "ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    cloud.on(
        "delete",
        """echo "NAME=other SLICES=2 WORKDIR=gs://b/o COMMIT=x" > settings.sh
        rm -rf flags.sh "$TMPDIR"/*""",
    )
    ok(cloud.run("watch.sh"))
    flags = {tuple(c[8:10]) for c in cloud.argv() if c[4] in ("scp", "ssh")}
    assert ("--internal-ip", '--tunnel=a  "b"\nc') in flags
    assert words(cloud.calls()) == ["delete", "create", "scp", "setup", "start"]
    assert cloud.trained() == dict.fromkeys(["pod-0", "pod-1"], TRAIN)


def test_what_goes_wrong_later_is_told_by_the_name_of_the_settings(cloud):
    cloud.states("ACTIVE")
    cloud.on("ssh", 'mv "$FAKE/git" "$FAKE/bin/git"; rm "$FAKE/on-ssh"')
    (cloud.folder / "git").write_text("#!/bin/sh\nexit 1\n")
    (cloud.folder / "git").chmod(0o755)
    cloud.settings(MAX_RESTARTS="0")
    said = refused(cloud.run("watch.sh"), 1)
    assert f"Set COMMIT in {cloud.folder / 'settings.sh'}." in said


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_a_creation_or_deletion_that_hangs_is_ended_and_tried_again(cloud, verb):
    (cloud.folder / "soon").touch()
    cloud.states("SUSPENDED", *["!NOT_FOUND"] * 2, *["ACTIVE"] * 2, "ACTIVE end=0", "ACTIVE")
    if verb == "delete":
        cloud.states(*["SUSPENDED"] * 2, "!NOT_FOUND", *["ACTIVE"] * 2, "ACTIVE end=0", "ACTIVE")
    cloud.on(verb, f'rm "$FAKE/soon" "$FAKE/on-{verb}"; exec /bin/sleep 60')
    result = cloud.run("watch.sh")
    ok(result)
    assert words(cloud.calls()).count(verb) == 2
    assert f"no answer in 30m: gcloud compute tpus queued-resources {verb} pod" in result.stderr


@pytest.mark.parametrize("verb", ["ssh", "describe"])
def test_what_is_never_answered_does_not_hold_the_watch(cloud, verb):
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    (cloud.folder / "soon").touch()
    cloud.on(verb, f'rm "$FAKE/soon" "$FAKE/on-{verb}"; /bin/sleep 300')
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    (cloud.folder / "timeouts.txt").unlink()
    assert "UNKNOWN" in ok(cloud.run("watch.sh"))
    said = (cloud.folder / "timeouts.txt").read_text().splitlines()
    assert {line.split()[1] for line in said} == {"2m"}


def test_no_answer_for_long_ends_the_watch(cloud):
    """60 times, whether gcloud or the worker is asked."""
    no = "!timed out"
    cloud.states(no, "PROVISIONING", *[no] * 58, "ACTIVE", no, "PROVISIONING", no)
    cloud.on("ssh", "exit 1")
    assert "60 times" in refused(cloud.run("watch.sh"), 1)
    assert len(cloud.calls()) == 1 + 1 + 58 + 3 + 1


def test_a_start_that_does_not_reach_all_workers_is_done_again(cloud):
    ok(cloud.run("setup.sh"))
    broken = cloud.folder / "homes/pod/1/.local/bin/uv"
    (cloud.folder / f"homes/pod/1/bigjax-{cloud.commit[:12]}" / ".installed").unlink()
    broken.write_text(f"#!/bin/bash\n{{ cp {cloud.folder}/bin/uv {broken}; exit 1; }}\n")
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    cloud.calls()
    out = ok(cloud.run("watch.sh"))
    assert "starting the run on all workers (1 of at most 5 restarts)." in out
    assert words(cloud.calls()) == ["scp", "setup", "stop", "scp", "setup", "start"]


def test_ssh_that_fails_for_a_moment_changes_nothing(cloud):
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    cloud.on("ssh", 'rm "$FAKE/on-ssh"; echo "ssh: Connection refused" >&2; exit 1')
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    cloud.calls()
    assert "UNKNOWN" in ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == []


def test_a_watch_needs_a_bucket(cloud):
    cloud.settings(ACCELERATOR_TYPE="v5litepod-8", WORKDIR="runs/pod")
    assert "lost with the pod" in refused(cloud.run("watch.sh"))


def test_a_dry_run_shows_the_commands_of_one_preemption(cloud):
    shown = ok(cloud.run("watch.sh", "--dry-run", "--", *ODD)).splitlines()
    assert not cloud.argv()
    cloud.states("ACTIVE", "SUSPENDED", "!NOT_FOUND", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    ok(cloud.run("watch.sh", "--", *ODD))
    called = cloud.argv()
    shown = [s for s in map(shlex.split, shown) if s[0] == "gcloud"]
    assert len(shown) == 8 and all(s in called for s in shown)
    assert all(c in shown for c in called)


def test_a_stop_is_told_from_an_end_by_what_bigjax_says():
    """on_worker.sh looks for this in the log, since both exit with 0."""
    assert "Stopped by SIG" in (fake_cloud.REPO / "tpu_scripts" / "on_worker.sh").read_text()
    assert 'f"Stopped by {signal} at step' in SPEAKS.read_text()


@pytest.mark.slow
def test_the_real_bigjax_on_a_worker(tmp_path):
    """Started as on a worker's VM, stopped as by the machine, and brought to its end."""
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
