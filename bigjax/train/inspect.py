"""`bigjax checkpoint`: the contents of a run's checkpoints, read from metadata only."""

import math

from etils import epath

from bigjax.train import workdir as workdir_lib
from bigjax.train.checkpoint import Checkpoints


def describe(workdir: str, step: int | None = None) -> str:
    """A text with the steps and sizes, then for each parameter path, shape, dtype, sharding, count.

    Raises UserError if there is no such run or step.
    """
    checkpoints = Checkpoints(workdir_lib.existing(workdir), read_only=True)
    step = checkpoints.resolve_step(step)
    lines = [f"{checkpoints.folder}", f"{'step':>10}  {'size':>10}  items"]
    for s in checkpoints.steps():
        folder = checkpoints.folder / str(s)
        arrays = checkpoints.arrays(s)
        lines.append(
            f"{s:>10}  {_size(_bytes(folder)):>10}  "
            + ", ".join(f"{k} {_size(_bytes(folder / k))}" for k in arrays)
        )
    params = checkpoints.arrays(step)["params"]
    rows = [
        (name, str(tuple(x.shape)), str(x.dtype), _sharding(x), f"{math.prod(x.shape):,}")
        for name, x in params.items()
    ]
    total = sum(math.prod(x.shape) for x in params.values())
    rows.append(("total", "", "", "", f"{total:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines += ["", f"params of step {step}: path, shape, dtype, sharding when saved, count"]
    lines += [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths)) + f"  {row[4]:>14}" for row in rows
    ]
    return "\n".join(lines)


def _sharding(array) -> str:
    """The sharding when saved, such as '(None, tensor)'; '-' if on one device or replicated."""
    spec = getattr(array.sharding, "partition_spec", None)
    return str(tuple(spec)).replace("'", "") if spec and any(spec) else "-"


def _bytes(path: epath.Path) -> int:
    if not path.is_dir():
        return path.stat().length
    return sum(_bytes(p) for p in path.iterdir())


def _size(n: int) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            break
        n /= 1000
    else:
        unit = "TB"
    return f"{n:.3g} {unit}"
