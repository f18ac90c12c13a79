"""Insides of other packages that bigjax uses: one module a package, with a table of what and why.

Any release may change them. A missing one is told in one sentence when its module is imported, and
tests/unit/test_contracts.py says which ones a release has changed, also in what they do.
"""

from collections.abc import Mapping
import importlib
from importlib import metadata
from typing import Any

from bigjax.errors import UserError

# Known to work; setup.py has the same.
VERSIONS = {"jax": ">=0.10,<0.13", "gcsfs": ">=2024.6,<2027"}


def find(package: str, name: str, use: str) -> Any:
    """The object 'module:attribute.attribute', which `use` needs.

    Raises UserError if the installed package lacks it.
    """
    module, _, attributes = name.partition(":")
    try:
        found = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as e:
        raise UserError(
            f"{package} {installed(package)} has no {name.replace(':', '.')}, which bigjax needs "
            f"({use}). Install a version that is known to work: pip install "
            f"'{package}{VERSIONS[package]}'."
        ) from e
    return found


def check(package: str, uses: Mapping[str, str]) -> None:
    """Raises UserError if the installed package lacks one of these {name: use}."""
    for name, use in uses.items():
        find(package, name, use)


def installed(package: str) -> str:
    """Its version; 'of unknown version' without metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"
