"""What the extras of an installed package bring, and how to install one of bigjax's."""

from collections.abc import Iterator
from importlib import metadata
import pathlib

from packaging.requirements import Requirement


def requirements(package: str, extra: str) -> Iterator[Requirement]:
    """What an installed package requires for one of its extras, and only for that; nothing where
    it is not installed."""
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
    """The command that installs what an extra of setup.py names: of a checkout, or what a package
    that was built from one says of itself."""
    wanted = list(requirements("bigjax", extra))
    if not wanted or (pathlib.Path(__file__).parents[1] / "setup.py").is_file():
        return f"pip install -e '.[{extra}]'"
    for requirement in wanted:
        requirement.marker = None
    return "pip install " + " ".join(f"'{requirement}'" for requirement in wanted)
