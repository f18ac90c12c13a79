"""A fake Google Cloud for the tests of tpu_scripts/: programs on the PATH that record their calls.

The fake gcloud has a home folder for each of two workers of each slice, in which it runs the
commands given to ssh with bash. So the scripts really run on a worker; only uv and bigjax are fakes
there too. Deleting the pod removes the home folders and kills their processes.
"""

import ast
import os
import pathlib
import shutil
import signal
import subprocess
import sys

REPO = pathlib.Path(__file__).parent.parent
ODD = ["--config.a=two words", '--config.b=it\'s "$HOME" \\ *', "--config.c=", "--config.d=1,2"]
TRAIN = ["train", "--config=configs/my config.py:tiny", "--workdir=gs://bucket/runs/pod"]
TPU = "compute tpus tpu-vm"
QUEUED = "compute tpus queued-resources"

# `describe` is called most often, so only what it needs is imported at the top.
GCLOUD = r"""
import os, sys
root, argv = os.environ["FAKE"], sys.argv[1:]
with open(f"{root}/calls.txt", "a") as f:
    f.write(repr(argv) + "\n")

def homes(node, worker):
    for w in "01" if worker == "all" else worker:
        os.makedirs(f"{root}/homes/{node}/{w}", exist_ok=True)
        yield f"{root}/homes/{node}/{w}"

flags = dict(a[2:].partition("=")[::2] for a in argv if a.startswith("--"))
kind, verb = argv[:2] if argv[0] == "storage" else argv[2:4]
if os.path.exists(f"{root}/on-{verb}"):
    import subprocess
    code = subprocess.run(["bash", f"{root}/on-{verb}"]).returncode
    if code:
        sys.exit(code)
if verb == "ls":
    print(open(f"{root}/listing").read(), end="")
elif verb == "describe":
    file = f"{root}/states-{kind}"
    states = [{"tpu-vm": "READY", "queued-resources": "ACTIVE"}[kind]]
    if os.path.exists(file):
        states = open(file).read().splitlines()
    if len(states) > 1:
        open(file, "w").write("\n".join(states[1:]))
    state, _, end = states[0].partition(" end=")
    if end:  # the run ends with this code
        open(f"{root}/end", "w").write(end)
    if state.startswith("!"):
        sys.exit("ERROR: (gcloud.compute.tpus) " + state[1:])
    print(state)
elif verb == "delete":
    import glob, shutil
    for pid in glob.glob(f"{root}/homes/*/*/bigjax-run/pid"):
        try:
            os.kill(int(open(pid).read()), 9)
        except OSError:
            pass
    shutil.rmtree(f"{root}/homes", ignore_errors=True)
elif verb == "scp":
    import shutil
    node, _, name = argv[5].partition(":")
    for home in homes(node, flags["worker"]):
        shutil.copy(argv[4], f"{home}/{name}")
elif verb == "ssh":
    import subprocess
    print("Attempting to connect to a worker...", flush=True)
    workers = [subprocess.Popen(["bash", "-c", flags["command"]], cwd=home,
                                env={**os.environ, "HOME": home})
               for home in homes(argv[4], flags["worker"])]
    sys.exit(max([w.wait() for w in workers]))
"""
# Prints a script that installs uv, like the real one from the network.
CURL = r"""#!/usr/bin/env bash
echo "mkdir -p \$UV_INSTALL_DIR && cp $FAKE/bin/uv \$UV_INSTALL_DIR/uv"
"""
UV = r"""#!/usr/bin/env bash
echo "uv $*" >> "$FAKE/uv.txt"
last=${!#}
case $1 in
  venv) mkdir -p "$last/bin" ;;
  pip) cp "$FAKE/bin/bigjax" "${last%\[*}/.venv/bin/bigjax" ;;
esac
"""
# Runs until the file `end` or `end-NODE-WORKER` gives its exit code, or until SIGTERM.
BIGJAX = r"""#!/usr/bin/env bash
worker=$(basename "$(dirname "$HOME")")-$(basename "$HOME")
printf '%s\n' "$@" > "$FAKE/bigjax-$worker.txt"
trap 'echo "Stopped by SIGTERM at step 3, and saved."; exit 0' TERM
echo "training"
for ((i = 0; i < 1200; i++)); do
  for end in "$FAKE/end" "$FAKE/end-$worker"; do
    if [[ -e $end ]]; then exit "$(cat "$end")"; fi
  done
  /bin/sleep 0.05
done
"""
# Refused as many times as in the file `refusals`: another process trains in the work folder.
REFUSED = r"""#!/usr/bin/env bash
echo >> "$FAKE/starts-$(basename "$HOME")"
if (($(wc -l < "$FAKE/starts-$(basename "$HOME")") <= $(cat "$FAKE/refusals"))); then
  echo "bigjax: gs://bucket/runs/pod is held by process 7 on another, which trains" >&2
  exit 75
fi
"""
# For watch.sh: sleeps for a moment instead of a minute.
SLEEP = '#!/usr/bin/env bash\necho "$1" >> "$FAKE/sleeps.txt"; exec /bin/sleep 0.02\n'
# The real timeout, but after a second if the file `soon` exists.
TIMEOUT = (
    r"""#!/usr/bin/env bash
echo "$*" >> "$FAKE/timeouts.txt"
if [[ -e $FAKE/soon ]]; then set -- "$1" 1 "${@:3}"; fi
exec """
    + f'{shutil.which("timeout")} "$@"\n'
)


def make_repository(folder: pathlib.Path) -> pathlib.Path:
    """A git repository with the scripts and a config in one commit, which setup.sh copies."""
    shutil.copytree(
        REPO / "tpu_scripts", folder / "tpu_scripts", ignore=shutil.ignore_patterns("settings.sh")
    )
    (folder / "configs").mkdir()
    (folder / "configs" / "my config.py").write_text("")
    for command in (
        ["init", "-q"],
        ["add", "."],
        [
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.com",
            "-c",
            "commit.gpgsign=false",
            "commit",
            "-q",
            "-m",
            "All",
        ],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


class Cloud:
    """One test's cloud. `repository` is shared by tests, `folder` belongs to the test."""

    def __init__(self, repository: pathlib.Path, folder: pathlib.Path):
        self.repository, self.folder = repository, folder
        self.commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=repository, text=True, capture_output=True, check=True
        ).stdout.strip()
        (folder / "bin").mkdir()
        (folder / "tmp").mkdir()
        # -I -S: starts in 10 ms.
        self._program("gcloud", f"#!/usr/bin/env -S {sys.executable} -I -S\n{GCLOUD}")
        for name, text in (
            ("curl", CURL),
            ("uv", UV),
            ("bigjax", BIGJAX),
            ("sleep", SLEEP),
            ("timeout", TIMEOUT),
        ):
            self._program(name, text)
        self.settings()

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def settings(self, **changes: str) -> None:
        """Writes settings.sh: the example's settings with these changes, written in bash."""
        values = dict(
            NAME="pod",
            PROJECT="my-project",
            ZONE="us-west4-a",
            INTERVAL="1",
            ACCELERATOR_TYPE="v5litepod-16",
            TOPOLOGY="4x4",
            MAX_RESTARTS="5",
            IMAGE="images/bigjax:1",
            CONFIG="'configs/my config.py:tiny'",
            WORKDIR="gs://bucket/runs/pod",
        )
        text = (REPO / "tpu_scripts" / "settings.example.sh").read_text()
        text += "\n".join(f"{k}={v}" for k, v in {**values, **changes}.items())
        (self.folder / "settings.sh").write_text(text + "\n")

    def states(self, *states: str, kind: str = "queued-resources") -> None:
        """Successive answers of describe; the last is repeated. !TEXT: it fails with TEXT."""
        (self.folder / f"states-{kind}").write_text("\n".join(states))

    def on(self, verb: str, script: str) -> None:
        """A bash script that gcloud's verb runs first; if it fails, gcloud fails."""
        (self.folder / f"on-{verb}").write_text(script)

    def run(
        self, script: str, *arguments: str, stdin: str = "", path: str | None = None
    ) -> subprocess.CompletedProcess:
        """Runs a script of tpu_scripts/ until it ends."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}" if path is None else path
        return subprocess.run(
            [
                str(self.repository / "tpu_scripts" / script),
                f"--settings={self.folder / 'settings.sh'}",
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
            env={
                "PATH": path,
                "FAKE": str(self.folder),
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder / "tmp"),
            },
        )

    def calls(self) -> list[str]:
        """The gcloud commands since the last call, one line each; zone and commit replaced."""
        file = self.folder / "calls.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [self.plain(" ".join(ast.literal_eval(line))) for line in lines]

    def argv(self) -> list[list[str]]:
        """The gcloud commands so far, argument by argument."""
        file = self.folder / "calls.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [["gcloud", *ast.literal_eval(line)] for line in lines]

    def plain(self, text: str) -> str:
        return (
            text.replace(" --project=my-project --zone=us-west4-a", " WHERE")
            .replace(self.commit[:12], "COMMIT")
            .replace(str(self.repository), "REPO")
        )

    def trained(self) -> dict[str, list[str]]:
        """{worker: the arguments of its last call of bigjax}."""
        return {
            p.stem.removeprefix("bigjax-"): p.read_text().splitlines()
            for p in sorted(self.folder.glob("bigjax-*.txt"))
        }

    def end(self) -> None:
        """Kills processes that still run, and deletes the scripts' state."""
        for file in self.repository.glob("build/lost-*"):
            file.unlink()
        for pid in self.folder.glob("homes/*/*/bigjax-run/pid"):
            try:
                os.kill(int(pid.read_text()), signal.SIGKILL)
            except (OSError, ValueError):
                pass


def ok(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def refused(result, code=2):
    """The error output of a script that ended with this code."""
    assert result.returncode == code, (result.stdout, result.stderr)
    return result.stderr
