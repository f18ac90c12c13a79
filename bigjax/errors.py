"""The exceptions that the command line prints without a traceback, with their exit codes."""

import errno
import os
import pathlib

# errno values: the disk or a quota is full, or a file would be too large.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# errno values: no permission, or a path that cannot be used in this way.
_UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
)


class UserError(Exception):
    """Bad input: a config, data, a checkpoint, a mesh or a request.

    The command line prints it without a traceback and exits with code 2, so the message says what
    is wrong, what was found, what is allowed, and what to do.
    """

    exit_code = 2


class RunError(Exception):
    """A run that started correctly has failed (a non-finite loss, a full disk).

    The command line prints it without a traceback and exits with code 1.
    """

    exit_code = 1


class TransientError(RunError):
    """A transient failure: another host is lost or late, or storage does not answer.

    The command line exits with code 75 (EX_TEMPFAIL): the same command, run again, resumes.
    """

    exit_code = 75


def cannot_write(what: str, error: OSError, remedy: str = "Use another --workdir") -> UserError:
    """The error for a file or folder that cannot be written.

    what: the file or folder, as the message names it. remedy: what the user can do.
    """
    if isinstance(error, PermissionError):
        remedy += ", or ask its owner for permission to write there"
    return UserError(f"{what} cannot be written: {_why(error)}. {remedy}.")


def file_failure(error: BaseException) -> UserError | None:
    """The error for a path that the file system refuses; None for any other exception."""
    if not isinstance(error, OSError) or error.errno not in _UNUSABLE:
        return None
    where = error.filename if error.filename2 is None else error.filename2
    return UserError(
        f"{repr(where) if where else 'A file'} cannot be used: {_why(error)}. Check the path and "
        "your permission there, or name another."
    )


def _why(error: OSError) -> str:
    """'Permission denied for user 1000; /x/run belongs to ann'."""
    user = ""
    if isinstance(error, PermissionError) and hasattr(os, "geteuid"):
        where = error.filename if error.filename2 is None else error.filename2
        user = f" for user {os.geteuid()}{_owner(where) if where else ''}"
    return f"{error.strerror or error}{user}"


def _owner(name: str) -> str:
    """'; /x/run belongs to ann', for the path or its nearest parent that can be read."""
    place = pathlib.Path(os.fsdecode(name)).absolute()
    for path in (place, *place.parents):
        try:
            number = path.stat().st_uid
        except OSError:
            continue
        try:
            import pwd

            return f"; {path} belongs to {pwd.getpwuid(number).pw_name}"
        except (ImportError, KeyError):
            return f"; {path} belongs to user {number}"
    return ""
