"""Checks of paths that a user gives and of file names that are read from files."""

from collections.abc import Iterable
import fnmatch
import glob
import os
import re
import secrets
from typing import Any

from bigjax.errors import UserError, file_failure

SCHEMES = ("gs",)  # where bigjax reads and writes
DATA_SCHEMES = ("gs", "s3")  # from which it reads data as well, with the package s3fs
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LONGEST_NAME = 200  # characters; file systems allow 255 bytes, and some names get a suffix


def write_atomically(path: Any, content: bytes) -> None:
    """Writes a file so that readers see the previous file or the complete new one.

    path: of epath, local or gs://, or of pathlib. Raises OSError.
    """
    if "://" in str(path):  # an object appears when it is complete
        path.write_bytes(content)
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def expand(path: str, what: str, schemes: tuple[str, ...] = SCHEMES) -> str:
    """The path with `~` and `~user` replaced by the home folder; addresses such as gs:// unchanged.

    what: the flag or config key it comes from, for messages. Raises UserError if an address has a
    scheme that is not in `schemes`, if the home folder does not exist, and for characters that a
    file name cannot contain.
    """
    check_text(path, what)
    scheme = _SCHEME.match(path)
    if scheme:
        _check_scheme(scheme[1], path, what, schemes)
        return path
    if not path.startswith("~"):
        return path
    expanded, user = os.path.expanduser(path), path.split("/")[0][1:]
    home = os.environ.get("HOME")
    if not user and home is not None and not os.path.isabs(home):  # '' would turn ~/x into /x
        expanded = path
    if expanded == path:
        why = (
            f"there is no user {user!r}"
            if user
            else "HOME is not set, and this user has no entry in the password file"
            if home is None
            else f"HOME is {home!r}, which is not an absolute path"
        )
        raise UserError(
            f"{what} is {path!r}, but {why}, so there is no home folder. Write an absolute path"
            + ("" if user else ", or set HOME")
            + f"; for a folder with that literal name write ./{path}."
        )
    return expanded


def _check_scheme(scheme: str, path: str, what: str, schemes: tuple[str, ...]) -> None:
    if scheme in schemes:
        return
    known = " or ".join(f"{s}://" for s in schemes)
    only = ""
    if scheme in DATA_SCHEMES:
        only = f" {scheme}:// is supported only for data (data.train, .valid, .test, .sources)."
    raise UserError(
        f"{what} is {path!r}, with the unsupported scheme {scheme}://. Use {known}, or a local "
        f"path.{only}"
    )


def exists(path) -> bool:
    """Whether a local or gs:// file or folder exists. path: a str or an epath.Path.

    Raises UserError if this user has no permission to look, where epath would return False.
    """
    if "://" in str(path):
        from etils import epath

        return epath.Path(path).exists()
    try:
        os.stat(path)
    except PermissionError as e:
        raise file_failure(e) from e
    except (OSError, ValueError):
        return False
    return True


def check_text(path: str, what: str) -> None:
    """Raises UserError for text that cannot be a path."""
    if "\0" in path:
        raise UserError(f"{what} is {path!r}: a path cannot contain the NUL character.")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{what} is {path!r}, whose bytes are not UTF-8; the libraries that read and write "
            "arrays accept only UTF-8. Rename it, or use a link with another name."
        ) from None


def check_run_folder(path: str, what: str) -> None:
    """Raises UserError for an address that cannot hold a run, and for a folder whose checkpoints
    would be written elsewhere.

    TensorStore reads a backslash as a slash, and epath reads `gs:` within a path as an address.
    """
    if scheme := _SCHEME.match(path):
        _check_scheme(scheme[1], path, what, SCHEMES)
        return
    absolute = os.path.abspath(path)
    check_text(absolute, what)
    addresses = [
        part for part in absolute.split("/") if part.rstrip(":") in DATA_SCHEMES and ":" in part
    ]
    if bad := "\\" if "\\" in absolute else "".join(addresses[:1]):
        raise UserError(
            f"{what} is {path!r} ({absolute!r}): with {bad!r} in its name TensorStore would "
            "write elsewhere. Rename that folder, or use another."
        )


def check_file_name(name, what: str) -> str:
    """Returns the name if it names a file within a folder. what: where it was read, for messages.

    Names in a config.json or an index may come from an untrusted source; one such as '../x' would
    be written outside the folder that the user named. Raises UserError.
    """
    plain = (
        isinstance(name, str)
        and 0 < len(name) <= _LONGEST_NAME
        and name not in (".", "..")
        and not re.search(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", name)
    )
    if not plain:
        shown = repr(name if len(repr(name)) < 80 else f"{str(name)[:60]}...")
        raise UserError(
            f"{what}: {shown} is not a valid file name. It must have 1 to {_LONGEST_NAME} "
            "characters, no slash or control character, and not be '.' or '..'."
        )
    return name


def check_file_names(names: Iterable, what: str) -> None:
    for name in names:
        check_file_name(name, what)


def read_any_folder() -> None:
    """Makes epath's glob treat the folder that it searches as a literal name.

    For 'runs/a[1]' it would search 'runs/a1'. Orbax looks up in this way what each process has
    written: it would find nothing, and save checkpoints without their arrays.
    """
    from etils import epath

    kind = type(epath.Path("/"))
    if getattr(kind.glob, "_takes_any_folder", False):
        return
    original = kind.glob

    def glob_in_folder(self, pattern: str):
        if not glob.has_magic(str(self)) or "**" in pattern:
            return original(self, pattern)
        matches = [self]
        for part in pattern.split("/"):
            matches = [
                path
                for folder in matches
                if folder.is_dir()
                for path in folder.iterdir()
                if fnmatch.fnmatchcase(path.name, part)
                and path.name.startswith(".") == part.startswith(".")
            ]
        return iter(matches)

    glob_in_folder._takes_any_folder = True
    kind.glob = glob_in_folder
