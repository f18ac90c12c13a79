"""Every path that a person gives, and every name of a file that comes out of a file."""

from collections.abc import Iterable
import fnmatch
import glob
import os
import re

from bigjax.errors import UserError, file_failure

SCHEMES = ("gs",)  # where bigjax reads and writes
DATA_SCHEMES = ("gs", "s3")  # from which it reads data as well, with the package s3fs
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LONGEST_NAME = 200  # characters; file systems take 255 bytes, and some names get an ending


def expand(path: str, what: str, schemes: tuple[str, ...] = SCHEMES) -> str:
    """The path with `~` and `~user` replaced by the home folder; addresses such as gs:// unchanged.

    what: the flag or key that gave it, for messages. Raises UserError for an address whose scheme
    is not one of schemes, where there is no such home folder, and for characters that no file can
    have.
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
    if not user and home is not None and not os.path.isabs(home):  # '' would make ~/x to /x
        expanded = path
    if expanded == path:
        why = (
            f"there is no user {user!r}"
            if user
            else "HOME is not set, and this user has no entry in the password file"
            if home is None
            else f"HOME is {home!r}, which is no path in full"
        )
        raise UserError(
            f"{what} is {path!r}, but {why}, so there is no home folder. Write the path in full"
            + ("" if user else ", or set HOME")
            + f"; a folder that is called so is ./{path}."
        )
    return expanded


def _check_scheme(scheme: str, path: str, what: str, schemes: tuple[str, ...]) -> None:
    if scheme in schemes:
        return
    known = " or ".join(f"{s}://" for s in schemes)
    only = ""
    if scheme in DATA_SCHEMES:
        only = f" From {scheme}:// only data are read (data.train, .valid, .test, .sources)."
    raise UserError(
        f"{what} is {path!r}: addresses begin with {known}, and local paths have none.{only}"
    )


def exists(path) -> bool:
    """Whether there is a file or folder, here or on gs://. path: a text or an epath.Path.

    Raises UserError where this user may not look: epath would say that there is none.
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
    """Refuses what no path can be."""
    if "\0" in path:
        raise UserError(f"{what} is {path!r}: a path cannot hold the character NUL.")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{what} is {path!r}, whose bytes are not UTF-8; the libraries that read and write "
            "arrays take UTF-8 only. Rename it, or give a link with another name."
        ) from None


def check_run_folder(path: str, what: str) -> None:
    """Refuses an address where no run can be, and a folder whose checkpoints could be written, but
    would lie elsewhere.

    TensorStore takes a backslash for a slash, and epath `gs:` within a path for an address.
    """
    if scheme := _SCHEME.match(path):
        _check_scheme(scheme[1], path, what, SCHEMES)
        return
    whole = os.path.abspath(path)
    check_text(whole, what)
    addresses = [
        part for part in whole.split("/") if part.rstrip(":") in DATA_SCHEMES and ":" in part
    ]
    if bad := "\\" if "\\" in whole else "".join(addresses[:1]):
        raise UserError(
            f"{what} is {path!r}, in full {whole!r}: with {bad!r} in its name TensorStore would "
            "write elsewhere. Rename that folder, or give another."
        )


def check_file_name(name, what: str) -> str:
    """The name, if it is one of a file within a folder. what: where it was found.

    Names out of a config.json or an index may come from a stranger; one such as '../x' would be
    written outside the folder that the user named. Raises UserError.
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
            f"{what}: {shown} is not a plain file name. It must have 1 to {_LONGEST_NAME} "
            "characters, no slash or control character, and not be '.' or '..'."
        )
    return name


def check_file_names(names: Iterable, what: str) -> None:
    for name in names:
        check_file_name(name, what)


def read_any_folder() -> None:
    """Makes epath's glob take the folder that it looks in as it is called.

    Of 'runs/a[1]' it would look in 'runs/a1'. Orbax finds in that way what each process has
    written: it would find nothing, and save checkpoints without their arrays.
    """
    from etils import epath

    kind = type(epath.Path("/"))
    if getattr(kind.glob, "_takes_any_folder", False):
        return
    before = kind.glob

    def glob_in_folder(self, pattern: str):
        if not glob.has_magic(str(self)) or "**" in pattern:
            return before(self, pattern)
        found = [self]
        for part in pattern.split("/"):
            found = [
                path
                for folder in found
                if folder.is_dir()
                for path in folder.iterdir()
                if fnmatch.fnmatchcase(path.name, part)
                and path.name.startswith(".") == part.startswith(".")
            ]
        return iter(found)

    glob_in_folder._takes_any_folder = True
    kind.glob = glob_in_folder
