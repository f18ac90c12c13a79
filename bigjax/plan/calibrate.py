"""Predicted step times corrected by measured ones."""

import json
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from bigjax.data import text_files
from bigjax.errors import UserError


class Correction(NamedTuple):
    """step = work * predicted work + communication * predicted communication, within a share of
    spread: what real runs make of predicted work, and how much communication they do not hide.

    work 1 and communication 0 with a scale: the predicted range, scaled (see `read`).
    """

    work: float
    communication: float
    spread: float
    runs: int
    scale: float | None = None

    def __call__(self, plan) -> tuple[float, float]:
        """(low, high) seconds of a step."""
        if self.scale is not None:
            return tuple(self.scale * x for x in plan.step_seconds)
        middle = self.work * plan.work_seconds + self.communication * plan.communication
        return middle * (1 - self.spread), middle * (1 + self.spread)

    def __str__(self) -> str:
        if self.scale is not None:
            return (
                f"seconds x {self.scale:.2f}. More runs, of layouts that communicate more and "
                "less, would tell work and communication apart"
            )
        return f"work x {self.work:.2f}, communication x {self.communication:.2f}"


def read(path: str, chip: str) -> Correction:
    """From a file of plans and what was measured, of one chip: a line of JSON a run, as
    `bigjax plan --json` prints it, with "measured_seconds" added.

    Where the runs do not tell work and communication apart (fewer than three, or alike), the
    middle of the predicted range is scaled by the median of what was measured.
    It is read as any other text file: compressed ones too, and those in UTF-16.
    Raises UserError for a file that is none, or has no run on this chip.
    """
    rows = [run for run in _lines(path) if run[0] == chip]
    if not rows:
        raise UserError(f"--calibrate={path} has no run on {chip}.")
    _, work, communication, measured = (np.array(x) for x in zip(*rows))
    # In units of what was measured, so that short and long steps count alike.
    matrix = np.stack([work, communication], 1) / measured[:, None]
    if len(rows) < 3 or np.linalg.cond(matrix / np.linalg.norm(matrix, axis=0)) > 10:
        middle = (np.maximum(work, communication) + work + communication) / 2
        return Correction(1, 0, 0, len(rows), float(np.median(measured / middle)))
    factors, _ = nnls(matrix, np.ones(len(rows)))
    spread = min(max(np.abs(matrix @ factors - 1).max(), 0.05), 0.5)
    return Correction(*map(float, factors), float(spread), len(rows))


def _lines(path: str) -> list[tuple[str, float, float, float]]:
    """(chip, work, communication, measured) of each run; seconds."""
    found = []
    lines = text_files.read_lines(path, "lines of JSON, as --calibrate takes them")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
            seconds = [
                float(run[name])
                for name in ("work_seconds", "communication_seconds", "measured_seconds")
            ]
            if not (0 < seconds[0] < math.inf and 0 <= seconds[1] < math.inf > seconds[2] > 0):
                raise ValueError(f"these cannot be seconds: {seconds}")
            found.append((str(run["topology"]).split(":")[0], *seconds))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as e:
            raise UserError(
                f"--calibrate={path}, line {number}: {type(e).__name__}: {e}. Each line is what "
                '`bigjax plan --json` prints last, with "measured_seconds": SECONDS added.'
            ) from e
    return found
