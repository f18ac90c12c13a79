"""Compiles a training step of MaxText for a TPU pod that is not attached, and keeps the program.

    python maxtext_compile.py FOLDER KEY=VALUE...

It runs in the environment of maxtext_environment.py, started by tpu_sides.py, and needs no bigjax.
The keys are MaxText's own. Its train_compile.py does all the work; only the compiled program, which
it drops, is kept: FOLDER/program.txt, and FOLDER/report.json with its memory, the number of
parameters and the mesh. A program that does not fit has a report only.
"""

from importlib import abc, machinery, util
import json
from pathlib import Path
import sys
import types

# Imported by MaxText's modules and not used to compile: of TensorFlow, profilers, and clients of a
# cloud. A package that is installed is used as it is.
STAND_INS = (
    "cloud_accelerator_diagnostics",
    "google",
    "google_cloud_mldiagnostics",
    "grain",
    "huggingface_hub",
    "librosa",
    "ml_goodput_measurement",
    "mlperf_logging",
    "pathwaysutils",
    "PIL",
    "sentencepiece",
    "sympy",
    "tensorboardX",
    "tensorflow",
    "tiktoken",
    "tokenizers",
    "transformers",
)


class _Anything(type):
    """A class whose attributes are classes of its kind, so that it can be called, inherited from,
    used as a decorator and in annotations."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})

    def __call__(cls, *args, **kwargs):
        return args[0] if len(args) == 1 and callable(args[0]) else _Anything(cls.__name__, (), {})

    def __or__(cls, other):
        return cls

    __ror__ = __or__

    def __getitem__(cls, item):
        return cls


class _StandIn(types.ModuleType):
    __path__: list = []  # so that modules within it can be imported
    __version__ = "0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(abc.MetaPathFinder, abc.Loader):
    """Finds the modules of STAND_INS that are not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in STAND_INS:
            return machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def main(folder: Path, settings: list[str]) -> None:
    """Runs MaxText's train_compile.py until it has compiled a step. settings: KEY=VALUE."""
    sys.meta_path.append(_Finder())  # last: after those that find installed packages
    from jax.experimental import xla_metadata

    if not hasattr(xla_metadata, "must_fuse_call"):  # of a newer jax, for use_jax_splash only
        xla_metadata.must_fuse_call = None
    from maxtext.trainers.pre_train import train_compile

    compile_step = train_compile.jit_and_compile

    def keep(func, args, kwargs, mesh, *rest):
        report = {
            "parameters": _parameters(args[0]),
            "mesh": {str(axis): int(n) for axis, n in mesh.shape.items()},
            "peak_bytes": None,
        }
        try:
            compiled = compile_step(func, args, kwargs, mesh, *rest)
        except Exception as e:  # jaxlib's errors have no common class
            if "RESOURCE_EXHAUSTED" not in str(e):
                raise
        else:
            report["peak_bytes"] = float(compiled.memory_analysis().peak_memory_in_bytes)
            (folder / "program.txt").write_text(compiled.as_text(), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
        raise SystemExit(0)  # what follows prints and saves the program

    train_compile.jit_and_compile = keep
    base = Path(util.find_spec("maxtext").origin).parent / "configs" / "base.yml"
    train_compile.main(["train_compile.py", str(base), *settings])


def _parameters(state) -> int:
    """How many numbers the parameters of a training state hold."""
    from flax import nnx

    return sum(x.size for _, x in nnx.to_flat_state(state["model"]) if isinstance(x, nnx.Param))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
