"""JSON as others read it too: without NaN and infinity, which the standard does not have."""

import json
import math
from typing import Any


def dumps(value: Any, *, spell: bool = False, **options) -> str:
    """JSON text of a value. What is not finite is null; with `spell` the text 'nan' or 'inf'.

    options: of json.dumps, such as indent.
    """
    return json.dumps(finite(value, spell), allow_nan=False, **options)


def finite(value: Any, spell: bool = False) -> Any:
    """The value with null (None) for what is not finite, within dicts and lists too."""
    if isinstance(value, float):  # NumPy's float64 too
        return value if math.isfinite(value) else str(float(value)) if spell else None
    if isinstance(value, dict):
        return {k: finite(v, spell) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v, spell) for v in value]
    return value


def count_non_finite(value: Any) -> int:
    """How many numbers of a value `dumps` would write as null."""
    if isinstance(value, float):
        return int(not math.isfinite(value))
    inner = value.values() if isinstance(value, dict) else value
    return sum(map(count_non_finite, inner)) if isinstance(value, (dict, list, tuple)) else 0
