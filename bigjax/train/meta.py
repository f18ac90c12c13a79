"""The data saved beside the arrays of a step (`meta`), and which saved step is the best.

Both are read from the files each time: memory does not survive a restart, and a checkpoint may have
been moved aside in the meantime.
"""

from collections.abc import Callable
import json
import math
from typing import Any
import zlib

from etils import epath

from bigjax import report


def crc(meta: dict) -> int:
    """The checksum of meta, stored in it as `crc32`."""
    rest = {k: v for k, v in meta.items() if k != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def is_intact(meta, step: int) -> bool:
    """Whether meta is what was saved for the step, by its checksum and the types of its fields (a
    foreign file may have a valid checksum). Fields that older versions did not write may be
    missing."""
    if not isinstance(meta, dict) or meta.get("crc32") != crc(meta):
        return False
    return (
        type(meta.get("step")) is int
        and meta["step"] == step
        and isinstance(meta.get("data", ""), str)
        and _is_early_stop(meta.get("early_stop", {}))
        and _is_table(meta.get("metrics", {}), _is_number)
        and _is_table(meta.get("checksums"), lambda item: _is_table(item, lambda x: type(x) is int))
    )


def _is_table(value, is_entry: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_entry, value.values()))


def _is_number(value) -> bool:
    """Whether it is a number as written by JSON or `saved_metrics`."""
    try:
        return type(value) in (int, float, str) and isinstance(float(value), float)
    except (ValueError, OverflowError):
        return False


def _is_early_stop(value) -> bool:
    """Whether it is the state of hooks.EarlyStop."""
    return isinstance(value, dict) and (
        not value
        or value.keys() >= {"metric", "mode", "best", "best_step", "bad"}
        and (value["best"] is None or type(value["best"]) in (int, float))
        and _is_number(value["best"] or 0)
        and all(type(value[k]) is int for k in ("best_step", "bad"))
    )


def read(workdir: epath.Path, step: int) -> dict | None:
    """meta of a saved step; None if it is missing or damaged. Does not use Orbax, which would start
    jax. Raises OSError if it cannot be read."""
    try:
        # The path at which Orbax's JSON handler writes it.
        text = (workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text()
        meta = json.loads(text)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return meta if is_intact(meta, step) else None


def saved_metrics(metrics: dict[str, float]) -> dict[str, float | str]:
    """Evaluation metrics as stored in `meta`: NaN and infinity, which JSON lacks, are strings."""
    return {k: float(v) if math.isfinite(v) else str(float(v)) for k, v in metrics.items()}


def best_step(workdir: epath.Path, steps: list[int], metric: str, mode: str) -> int | None:
    """The step of `steps` with the best value of an evaluation metric; the earliest of equal ones.

    mode: min or max. Ignores non-finite values. None if no step has a value. For steps whose meta
    has no metrics (older versions) they are read from metrics.jsonl.
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
