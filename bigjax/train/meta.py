"""What is saved beside the arrays of a step (`meta`), and which saved step is the best.

Both are read from the files each time they are needed. What a process remembers is gone after a
restart, and a checkpoint may have been moved aside since.
"""

import json
import math
import zlib

from etils import epath

from bigjax import report


def crc(meta: dict) -> int:
    """The checksum of meta, which is saved in it as `crc32`."""
    rest = {k: v for k, v in meta.items() if k != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def read(workdir: epath.Path, step: int) -> dict | None:
    """meta of a saved step; None if it is missing or damaged. Does not need Orbax, which starts
    jax. Raises OSError if it cannot be read."""
    try:
        # Where Orbax's handler of JSON writes it.
        text = (workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text()
        meta = json.loads(text)
        return meta if meta["crc32"] == crc(meta) and meta["step"] == step else None
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return None


def saved_metrics(metrics: dict[str, float]) -> dict[str, float | str]:
    """Evaluation metrics as `meta` holds them. JSON has no NaN or infinity, so they are texts."""
    return {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in metrics.items()}


def best_step(workdir: epath.Path, steps: list[int], metric: str, mode: str) -> int | None:
    """The step of `steps` with the best value of an evaluation metric; the earliest of equal ones.

    mode: min or max. Values that are not finite do not count. None if no step has a value. Steps
    saved by a version that wrote no metrics beside them have theirs in metrics.jsonl.
    """
    values, without = {}, []
    for step in steps:
        meta = read(workdir, step)
        if meta and "metrics" in meta:
            values[step] = meta["metrics"].get(metric, math.nan)
        elif meta:
            without.append(step)
    if without and (workdir / "metrics.jsonl").exists():
        logged = dict(zip(*report.read(str(workdir)).get(metric, ((), ()))))
        values.update({step: logged[step] for step in without if step in logged})
    sign = 1 if mode == "min" else -1
    finite = [(sign * float(v), step) for step, v in values.items() if math.isfinite(float(v))]
    return min(finite)[1] if finite else None
