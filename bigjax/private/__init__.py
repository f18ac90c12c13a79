"""Private APIs of other packages that bigjax uses: one module per package, with a table of uses.

Any release may change them. The import of such a module fails with a clear message if one is
missing, and tests/unit/test_contracts.py detects changes in their behaviour.
"""

from collections.abc import Mapping
import importlib
from importlib import metadata
from typing import Any

from bigjax.errors import UserError

# Versions known to work; setup.py has the same.
VERSIONS = {
    "jax": ">=0.10,<0.13",
    "gcsfs": ">=2024.6,<2027",
    "orbax-checkpoint": ">=0.12,<0.13",
}


def find(package: str, name: str, use: str) -> Any:
    """The object 'module:attribute.attribute'. use: what needs it, for the message.

    Raises UserError if the installed package lacks it.
    """
    module, _, attributes = name.partition(":")
    try:
        value = importlib.import_module(module)
        for attribute in attributes.split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError) as e:
        raise UserError(
            f"{package} {installed(package)} has no {name.replace(':', '.')}, which bigjax needs "
            f"({use}). Install a version that is known to work: pip install "
            f"'{package}{VERSIONS[package]}'."
        ) from e
    return value


def check(package: str, uses: Mapping[str, str]) -> None:
    """Raises UserError if the installed package lacks one of these {name: use}."""
    for name, use in uses.items():
        find(package, name, use)


def installed(package: str) -> str:
    """The version of a package; 'of unknown version' without metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of unknown version"
