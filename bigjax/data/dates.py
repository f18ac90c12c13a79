"""Dates as people write them, and as computers do: pairs of texts by a formula, of which a small
model with attention learns all in a minute."""

from collections.abc import Iterator
import datetime
import hashlib
from typing import Any

N = 20_000
_FIRST = datetime.date(1950, 1, 1)
_DAYS = 36_524  # up to the end of 2049, so that two digits of a year suffice


def rows() -> Iterator[dict[str, Any]]:
    """{source: such as 'Sunday, 3rd of May 1998', target: '1998-05-03'}, and where; always the
    same."""
    for i in range(N):
        digest = hashlib.blake2b(f"date {i}".encode(), digest_size=12).digest()
        day, form, case = (int.from_bytes(digest[k : k + 4], "little") for k in (0, 4, 8))
        date = _FIRST + datetime.timedelta(days=day % _DAYS)
        text = _written(date, form % len(_FORMS))
        text = (text, text.lower(), text.upper())[case % 3]
        yield {"source": text, "target": date.isoformat(), "where": f"date {i}"}


def _ordinal(day: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{'th' if 10 < day < 20 else ending}"


_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_FORMS = (
    "{d} {month} {y}",
    "{month} {nth}, {y}",
    "{weekday}, {nth} of {month} {y}",
    "{d}.{m}.{y}",
    "{d:02}/{m:02}/{yy:02}",
    "{weekday} {d} {mon} {y}",
    "{y}, {d} {month}",
    "the {nth} of {month} in {y}",
    "{mon} {d:02} '{yy:02}",
)


def _written(date: datetime.date, form: int) -> str:
    month = _MONTHS[date.month - 1]
    return _FORMS[form].format(
        d=date.day,
        m=date.month,
        y=date.year,
        yy=date.year % 100,
        month=month,
        mon=month[:3],
        nth=_ordinal(date.day),
        weekday=_WEEKDAYS[date.weekday()],
    )
