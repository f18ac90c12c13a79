"""`bigjax report`: the curves of one or more runs in one picture."""

from collections.abc import Iterable
import contextlib
import fnmatch
import itertools
import json
import math
import warnings

from etils import epath

from bigjax import paths
from bigjax.errors import UserError, cannot_write

# (title, patterns of metrics, whether the axis is logarithmic)
PANELS = (
    ("loss", ("loss",), False),
    ("validation", ("eval/*/loss",), False),
    ("learning rate", ("learning_rate",), False),
    ("gradient norm", ("grad_norm",), True),
    ("throughput per second", ("*_per_sec",), False),
    ("accuracy", ("accuracy", "*accuracy"), False),
)


FORMATS = (".png", ".pdf", ".svg")  # of pictures


def read(workdir: str) -> dict[str, tuple[list[int], list[float]]]:
    """{metric: (steps, values)} of a run's metrics.jsonl.

    Raises UserError if it does not exist, cannot be read, or has an invalid line.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not paths.exists(path):
        raise UserError(f"{workdir!r} has no metrics.jsonl, so it is not the work folder of a run.")
    curves = {}
    text = path.read_bytes()
    # A run that was killed, or is writing, may leave an incomplete last line.
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
            if not 0 <= step < 2**53:
                raise ValueError("its step is not a number of steps")
            # Non-finite values are null; older versions wrote 'nan' and 'inf'.
            numbers = {k: math.nan if v is None else float(v) for k, v in entry.items()}
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as e:
            raise UserError(f"{path}, line {number} is not a valid line of metrics ({e}).") from e
        for key, value in numbers.items():
            steps, values = curves.setdefault(key, ([], []))
            steps.append(step)
            values.append(value)
    return curves


def pyplot():
    """matplotlib.pyplot for writing files, without interpreting names of folders and labels."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False  # a $ in a name does not start a formula
    warnings.filterwarnings(
        "ignore", message="Glyph .* missing from"
    )  # matplotlib draws a box instead
    from matplotlib import pyplot as plt

    return plt


def draw(workdirs: list[str], out: str | None) -> str:
    """Writes the picture and returns a table of last values and the picture's path.

    Raises UserError if no work folder is given, one has no metrics, or `out` has another suffix
    than FORMATS; and, after printing the table, if the picture cannot be written.
    """
    plt = pyplot()
    check_suffix(out)

    if not workdirs:
        raise UserError("Name the runs: --workdir=A --workdir=B ...")
    runs = {w: read(w) for w in workdirs}
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for axis, (title, keys, log) in zip(axes.flat, PANELS):
        for i, (workdir, curves) in enumerate(runs.items()):
            splits = itertools.cycle("os^Dv")  # one marker for each of an evaluation's
            for key in _matching(curves, keys):
                label = workdir if key == keys[0] else f"{workdir} {key.removeprefix('eval/')}"
                held_out = key.startswith("eval/")
                steps, values = curves[key]
                axis.plot(
                    steps,
                    # Values beyond float32 leave a gap, like NaN: matplotlib would overflow.
                    [v if abs(v) < 1e38 else math.nan for v in values],
                    label=label.encode(errors="backslashreplace").decode(),
                    color=f"C{i}",
                    marker=next(splits) if held_out else None,
                    markersize=4,
                    linestyle="--" if held_out and len(keys) > 1 else "-",
                )
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if log:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(plt.LogFormatter())  # its own one writes formulas
            axis.yaxis.set_minor_formatter(plt.LogFormatter())  # which is for less than a decade
        if axis.lines:
            axis.legend(fontsize=7)
    path = out or str(epath.Path(workdirs[0]) / "report.png")
    table = _table(runs)
    with printing_on_failure(table):
        save(figure, path, dpi=110)
    return f"{table}\nWrote {path}"


def _matching(names: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    """The names that match a pattern; of the rates only that in the task's unit."""
    matching = [k for k in names if any(fnmatch.fnmatch(k, p) for p in patterns)]
    rates = [k for k in matching if k.endswith("_per_sec") and k != "steps_per_sec"]
    in_unit = [k for k in rates if k != "examples_per_sec"] or rates
    return [k for k in matching if not k.endswith("_per_sec") or k in in_unit]


@contextlib.contextmanager
def printing_on_failure(numbers: str):
    """Prints the numbers if the block, which writes their picture, raises UserError."""
    try:
        yield
    except UserError:
        print(numbers)
        raise


def check_suffix(out: str | None, flag: str = "--out") -> None:
    """Raises UserError for a file whose suffix names no format of pictures."""
    if out and epath.Path(out).suffix not in FORMATS:
        raise UserError(f"{flag}={out} must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def save(figure, path: str, flag: str = "--out", **options) -> None:
    """Writes and closes a matplotlib figure, in the format of the path's suffix. Raises UserError
    if it cannot be written. flag: that names the path."""
    try:
        epath.Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_figure(figure, path, **options)
    except OSError as e:
        raise cannot_write(f"The picture {path}", e, f"Name another file by {flag}=FILE.png") from e


def write_figure(figure, path, **options) -> None:
    """Writes and closes a matplotlib figure, in the format of the path's suffix."""
    from matplotlib import pyplot as plt

    try:
        with epath.Path(path).open("wb") as f:
            figure.savefig(f, format=epath.Path(path).suffix[1:], **options)
    finally:
        plt.close(figure)


def _table(runs: dict) -> str:
    """The last loss, speed and evaluation metrics of each run."""
    lines = []
    for workdir, curves in runs.items():
        last = {k: curves[k][1][-1] for k in _matching(curves, ("loss", "*_per_sec", "eval/*"))}
        step = max(s[-1] for s, _ in curves.values()) if curves else 0
        lines.append(
            f"{workdir}, step {step}: " + "  ".join(f"{k} {v:.4g}" for k, v in last.items())
        )
    return "\n".join(lines)
