"""The exceptions that the command line tells in one sentence, by their exit codes."""

import errno
import os
import pathlib

# Of an OSError: the disk or a quota is full, or a file would be too large.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of an OSError: this user may not, or the path is none that can be used so.
_UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
)


class UserError(Exception):
    """Bad input: a config, data, a checkpoint, a mesh or a request.

    The command line prints it without a traceback and exits with code 2, so the message
    says what was wrong, what was found, what is allowed, and what to do.
    """

    exit_code = 2


class RunError(Exception):
    """A run that began well cannot go on (a loss that is not finite, a full disk).

    The command line prints it without a traceback and exits with code 1.
    """

    exit_code = 1


class TransientError(RunError):
    """A transient failure: another host is lost or late, or storage does not answer.

    The command line exits with code 75 (EX_TEMPFAIL): the same command, run again, resumes.
    """

    exit_code = 75


def cannot_write(what: str, error: OSError, remedy: str = "Use another --workdir") -> UserError:
    """What to say where a file or folder cannot be written. what: names it; remedy: what to do."""
    if isinstance(error, PermissionError):
        remedy += ", or ask its owner for permission to write there"
    return UserError(f"{what} cannot be written: {_why(error)}. {remedy}.")


def file_failure(error: BaseException) -> UserError | None:
    """What to say where a path cannot be used as the file system says; None of another error."""
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
    """'; /x/run belongs to ann': of the path, or of the folder that hides it."""
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
