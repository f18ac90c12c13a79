"""The JobSet that jobset.sh prints, against its schema, and what its containers run."""

import json
import os
import signal
import subprocess

import jsonschema
import pytest
import yaml

from tests import fake_cloud
from tests.fake_cloud import ODD, TRAIN, ok, refused

SCHEMA = json.loads((fake_cloud.REPO / "tests" / "jobset_schema.json").read_text())


def manifest(cloud, *arguments):
    jobset = yaml.safe_load(ok(cloud.run("jobset.sh", *arguments)))
    jsonschema.validate(jobset, SCHEMA)
    return jobset


def parts(jobset):
    """The Job's spec, its Pods' spec, and their container."""
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    return job, pod, pod["containers"][0]


def test_one_job_per_slice_and_one_pod_per_host(cloud):
    cloud.settings(SLICES="3", QUEUE="multislice-queue", SERVICE_ACCOUNT="trainer")
    jobset = manifest(cloud, "--", *ODD, "--config.e=a\nb\t\\c")
    job, pod, container = parts(jobset)
    assert jobset["metadata"] == {
        "name": "pod",
        "labels": {"kueue.x-k8s.io/queue-name": "multislice-queue"},
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 5
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 3
    assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert job["completions"] == job["parallelism"] == 4
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["serviceAccountName"] == "trainer" and container["image"] == "images/bigjax:1"
    assert container["command"] == ["bash", "tpu_scripts/in_pod.sh"]
    # Hosts wait for each other as long as it takes to get machines; what is given comes later.
    assert container["args"] == [
        *TRAIN[1:],
        "--config.hosts.start_timeout=1800",
        *ODD,
        "--config.e=a\nb\t\\c",
    ]
    assert container["resources"] == {
        "limits": {"google.com/tpu": 4},
        "requests": {"google.com/tpu": 4},
    }


@pytest.mark.parametrize(
    "kind, topology, label, hosts, chips",
    [
        ("v4-32", "2x2x4", "tpu-v4-podslice", 4, 4),
        ("v5p-1024", "8x8x8", "tpu-v5p-slice", 128, 4),
        ("v5litepod-1", "1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v6e-8", "2x4", "tpu-v6e-slice", 2, 4),
        ("tpu7x-128", "4x4x4", "tpu7x", 16, 4),
    ],
)
def test_generations(cloud, kind, topology, label, hosts, chips):
    cloud.settings(ACCELERATOR_TYPE=kind, TOPOLOGY=topology, CAPACITY="on-demand")
    job, pod, container = parts(manifest(cloud))
    assert job["completions"] == hosts and container["resources"]["limits"] == {
        "google.com/tpu": chips
    }
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
    }


@pytest.mark.parametrize(
    "settings, complaint",
    [
        (dict(TOPOLOGY="4x8"), "32 chips"),
        (dict(TOPOLOGY="v5e:4x4"), "sides of a slice"),
        (dict(IMAGE=""), "IMAGE is empty"),
        (dict(SERVICE_ACCOUNT=""), "SERVICE_ACCOUNT is empty"),
        (dict(ACCELERATOR_TYPE="v3-32"), "GKE does not have"),
        (
            dict(ACCELERATOR_TYPE="v5litepod-4", TOPOLOGY="2x2", SLICES="2"),
            "slices of several hosts",
        ),
        (dict(ACCELERATOR_TYPE="v5litepod-1", WORKDIR="runs/pod"), "lost with the Pod"),
    ],
)
def test_refused(cloud, settings, complaint):
    cloud.settings(**settings)
    assert complaint in refused(cloud.run("jobset.sh"))


def test_the_schema_refuses(cloud):
    """The schema is part of this repository, so it is checked that it can fail."""
    for change in (
        lambda f, j, p, c: f.update(apiVersion="jobset.x-k8s.io/v1alpha1"),
        lambda f, j, p, c: f["spec"].update(maxRestarts=1),
        lambda f, j, p, c: j.update(completions="4"),
        lambda f, j, p, c: p.pop("containers"),
        lambda f, j, p, c: p.update(restartPolicy="Always"),
        lambda f, j, p, c: p["nodeSelector"].update(spot=True),
        lambda f, j, p, c: c["args"].append(1),
    ):
        jobset = manifest(cloud)
        change(jobset, *parts(jobset))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(jobset, SCHEMA)


@pytest.mark.parametrize("end, code", [("0", 0), ("2", 2), (None, 75)])
def test_a_stopped_container_does_not_count_as_finished(cloud, end, code):
    if end:
        (cloud.folder / "end").write_text(end)
    process = subprocess.Popen(
        ["bash", str(fake_cloud.REPO / "tpu_scripts" / "in_pod.sh"), *TRAIN[1:], *ODD],
        stdout=subprocess.PIPE,
        text=True,
        env={
            "PATH": f"{cloud.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(cloud.folder),
            "HOME": str(cloud.folder / "a" / "b"),
        },
    )
    assert process.stdout.readline() == "training\n"
    if not end:
        process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == code and ("Stopped by SIGTERM" in out) == (not end)
    assert cloud.trained() == {"a-b": TRAIN + ODD}


@pytest.mark.parametrize("stopped", [False, True])
def test_a_container_retries_while_another_process_trains(cloud, stopped):
    (cloud.folder / "refusals").write_text("99" if stopped else "3")
    program = cloud.folder / "bin" / "bigjax"
    program.write_text(fake_cloud.REFUSED + program.read_text())
    (cloud.folder / "end").write_text("75")  # for another reason, at last: that is for JobSet
    process = subprocess.Popen(
        ["bash", str(fake_cloud.REPO / "tpu_scripts" / "in_pod.sh"), *TRAIN[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            "PATH": f"{cloud.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(cloud.folder),
            "HOME": str(cloud.folder / "a" / "b"),
            "TMPDIR": str(cloud.folder / "tmp"),
        },
    )
    if stopped:
        assert "is held by process 7" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    if not stopped:
        assert err.count("is held by process 7") == 3 and err.count("again in a minute") == 3
        assert out == "training\n" and "60" in (cloud.folder / "sleeps.txt").read_text().split()


def test_a_container_stopped_before_training_starts_stops_it(cloud):
    program = cloud.folder / "bin" / "mktemp"  # what the script calls first
    program.write_text('#!/bin/bash\nkill -TERM "$PPID"\nexec /usr/bin/env -i /bin/mktemp "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", str(fake_cloud.REPO / "tpu_scripts" / "in_pod.sh"), *TRAIN[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "PATH": f"{cloud.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(cloud.folder),
            "HOME": str(cloud.folder / "a" / "b"),
        },
    )
    assert done.returncode == 75, done.stderr
