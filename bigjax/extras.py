"""Requirements of a package's extras, and how to install an extra of bigjax."""

from collections.abc import Iterator
from importlib import metadata
import pathlib

from packaging.requirements import Requirement


def requirements(package: str, extra: str) -> Iterator[Requirement]:
    """Requirements of an installed package that only one of its extras brings; none if the package
    is not installed."""
    try:
        lines = metadata.requires(package) or ()
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            yield requirement


def how_to_install(extra: str) -> str:
    """The command that installs an extra of setup.py: in a checkout with -e, else (bigjax is not on
    PyPI) the requirements by name."""
    required = list(requirements("bigjax", extra))
    if not required or (pathlib.Path(__file__).parents[1] / "setup.py").is_file():
        return f"pip install -e '.[{extra}]'"
    for requirement in required:
        requirement.marker = None
    return "pip install " + " ".join(f"'{requirement}'" for requirement in required)
