"""Which numbers are allowed, and refusing the others."""

import math
import struct
from typing import Any, NamedTuple

from bigjax.errors import UserError

MAX_INT = 2**31 - 1  # steps, sizes and ids are int32 on the device
SMALLEST_FLOAT, LARGEST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of float32
MAX_SEED = 2**32 - 1  # jax.random.key drops what is above, so that two seeds would be one


class Range(NamedTuple):
    """Numbers from low to high; open ends leave those two out."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return "positive" if self.open_low else f"at least {_text(self.low)}"
        begin, end = "[("[self.open_low], "])"[self.open_high]
        return f"in {begin}{_text(self.low)}, {_text(self.high)}{end}"


def _text(x: float) -> str:
    return f"{x:g}" if abs(x) < 1e6 else str(x)


POSITIVE = Range(0, open_low=True)
FRACTION = Range(0, 1, open_high=True)  # 1 left out
SHARE = Range(0, 1)
SEED = Range(0, MAX_SEED)


def at_least(low: float) -> Range:
    return Range(low)


def _as_float32(number: float) -> float:
    """A finite number as devices compute with it: they take what is too small for zero."""
    if abs(number) > LARGEST_FLOAT:
        return math.copysign(math.inf, number)
    return struct.unpack("f", struct.pack("f", number))[0] if abs(number) >= SMALLEST_FLOAT else 0.0


def check_number(key: str, value: Any, allowed: Range | None) -> None:
    """Refuses a number, or a tuple or list with one, that is not allowed, or never is: one that is
    not finite, or that no device can hold: an integer beyond int32, or a number that is infinite,
    zero or not allowed as a float32. Other values are passed over."""
    for number in value if isinstance(value, (tuple, list)) else [value]:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if not isinstance(number, int) and not math.isfinite(number):
            raise UserError(f"config.{key} is {value}; it must be a finite number.")
        if allowed is not None and number not in allowed:
            each = "each must be" if isinstance(value, (tuple, list)) else "it must be"
            raise UserError(f"config.{key} is {value}; {each} {allowed}.")
        if isinstance(number, int) and abs(number) > MAX_INT and allowed != SEED:
            raise UserError(f"config.{key} is {value}; it must be at most {MAX_INT:,}.")
        if isinstance(number, float):
            there = _as_float32(number)
            if math.isinf(there) or (number and not there) or (allowed and there not in allowed):
                raise UserError(
                    f"config.{key} is {value}, which is {there} as a float32, as devices compute. "
                    f"It must be {f'{allowed} there' if allowed else 'finite'}, and "
                    f"0 or from {SMALLEST_FLOAT:.1e} to {LARGEST_FLOAT:.1e} in size."
                )


def check_seed(seed: int) -> None:
    """Refuses a --seed that is none."""
    if seed not in SEED:
        raise UserError(f"--seed is {seed}; it must be {SEED}.")


def check_ranges(where: str, instance: Any) -> None:
    """Refuses numbers of a Config dataclass outside of its RANGES: {field: Range}.

    where: its section, such as 'model' or 'evals.valid'.
    """
    for name, allowed in type(instance).RANGES.items():
        check_number(f"{where}.{name}", getattr(instance, name), allowed)
