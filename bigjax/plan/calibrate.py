"""Predicted step times corrected by measured ones."""

import json
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from bigjax.data import text_files
from bigjax.errors import UserError
from bigjax.plan import predict

_SECONDS = ("work_seconds", "communication_seconds", "measured_seconds")
_POSITIVE = ("work_seconds", "measured_seconds")
_MOST = 1e9  # seconds of a step, more than thirty years
_EACH_LINE = (
    'Each line is what `bigjax plan --json` prints last, with "measured_seconds": SECONDS added.'
)


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
        raise UserError(
            f"--calibrate={path} has no run on {chip}: a correction is for one kind of chip. Leave "
            "it out, or add a run on that chip."
        )
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
        run = _json(line)
        if wrong := _wrong(run):
            raise UserError(f"--calibrate={path}, line {number} {wrong}. {_EACH_LINE}")
        runs.append((run["topology"].split(":")[0], *(float(run[name]) for name in _SECONDS)))
    if not runs:
        raise UserError(f"--calibrate={path} has no lines. {_EACH_LINE}")
    return runs


def _json(line: str):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _wrong(run) -> str:
    """What is wrong with a line; '' if nothing is."""
    if not isinstance(run, dict):
        return "is not a JSON object"
    if missing := [name for name in ("topology", *_SECONDS) if name not in run]:
        return f"has no {', '.join(missing)}"
    if not isinstance(run["topology"], str):
        return f"has the topology {run['topology']!r}, which is not text"
    for name in _SECONDS:
        value = run[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= _MOST or not value and name in _POSITIVE:
            what = "positive" if name in _POSITIVE else "at least 0"
            return f"has {name}={str(value)[:20]}, which has to be a number of seconds, {what}"
    return ""
