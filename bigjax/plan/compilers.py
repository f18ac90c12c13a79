"""Compilers for devices that are not here: whether the installed one is that of the installed jax.

One of another day may compile for minutes what jaxlib then cannot read. Which one a jax was
released with stands in its metadata, in the requirements of its extras.
"""

from importlib import metadata
import importlib.util
from typing import NamedTuple

from packaging.utils import canonicalize_name

from bigjax import extras
from bigjax.errors import UserError


class Compiler(NamedTuple):
    """module: its own. packages: that bring it. extra: of jax, which names it. install: the extra
    of bigjax. what: of a compiler it is."""

    module: str
    packages: tuple[str, ...]
    extra: str
    install: str
    what: str


TPU = Compiler("libtpu", ("libtpu", "libtpu-nightly"), "tpu", "plan", "the TPU compiler")
GPU = Compiler("jax_cuda12_plugin", ("jax-cuda12-plugin",), "cuda12", "cuda", "the GPU compiler")


def check(compiler: Compiler) -> None:
    """Raises UserError unless the compiler is there and fits the installed jax and jaxlib.

    Where jax does not name one, as when it was built from its source, any will do.
    """
    brings = extras.how_to_install(compiler.install)
    if importlib.util.find_spec(compiler.module) is None:
        raise UserError(
            f"A plan needs {compiler.module}, which holds {compiler.what}; no such device is "
            f"needed: {brings}."
        )
    found = _installed(compiler.packages)
    if len(found) > 1:
        raise UserError(
            f"{' and '.join(found)} are both installed, and write the same files. Remove them "
            f"(pip uninstall {' '.join(found)}), then {brings}."
        )
    found |= _installed(("jaxlib",))
    jax = _installed(("jax",)).get("jax", "")
    for wanted in extras.requirements("jax", compiler.extra):
        name = canonicalize_name(wanted.name)
        if name != "jaxlib" and name not in compiler.packages:
            continue
        have = found.get(name)
        if have is None or not wanted.specifier.contains(have, prereleases=True):
            others = [f"{k} {v}" for k, v in found.items() if k in compiler.packages]
            have = f"{name} {have}" if have else ", ".join(others) or "one of no known version"
            raise UserError(
                f"jax {jax} was released with {name}{wanted.specifier}, but {have} is installed: "
                "jax may not be able to read what that compiles. Install the one that belongs to "
                f"this jax: pip install '{name}{wanted.specifier}', or {brings}."
            )


def version(compiler: Compiler) -> str:
    """What is installed of it, such as 'libtpu 0.0.42.1'."""
    found = _installed(compiler.packages)
    return ", ".join(f"{k} {v}" for k, v in found.items()) or f"{compiler.module}, version unknown"


def _installed(packages: tuple[str, ...]) -> dict[str, str]:
    """{name: version} of those that are."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found
