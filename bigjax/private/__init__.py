"""Insides of other packages that bigjax uses: one module a package, with a table of what and why.

Any release may change them. A missing one is told in one sentence when its module is imported, and
tests/unit/test_contracts.py says which ones a release has changed, also in what they do.
"""

from collections.abc import Iterable
import importlib
from importlib import metadata
from typing import Any

from bigjax.errors import UserError

VERSIONS = {"jax": ">=0.10,<0.13", "gcsfs": ">=2024.6"}  # known to work; setup.py has the same


def find(package: str, name: str) -> Any:
    """The object 'module:attribute.attribute'. UserError if the installed package lacks it."""
    module, _, attributes = name.partition(":")
    try:
        found = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as e:
        raise UserError(
            f"{package} {installed(package)} has no {name.replace(':', '.')}, which bigjax uses "
            f"({e}). Install a version that is known to work: pip install "
            f"'{package}{VERSIONS[package]}'."
        ) from e
    return found


def check(package: str, names: Iterable[str]) -> None:
    """Raises UserError if the installed package lacks one of these."""
    for name in names:
        find(package, name)


def installed(package: str) -> str:
    """Its version; 'of unknown version' without metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"
