"""Google Cloud Storage: what has to be so before the first gs:// path is used, in one place.

Files are read and written through etils' epath by gcsfs, arrays by TensorStore. Both repeat a
request that was refused or cut off, with growing pauses. But both wait for ever where a server
says nothing more, and gcsfs remembers listings that TensorStore's writes make wrong.
"""

from collections.abc import Iterable, Iterator
import contextlib
import datetime
import email.utils
import functools
import importlib.util
import json
import os
import re
import secrets
from typing import NamedTuple

from etils import epath

from bigjax.errors import RunError, TransientError, UserError
from bigjax.extras import how_to_install

STALL_SECONDS = "60"  # of silence after which a request is given up and sent again
_CURL = "TENSORSTORE_CURL"
# Of gcsfs and what it uses, whose errors are of storage.
_LIBRARIES = ("gcsfs.", "fsspec.", "aiohttp.", "google.auth.", "google.api_core.", "requests.")
_REFUSALS = {"400", "401", "403", "404"}  # of HTTP: asking again would not help
_BUSY = re.compile("408|429|5..")
# How the libraries call what a connection gives that broke, never was, or gave other bytes.
_BROKEN = {
    "ConnectionError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ChunkedEncodingError",
    "Timeout",
    "TimeoutError",
    "TransportError",
    "RefreshError",
    "ChecksumError",
}
_ROLES = "roles/storage.objectUser and roles/storage.legacyBucketReader"
_LOG_IN = "that you are logged in (on your own machine: gcloud auth application-default login)"
# How TensorStore's errors begin, which are ValueErrors.
_TRANSIENT = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|INTERNAL|UNKNOWN): "
)
_REFUSED = re.compile("(PERMISSION_DENIED|UNAUTHENTICATED): ")


def check(paths: Iterable[str]) -> None:
    """Refuses gs:// paths that cannot be read; makes requests to them give up on silence.

    Paths of other kinds are passed over. Raises UserError if gcsfs is not installed, and for a
    bucket that is not there or may not be listed; TransientError if storage does not answer.
    """
    names = {path.removeprefix("gs://").split("/")[0] for path in paths if path.startswith("gs://")}
    if not names:
        return
    if "" in names:
        raise UserError("A gs:// path names no bucket. Write gs://BUCKET/FOLDER.")
    if not importlib.util.find_spec("gcsfs"):
        raise UserError(
            f"gs://{min(names)} needs the package gcsfs. Install it: {how_to_install('gcs')}"
        )
    for name in sorted(names):
        _ask(name, "b/{}/o", maxResults=1)


@functools.cache
def check_writable(folder: str) -> bool:
    """Writes, reads and deletes a small object in a gs:// folder; asks once.

    Returns whether an object's versions are numbered, as Google's are and emulators' are not:
    Orbax's one-file format (OCDBT) needs that, since it writes only over the version it has read.
    True for local folders. Raises UserError if it may not write, TransientError if storage does not
    answer.
    """
    if not folder.startswith("gs://"):
        return True
    check([folder])
    # All hosts of a run ask at once, so each takes a name of its own.
    path = f"{folder.removeprefix('gs://').rstrip('/')}/.bigjax-may-write-{secrets.token_hex(8)}"
    bucket, _, name = path.partition("/")
    fs = _file_system()
    try:
        fs.call("GET", "b/{}", bucket)  # Orbax asks it what kind of bucket this is
        fs.pipe_file(path, b"x")
        headers, _ = fs.call("GET", "b/{}/o/{}", bucket, name, alt="media")
        with contextlib.suppress(FileNotFoundError):  # the answer was lost, and it asked again
            fs.rm_file(path)
    except Exception as e:
        if isinstance(failed := failure(e), TransientError):
            raise failed from None
        raise UserError(
            f"{folder} cannot be written: {_text(e)}. It takes the permissions of "
            f"{_ROLES}; or name a folder in another bucket."
        ) from None
    return "x-goog-generation" in headers


def write_whole(path: epath.Path, content: bytes) -> None:
    """Writes a file, here or on gs://, so that no one ever sees a part of it."""
    if "://" in str(path):  # an object is there when it is complete
        path.write_bytes(content)
        return
    new = path.with_name(path.name + ".tmp")
    new.write_bytes(content)
    new.replace(path)


def move_folder(path: epath.Path, target: epath.Path) -> None:
    """Moves a folder to a place where there is none, here or on gs://, without reading it."""
    if "://" in str(path):  # epath's rename asks for target's parent, which no bucket has
        _file_system().mv(str(path), str(target), recursive=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def delete_folder(path: epath.Path, mark: str, suffix: str) -> None:
    """Deletes a folder, here or on gs://, so that a half of it is never taken for the whole.

    mark: the file on gs:// without which the folder counts as incomplete; suffix: what makes a
    local folder's name that of an incomplete one.
    """
    if "://" in str(path):
        (path / mark).unlink(missing_ok=True)
    else:
        whole, path = path, path.with_name(path.name + suffix)
        path.rmtree(missing_ok=True)
        whole.rename(path)
    path.rmtree()


class Version(NamedTuple):
    """An object as it was read. age: seconds since it was written, by the server's clock."""

    version: str
    content: bytes
    age: float


def read_version(path: str) -> Version | None:
    """A small object of gs://, with the number of its version; None if there is none."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    fs = _file_system()
    try:
        headers, about = fs.call("GET", "b/{}/o/{}", bucket, name)
        _, content = fs.call("GET", "b/{}/o/{}", bucket, name, alt="media")
    except FileNotFoundError:
        return None
    about = json.loads(about)
    written = datetime.datetime.fromisoformat(about["updated"])
    try:
        age = email.utils.parsedate_to_datetime(headers["Date"]) - written
    except (LookupError, ValueError, TypeError):
        age = datetime.timedelta()
    return Version(about["generation"], content, age.total_seconds())


def write_version(path: str, content: bytes, version: str) -> str | None:
    """Writes an object of gs:// in place of this version, "0" for none; its new version.

    None if another is there now: it may be this one, since a request is sent again if its answer
    was lost.
    """
    bucket, _, name = path.removeprefix("gs://").partition("/")
    try:
        written = _file_system().upload(bucket, name, content, ifGenerationMatch=version)
        return written["generation"]
    except FileExistsError:  # so gcsfs calls a condition that is not met
        return None
    except FileNotFoundError:
        if version == "0":  # it is the bucket that is not there
            raise
        return None


def delete_version(path: str, version: str) -> None:
    """Deletes an object of gs:// if it has this version."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        _file_system().call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=version)


def failure(error: Exception, place: str = "") -> UserError | RunError | None:
    """What to say of an error that storage gives after all attempts; None if it is another.

    place: what TensorStore read or wrote, which raises the same for local files.
    Returns UserError where storage refuses, and TransientError where it may answer later.
    """
    for e in causes(error):
        if isinstance(e, (UserError, RunError)):
            return e
        if _is_refusal(e, place):
            return UserError(
                f"Cloud storage refuses: {_text(e)}. Check your permission ({_ROLES}) "
                f"and {_LOG_IN}."
            )
        if is_transient(e) or _from_tensorstore(_TRANSIENT, e, place):
            return _transient(e)
    return None


def is_transient(error: BaseException) -> bool:
    """Whether one of the libraries raised this for a connection that broke, for a time-out, or
    since the server has no time now."""
    kinds = type(error).__mro__
    if not any(kind.__module__.startswith(_LIBRARIES) for kind in kinds):
        return False
    if number := _number(error):
        return bool(_BUSY.fullmatch(number))
    return not _BROKEN.isdisjoint(kind.__name__ for kind in kinds)


def _transient(error: BaseException) -> TransientError:
    return TransientError(
        f"Cloud storage failed, also when asked again: {_text(error)}. What was saved before is "
        "intact: when it answers, the same command goes on from there."
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_refusal(error: BaseException, place: str) -> bool:
    """Whether storage would say the same again. A 404 is a FileNotFoundError like a local one."""
    text, kinds = str(error), {t.__name__ for t in type(error).__mro__}
    if kinds & {"HttpError", "ClientResponseError"}:
        return _number(error) in _REFUSALS
    if "RefreshError" in kinds:  # else the server that gives credentials was not reached
        return not (error.retryable or error.__cause__)
    return (
        "DefaultCredentialsError" in kinds
        or type(error) is OSError
        and text.startswith("Forbidden: ")
        or type(error) is ValueError
        and text.startswith("Bad Request: ")
        or _from_tensorstore(_REFUSED, error, place)
    )


def _number(error: BaseException) -> str:
    """The status of HTTP in an error of a library's; '' if there is none."""
    return str(getattr(error, "code", None) or getattr(error, "status", None) or "")


def _from_tensorstore(status: re.Pattern, error: BaseException, place: str) -> bool:
    return (
        place.startswith("gs://")
        and isinstance(error, ValueError)
        and bool(status.match(str(error)))
    )


def _ask(bucket: str, request: str, **parameters) -> dict:
    """A GET request about a bucket. Raises UserError, saying why, if it is refused."""
    try:
        return _file_system().call("GET", request, bucket, json_out=True, **parameters)
    except FileNotFoundError:
        why = "there is no such bucket. Check its name, or make it"
    except Exception as e:  # refusals, and failures to find credentials or the server
        if isinstance(failed := failure(e), TransientError):
            raise failed from None
        why = f"{_text(e)}. Check your permission to read it and {_LOG_IN}"
    raise UserError(f"gs://{bucket}: {why}.")


@functools.cache
def _file_system():
    """gcsfs's, which epath uses too: it waits for as long as TensorStore does, and raises our
    errors for what passes."""
    from bigjax.private import gcsfs  # slow to import

    # TensorStore's own variables, which it reads at its first request; less than a byte a second
    # is silence.
    seconds = int(os.environ.setdefault(f"{_CURL}_LOW_SPEED_TIME_SECONDS", STALL_SECONDS))
    os.environ.setdefault(f"{_CURL}_LOW_SPEED_LIMIT_BYTES", "1")
    os.environ.setdefault(f"{_CURL}_CONNECT_TIMEOUT_SECONDS", str(seconds))
    return gcsfs.file_system(seconds, _as_transient)


def _as_transient(error: Exception) -> TransientError | None:
    """What a request raises for an error that may pass; None for one that does not."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return _transient(error)
    failed = failure(error)
    return failed if isinstance(failed, TransientError) else None


def _text(error: Exception) -> str:
    # gcsfs writes ", 503" where the answer has no text.
    return " ".join(str(error).split())[:300].strip("., ") or type(error).__name__
