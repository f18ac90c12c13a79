"""The docstrings of the installed packages, see data/docstrings.py. It uses no key of its entry."""

from collections.abc import Iterator

from bigjax.data import docstrings
from bigjax.data.sources import Config, Reading


def documents(options: Config, reading: Reading) -> Iterator[str]:
    del options
    return (record.text for record in docstrings.records(reading.cache_dir))


def fingerprint(options: Config, reading: Reading) -> str:
    del options
    return f"docstrings-{docstrings.fingerprint(reading.cache_dir)}"
