"""Predicted step times corrected by measured ones."""

import json
from typing import NamedTuple

from scipy.optimize import nnls

from bigjax.errors import UserError


class Correction(NamedTuple):
    """step = work_factor * work + communication_factor * communication, within spread (a share).

    The factors say what real runs make of predicted work, and how much of the communication they
    do not hide."""
    work: float
    communication: float
    spread: float
    runs: int

    def __call__(self, plan) -> tuple[float, float]:
        """(low, high) seconds of a step."""
        middle = self.work * plan.work_seconds + self.communication * plan.communication
        return middle * (1 - self.spread), middle * (1 + self.spread)


def read(path: str, chip: str) -> Correction:
    """From a file of plans and what was measured, of one chip: a line of JSON a run, as
    `bigjax plan --json` prints it, with "measured_seconds" added.

    Raises UserError for a file that is none, or has no run on this chip.
    """
    rows, measured = [], []
    try:
        with open(path, encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if not line.strip():
                    continue
                run = json.loads(line)
                if run["topology"].split(":")[0] != chip:
                    continue
                seconds = float(run["measured_seconds"])
                if not seconds > 0:
                    raise ValueError(f"measured_seconds is {seconds}")
                # In units of what was measured, so that short and long steps count alike.
                rows.append([run["work_seconds"] / seconds,
                             run["communication_seconds"] / seconds])
                measured.append(1.0)
    except OSError as e:
        raise UserError(f"--calibrate={path} cannot be read: {e}") from e
    except (ValueError, TypeError, KeyError) as e:
        raise UserError(
            f"--calibrate={path}, line {number}: {type(e).__name__}: {e}. Each line is what "
            "`bigjax plan --json` prints last, with \"measured_seconds\": SECONDS added.") from e
    if not rows:
        raise UserError(f"--calibrate={path} has no run on {chip}.")
    (work, communication), _ = nnls(rows, measured)
    off = [abs(work * w + communication * c - 1) for w, c in rows]
    # Few runs say little of the next one: no less than the 20% that uncorrected figures are off.
    spread = max(*off, 0.05) if len(rows) > 2 else 0.2
    return Correction(float(work), float(communication), spread, len(rows))
