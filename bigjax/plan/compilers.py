"""Compilers for devices that are not attached: whether the installed one matches the installed jax.

Another version may compile for minutes and then give a program that jaxlib cannot read. The version
that a jax was released with is in its metadata, among the requirements of its extras.
"""

from importlib import metadata
import importlib.util
import re
from typing import NamedTuple

from packaging.utils import canonicalize_name

from bigjax import extras
from bigjax.errors import UserError


class Compiler(NamedTuple):
    """module: what it is imported as. packages: that contain it. extra: of jax, that requires it.
    install: the extra of bigjax that installs it. device: that it compiles for."""

    module: str
    packages: tuple[str, ...]
    extra: str
    install: str
    device: str


TPU = Compiler("libtpu", ("libtpu", "libtpu-nightly"), "tpu", "plan", "TPU")
CUDA12, CUDA13 = (
    Compiler(f"jax_{cuda}_plugin", (f"jax-{cuda}-plugin",), cuda, extra, "GPU")
    for cuda, extra in (("cuda12", "cuda"), ("cuda13", "cuda13"))
)


def gpu() -> Compiler:
    """That of CUDA 13 if it is installed, as jax chooses, else that of CUDA 12."""
    return CUDA13 if importlib.util.find_spec(CUDA13.module) else CUDA12


def is_out_of_memory(error: Exception) -> bool:
    """Whether a compiler refused a program because it does not fit into a device's memory. The
    small memories on the chip, in which a kernel may not fit, do not count."""
    space = re.search(r"memory space (\w+)", str(error))
    return "RESOURCE_EXHAUSTED" in str(error) and (not space or space[1] == "hbm")


def check(compiler: Compiler) -> None:
    """Raises UserError unless the compiler is installed and matches the installed jax and jaxlib.

    If jax does not name one, as when it was built from source, any version is accepted.
    """
    how = extras.how_to_install(compiler.install)
    if importlib.util.find_spec(compiler.module) is None:
        raise UserError(
            f"A plan needs {compiler.module}, which is not installed. It contains the "
            f"{compiler.device} compiler; no {compiler.device} is needed: {how}."
        )
    installed = _installed(compiler.packages)
    if len(installed) > 1:
        raise UserError(
            f"{' and '.join(installed)} are both installed, and write the same files. Remove them "
            f"(pip uninstall {' '.join(installed)}), then {how}."
        )
    installed |= _installed(("jaxlib",))
    jax = _installed(("jax",)).get("jax", "")
    for wanted in extras.requirements("jax", compiler.extra):
        name = canonicalize_name(wanted.name)
        if name != "jaxlib" and name not in compiler.packages:
            continue
        have = installed.get(name)
        if have is None or not wanted.specifier.contains(have, prereleases=True):
            others = [f"{k} {v}" for k, v in installed.items() if k in compiler.packages]
            have = f"{name} {have}" if have else ", ".join(others) or "an unknown version"
            raise UserError(
                f"jax {jax} was released with {name}{wanted.specifier}, but {have} is installed: "
                "jax may not be able to read the programs that it compiles. Install the version "
                f"that matches this jax: pip install '{name}{wanted.specifier}', or {how}."
            )


def version(compiler: Compiler) -> str:
    """The installed version, such as 'libtpu 0.0.42.1'."""
    installed = _installed(compiler.packages)
    return (
        ", ".join(f"{k} {v}" for k, v in installed.items()) or f"{compiler.module}, version unknown"
    )


def _installed(packages: tuple[str, ...]) -> dict[str, str]:
    """{name: version} of the packages that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return versions
