"""Ranges of allowed numbers, and checks against them."""

from collections.abc import Mapping
import math
import struct
from typing import Any, NamedTuple

from bigjax.errors import UserError

MAX_INT = 2**31 - 1  # steps, sizes and ids are int32 on the device
SMALLEST_FLOAT, LARGEST_FLOAT = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # of float32
MAX_SEED = 2**32 - 1  # jax.random.key drops higher bits, so that two seeds would be equal


class Range(NamedTuple):
    """Numbers from low to high; an open end excludes that number."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self == FINITE:
            return "finite"
        if self.high == math.inf:
            return "positive" if self.open_low else f"at least {_text(self.low)}"
        begin, end = "[("[self.open_low], "])"[self.open_high]
        return f"in {begin}{_text(self.low)}, {_text(self.high)}{end}"


def _text(x: float) -> str:
    return f"{x:g}" if abs(x) < 1e6 else str(x)


FINITE = Range()
POSITIVE = Range(0, open_low=True)
FRACTION = Range(0, 1, open_high=True)
SHARE = Range(0, 1)
SEED = Range(0, MAX_SEED)


def at_least(low: float) -> Range:
    return Range(low)


def _as_float32(number: float) -> float:
    """A finite number as devices compute with it: subnormal numbers are zero."""
    if abs(number) > LARGEST_FLOAT:
        return math.copysign(math.inf, number)
    return struct.unpack("f", struct.pack("f", number))[0] if abs(number) >= SMALLEST_FLOAT else 0.0


def check_number(key: str, value: Any, allowed: Range | None) -> None:
    """Raises UserError for a number, also within a tuple or list, that is not in `allowed`.

    Also for numbers that are never allowed: non-finite ones, integers beyond int32, and numbers
    that as a float32 are infinite, zero or not in `allowed`. Ignores other types of value.
    """
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
            rounded = _as_float32(number)
            underflows = number and not rounded
            if math.isinf(rounded) or underflows or (allowed and rounded not in allowed):
                raise UserError(
                    f"config.{key} is {value}, which is {rounded} in float32, as devices compute. "
                    f"In float32 it must be {allowed or 'finite'}, and 0 or of a magnitude from "
                    f"{SMALLEST_FLOAT:.1e} to {LARGEST_FLOAT:.1e}."
                )


def check_seed(seed: int) -> None:
    """Raises UserError for a --seed out of range."""
    if seed not in SEED:
        raise UserError(f"--seed is {seed}; it must be {SEED}.")


def check_ranges(where: str, instance: Any) -> None:
    """Raises UserError for numbers of a Config dataclass outside its RANGES, {field: Range}, or of
    a field that is a mapping to numbers, and for a range of a field that it does not have.

    where: the config section, such as 'model' or 'evals.valid'.
    """
    for name, allowed in type(instance).RANGES.items():
        if not hasattr(instance, name):
            raise UserError(
                f"The RANGES of config.{where} name {name!r}, which is not a field of its Config."
            )
        value = getattr(instance, name)
        entries = value if isinstance(value, Mapping) else {"": value}
        for key, number in entries.items():
            check_number(f"{where}.{name}" + f".{key}" * bool(key), number, allowed)
