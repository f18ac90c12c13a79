"""watch.sh when gcloud or ssh fails, hangs or does not answer, and when settings change."""

import pytest

from tests.fake_cloud import TRAIN, ok, refused
from tests.unit.test_tpu_watch import words


def test_creation_is_retried_while_there_is_no_capacity(cloud):
    """Less and less often; only a successful creation counts as a restart."""
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


def test_a_failed_deletion_is_retried(cloud):
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
    )  # not the quota of chips
    ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == ["delete"] * 3 + ["create", "scp", "setup", "start"]
    assert (cloud.folder / "sleeps.txt").read_text().split()[:3] == ["20", "40", "10"]


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_other_failures_are_given_up_after_20_attempts(cloud, verb):
    cloud.states("SUSPENDED", "!NOT_FOUND")
    if verb == "delete":
        cloud.states("SUSPENDED")
    cloud.on(verb, "echo 'backend error' >&2; exit 1")
    result = cloud.run("watch.sh")
    assert "20 times in a row" in refused(result, 1) and "restarts)" not in result.stdout
    assert words(cloud.calls()).count(verb) == 20
    assert result.stderr.count("backend error") == 20


@pytest.mark.parametrize(
    "verb, output",
    [
        ("create", "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied"),
        ("create", "INVALID_ARGUMENT: Reserved capacity takes no --spot"),
        ("create", 'ERROR: { "code": 3, "message": "a bad request" }'),
        ("create", "RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded. Limit: 0 in zone"),
        ("delete", "PERMISSION_DENIED: Permission 'tpu.nodes.delete' denied"),
    ],
)
def test_permanent_failures_are_not_retried(cloud, verb, output):
    cloud.states("SUSPENDED", "!NOT_FOUND")
    cloud.on(verb, f"cat >&2 << 'END'\n{output}\nEND\nexit 1")
    error = refused(cloud.run("watch.sh"), 1)
    assert output in error and f"could not {verb}" in error and "will not help" in error
    assert words(cloud.calls()) == ["delete", "create"][: 1 + (verb == "create")]


def test_a_watch_called_again_knows_that_it_has_deleted_the_pod(cloud):
    cloud.settings(MAX_RESTARTS="0")
    cloud.states("SUSPENDED", "!NOT_FOUND")
    assert "MAX_RESTARTS=0 is reached" in refused(cloud.run("watch.sh"), 1)
    cloud.settings(MAX_RESTARTS="1")
    cloud.states("!NOT_FOUND", "ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == ["delete", "create", "scp", "setup", "start"]
    cloud.states("!NOT_FOUND")  # deleted by somebody else
    assert "create.sh creates it" in refused(cloud.run("watch.sh"), 1)

    cloud.settings(MAX_RESTARTS="0")
    cloud.states("SUSPENDED", "!NOT_FOUND")
    refused(cloud.run("watch.sh"), 1)
    ok(cloud.run("delete.sh", "--yes"))
    cloud.settings(MAX_RESTARTS="1")
    assert "create.sh creates it" in refused(cloud.run("watch.sh"), 1)


def test_a_pod_deleted_while_watch_waits_for_it_is_not_created_again(cloud):
    cloud.states("SUSPENDED", "!NOT_FOUND", "PROVISIONING", "!NOT_FOUND")
    assert "create.sh creates it" in refused(cloud.run("watch.sh"), 1)
    assert words(cloud.calls()) == ["delete", "create"]


def test_settings_edited_during_a_watch_do_not_affect_it(cloud):
    """Also if they are deleted, with a file that they source, and temporary files too."""
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


def test_later_errors_name_the_settings_file(cloud):
    cloud.states("ACTIVE")
    cloud.on("ssh", 'mv "$FAKE/git" "$FAKE/bin/git"; rm "$FAKE/on-ssh"')
    (cloud.folder / "git").write_text("#!/bin/sh\nexit 1\n")
    (cloud.folder / "git").chmod(0o755)
    cloud.settings(MAX_RESTARTS="0")
    output = refused(cloud.run("watch.sh"), 1)
    assert f"Set COMMIT in {cloud.folder / 'settings.sh'}." in output


@pytest.mark.parametrize("verb", ["create", "delete"])
def test_a_creation_or_deletion_that_hangs_is_aborted_and_retried(cloud, verb):
    (cloud.folder / "soon").touch()
    cloud.states("SUSPENDED", *["!NOT_FOUND"] * 2, *["ACTIVE"] * 2, "ACTIVE end=0", "ACTIVE")
    if verb == "delete":
        cloud.states(*["SUSPENDED"] * 2, "!NOT_FOUND", *["ACTIVE"] * 2, "ACTIVE end=0", "ACTIVE")
    cloud.on(verb, f'rm "$FAKE/soon" "$FAKE/on-{verb}"; exec /bin/sleep 60')
    result = cloud.run("watch.sh")
    ok(result)
    assert words(cloud.calls()).count(verb) == 2
    assert f"no answer within 30m: gcloud compute tpus queued-resources {verb} pod" in result.stderr


@pytest.mark.parametrize("verb", ["ssh", "describe"])
def test_a_command_without_answer_does_not_block_the_watch(cloud, verb):
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    (cloud.folder / "soon").touch()
    cloud.on(verb, f'rm "$FAKE/soon" "$FAKE/on-{verb}"; /bin/sleep 300')
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    (cloud.folder / "timeouts.txt").unlink()
    assert "UNKNOWN" in ok(cloud.run("watch.sh"))
    output = (cloud.folder / "timeouts.txt").read_text().splitlines()
    assert {line.split()[1] for line in output} == {"2m"}


def test_a_long_time_without_answers_ends_the_watch(cloud):
    """60 times in a row, from gcloud or from the worker."""
    no = "!timed out"
    cloud.states(no, "PROVISIONING", *[no] * 58, "ACTIVE", no, "PROVISIONING", no)
    cloud.on("ssh", "exit 1")
    assert "60 times" in refused(cloud.run("watch.sh"), 1)
    assert len(cloud.calls()) == 1 + 1 + 58 + 3 + 1


def test_a_start_that_does_not_reach_all_workers_is_repeated(cloud):
    ok(cloud.run("setup.sh"))
    broken = cloud.folder / "homes/pod/1/.local/bin/uv"
    (cloud.folder / f"homes/pod/1/bigjax-{cloud.commit[:12]}" / ".installed").unlink()
    broken.write_text(f"#!/bin/bash\n{{ cp {cloud.folder}/bin/uv {broken}; exit 1; }}\n")
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    cloud.calls()
    out = ok(cloud.run("watch.sh"))
    assert "starting the run on all workers (1 of at most 5 restarts)." in out
    assert words(cloud.calls()) == ["scp", "setup", "stop", "scp", "setup", "start"]


def test_a_momentary_ssh_failure_changes_nothing(cloud):
    ok(cloud.run("setup.sh"))
    ok(cloud.run("run.sh"))
    cloud.on("ssh", 'rm "$FAKE/on-ssh"; echo "ssh: Connection refused" >&2; exit 1')
    cloud.states("ACTIVE", "ACTIVE", "ACTIVE end=0", "ACTIVE")
    cloud.calls()
    assert "UNKNOWN" in ok(cloud.run("watch.sh"))
    assert words(cloud.calls()) == []
