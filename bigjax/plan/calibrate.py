"""Predicted step times corrected by measured ones."""

import json
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from bigjax.data import text_files
from bigjax.errors import UserError
from bigjax.plan import predict


class Correction(NamedTuple):
    """Corrected seconds: work * predicted work + communication * predicted communication.

    spread: the relative error of that. runs: how many were measured. With a scale, the predicted
    range is multiplied by it instead (see `read`).
    """

    work: float
    communication: float
    spread: float
    runs: int
    scale: float | None = None

    def expected(self, plan) -> float:
        """Seconds of a step."""
        if self.scale is not None:
            return self.scale * predict.expected(plan.step_seconds)
        return self.work * plan.work_seconds + self.communication * plan.communication

    def range(self, plan) -> tuple[float, float]:
        """(low, high) seconds of a step."""
        if self.scale is not None:
            return tuple(self.scale * x for x in plan.step_seconds)
        return tuple(self.expected(plan) * (1 + sign * self.spread) for sign in (-1, 1))

    def range_in_words(self, low: str, high: str) -> str:
        """The range, with what its ends mean."""
        if self.scale is not None:
            return f"{low} if all communication overlaps, {high} if none"
        return f"{low} to {high} by the errors of the measured runs"

    def __str__(self) -> str:
        if self.scale is not None:
            return (
                f"seconds x {self.scale:.2f}. More runs, of layouts that communicate more and "
                "less, would separate work from communication"
            )
        return f"work x {self.work:.2f}, communication x {self.communication:.2f}"


NONE = Correction(1, 1, 0, 0, scale=1.0)  # seconds as they are predicted


def read(path: str, chip: str) -> Correction:
    """The correction for a chip, from a file with one line of JSON per measured run: what
    `bigjax plan --json` prints, with "measured_seconds" added.

    If the runs do not separate work from communication (fewer than three, or similar ones), the
    predicted range is scaled by the median of measured over predicted seconds. The file may be
    compressed or in UTF-16, as any other text file.
    Raises UserError for an invalid file, and for one without a run on this chip.
    """
    rows = [run for run in _lines(path) if run[0] == chip]
    if not rows:
        raise UserError(f"--calibrate={path} has no run on {chip}.")
    _, work, communication, measured = (np.array(x) for x in zip(*rows))
    # Relative to the measurement, so that short and long steps have equal weight.
    matrix = np.stack([work, communication], 1) / measured[:, None]
    if len(rows) < 3 or np.linalg.cond(matrix / np.linalg.norm(matrix, axis=0)) > 10:
        expected = [predict.expected(predict.step_range(w, c)) for _, w, c, _ in rows]
        return Correction(1, 0, 0, len(rows), float(np.median(measured / expected)))
    factors, _ = nnls(matrix, np.ones(len(rows)))
    spread = min(max(np.abs(matrix @ factors - 1).max(), 0.05), 0.5)
    return Correction(*map(float, factors), float(spread), len(rows))


def _lines(path: str) -> list[tuple[str, float, float, float]]:
    """(chip, work, communication, measured) of each run; seconds."""
    runs = []
    lines = text_files.read_lines(path, "lines of JSON, as --calibrate expects them")
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
                raise ValueError(f"these are not valid seconds: {seconds}")
            runs.append((str(run["topology"]).split(":")[0], *seconds))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as e:
            raise UserError(
                f"--calibrate={path}, line {number}: {type(e).__name__}: {e}. Each line is what "
                '`bigjax plan --json` prints last, with "measured_seconds": SECONDS added.'
            ) from e
    return runs
