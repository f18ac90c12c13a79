"""The compiled step of each side of benchmarks/tpu_plan.py, from a cache if it is there.

A compilation takes minutes, and depends on a program, its compiler and flags only: the texts are
kept in ~/.cache/bigjax/programs, so that a change of how they are read compiles nothing again.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import math
import os
from pathlib import Path
import re
import subprocess
import tempfile
import time

import jax
import jaxlib
import maxtext_environment
from maxtext_environment import Unavailable

from bigjax import tasks
from bigjax.data.files import LOCAL_CACHE, cache_folder, write_cached
from bigjax.errors import RunError
from bigjax.layers.kernels import splash
from bigjax.layers.mask import Causal, pairs
from bigjax.parallel import mesh as mesh_lib
from bigjax.plan import chips, compilers, predict
from bigjax.train import program as program_lib
from bigjax.trees import count

COMPILE = Path(__file__).with_name("maxtext_compile.py")
# A kernel up to the name of its operation; not one that has a scope already.
KERNEL = re.compile(
    r"^  %splash_mha_(?:(?!\n  (?:ROOT )?%).)*?"
    rf'op_name="(?![^"]*{splash.SCOPE})',
    re.M | re.S,
)
ARRAY = re.compile(r"bf16\[([\d,]+),(\d+),(\d+)\]")  # [rows, heads, length, width]
TABLE = re.compile(r"s8\[\d+,\d+,(\d+)\]")
FLAGS = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")
LOCATION = re.compile(r'"[^"\n]*":\d+:\d+( to (\d*:)?\d+)?')  # in a source file


@dataclasses.dataclass(frozen=True)
class Step:
    """A compiled step. text: None if it does not fit. peak_bytes: of HBM, of one device."""

    text: str | None
    peak_bytes: float | None
    parameters: int
    mesh: dict[str, int]

    def costs(self, topology: str) -> predict.Costs:
        """What the walker of `bigjax plan` reads in the program; of both sides in the same way."""
        sizes = {axis: n for axis, n in self.mesh.items() if n > 1} or {"data": 1}
        return predict.costs(scoped(self.text), chips.figures(topology), sizes)


def scoped(text: str) -> str:
    """A program in which each kernel of causal splash attention has a scope with the
    multiplications of one of its products, as our layers write it: XLA does not know the FLOPs of a
    kernel, and MaxText states none. They follow from the shapes of its arrays and its blocks."""

    def with_scope(kernel: re.Match) -> str:
        heads, T, D = ARRAY.search(kernel[0]).groups()  # one row has no axis
        T, blocks = int(T), int(TABLE.search(kernel[0])[1])
        seen = pairs(Causal(), T, range(T), (T // blocks, T // blocks))
        product = math.prod(map(int, heads.split(","))) * seen * int(D)
        return f"{kernel[0]}{splash.SCOPE}{product}/"

    return KERNEL.sub(with_scope, text)


def ours(config, topology: str, log=print) -> Step:
    """The step of a config with all keys. Raises UserError for an invalid layout, and if the TPU
    compiler is missing or does not match jax."""
    mesh = mesh_lib.checked(
        config.mesh, config.train.batch_size, config.train.accumulate, chips.devices(topology)
    )
    task = tasks.build(config)
    program = program_lib.make(config, task, mesh)
    ((_, step),) = task.phases(config.train.steps)
    lowered = program_lib.trace(program, config.train.batch_size, step).lower()
    # The names of operations are part of the text, for the scopes that the walker reads.
    source = LOCATION.sub("", lowered.as_text(debug_info=True))
    options = program_lib.compiler_options(config.train.compiler_options, mesh)
    known = {"parameters": count(program.abstract.params), "mesh": dict(mesh.shape)}

    def compile_step(folder: Path) -> None:
        report = {**known, "peak_bytes": None}
        try:
            compiled = lowered.compile()
            report["peak_bytes"] = float(compiled.memory_analysis().peak_memory_in_bytes)
            (folder / "program.txt").write_text(compiled.as_text(), encoding="utf-8")
        except Exception as e:  # jaxlib's errors have no common class
            if not compilers.is_out_of_memory(e):
                raise
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")

    return _cached("bigjax", (source, topology, options, _compiler()), compile_step, log)


def theirs(settings: list[str], log=print) -> Step:
    """The step of MaxText with these settings (KEY=VALUE). Raises Unavailable if MaxText cannot be
    installed; RunError, with the end of its output, if it fails."""
    python, packages = _environment()

    def compile_step(folder: Path) -> None:
        command = [str(python), str(COMPILE), str(folder), *settings]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=folder,
            env=maxtext_environment.variables(),
        )
        if done.returncode or not (folder / "report.json").exists():
            raise RunError(
                f"MaxText could not compile {' '.join(settings)}:\n" + done.stderr[-4000:]
            )

    key = packages, settings, COMPILE.read_text(encoding="utf-8"), _compiler()
    return _cached("maxtext", key, compile_step, log)


def missing() -> str:
    """Why MaxText is not available; '' if it is."""
    try:
        _environment()
    except Unavailable as e:
        return str(e)
    return ""


@functools.cache
def _environment() -> tuple[Path, str]:
    return maxtext_environment.prepare()


def _compiler() -> tuple[str, ...]:
    flags = [os.environ.get(name, "") for name in FLAGS]
    return jax.__version__, jaxlib.__version__, compilers.version(compilers.TPU), *flags


def _cached(side: str, key: tuple, compile_step, log) -> Step:
    """The step with this key. compile_step(folder) writes program.txt, if it fits, and
    report.json."""
    name = f"{side}-{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}"
    folder = cache_folder(LOCAL_CACHE, "programs")
    packed, report = folder / f"{name}.txt.gz", folder / f"{name}.json"
    try:
        return _read(packed, report)
    except (OSError, ValueError, TypeError, EOFError):  # absent or damaged: compile again
        pass
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        compile_step(Path(temporary))
        text = Path(temporary, "program.txt")
        if text.exists():
            write_cached(packed, gzip.compress(text.read_bytes(), 6))
        write_cached(report, Path(temporary, "report.json").read_bytes())
    log(f"  compiled {side} in {time.perf_counter() - start:.0f} s", flush=True)
    return _read(packed, report)


def _read(packed: Path, report: Path) -> Step:
    saved = json.loads(report.read_text(encoding="utf-8"))
    fits = saved["peak_bytes"] is not None
    return Step(
        text=gzip.decompress(packed.read_bytes()).decode() if fits else None,
        peak_bytes=saved["peak_bytes"],
        parameters=saved["parameters"],
        mesh=saved["mesh"],
    )
