"""Google Cloud Storage: its configuration, checks, errors and the operations that epath lacks.

Files are read and written through etils' epath by gcsfs, arrays by TensorStore. Both retry a
request that was refused or interrupted, with growing pauses. But both wait forever for a server
that has gone silent, and gcsfs caches listings that TensorStore's writes make stale.
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

STALL_SECONDS = "60"  # a request without any response for so long is sent again
_CURL = "TENSORSTORE_CURL"
# Modules of gcsfs and its dependencies: errors defined there are errors of storage.
_LIBRARIES = ("gcsfs.", "fsspec.", "aiohttp.", "google.auth.", "google.api_core.", "requests.")
_REFUSALS = {"400", "401", "403", "404"}  # HTTP status codes for which a retry would not help
_BUSY = re.compile("408|429|5..")
# Names of the libraries' exceptions for a connection that broke, failed, or gave corrupt bytes.
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
# TensorStore raises ValueErrors whose texts start with a status.
_TRANSIENT = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|INTERNAL|UNKNOWN): "
)
_REFUSED = re.compile("(PERMISSION_DENIED|UNAUTHENTICATED): ")


def check(paths: Iterable[str]) -> None:
    """Checks that the buckets of gs:// paths can be read, and sets the time-outs of requests.

    Ignores other paths. Raises UserError if gcsfs is not installed, and for a bucket that does not
    exist or may not be listed; TransientError if storage does not answer.
    """
    names = {path.removeprefix("gs://").split("/")[0] for path in paths if path.startswith("gs://")}
    if not names:
        return
    if "" in names:
        raise UserError("A gs:// path names no bucket. Write it as gs://BUCKET/FOLDER.")
    if not importlib.util.find_spec("gcsfs"):
        raise UserError(
            f"gs://{min(names)} needs the package gcsfs. Install it: {how_to_install('gcs')}"
        )
    for name in sorted(names):
        _ask(name, "b/{}/o", maxResults=1)


@functools.cache
def check_writable(folder: str) -> bool:
    """Checks that a gs:// folder can be written, with a small object; once per folder and process.

    Returns whether objects have version numbers, as on Google's storage, but not on emulators:
    Orbax's one-file format (OCDBT) needs them, as it replaces only the version that it has read.
    True for local folders. Raises UserError without permission to write, TransientError if storage
    does not answer.
    """
    if not folder.startswith("gs://"):
        return True
    check([folder])
    # All hosts of a run check at the same time, so each uses a different name.
    path = f"{folder.removeprefix('gs://').rstrip('/')}/.bigjax-may-write-{secrets.token_hex(8)}"
    bucket, _, name = path.partition("/")
    fs = _file_system()
    try:
        fs.call("GET", "b/{}", bucket)  # Orbax requests the kind of the bucket
        fs.pipe_file(path, b"x")
        headers, _ = fs.call("GET", "b/{}/o/{}", bucket, name, alt="media")
        with contextlib.suppress(FileNotFoundError):  # a retry after the response was lost
            fs.rm_file(path)
    except Exception as e:
        if isinstance(failed := failure(e), TransientError):
            raise failed from None
        raise UserError(
            f"{folder} cannot be written: {_text(e)}. Get the roles {_ROLES}, or use a folder in "
            "another bucket."
        ) from None
    return "x-goog-generation" in headers


def move_folder(path: epath.Path, target: epath.Path) -> None:
    """Moves a local or gs:// folder to a path that does not exist, without reading its files."""
    if "://" in str(path):  # epath's rename needs target's parent, which buckets do not have
        _file_system().mv(str(path), str(target), recursive=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def delete_folder(path: epath.Path, mark: str, suffix: str) -> None:
    """Deletes a local or gs:// folder so that a partly deleted one is never used as complete.

    mark: the file without which a gs:// folder counts as incomplete. suffix: appended to the name
    of a local folder to mark it as incomplete.
    """
    if "://" in str(path):
        (path / mark).unlink(missing_ok=True)
    else:
        complete, path = path, path.with_name(path.name + suffix)
        path.rmtree(missing_ok=True)
        complete.rename(path)
    path.rmtree()


class Version(NamedTuple):
    """An object and its version. age: seconds since it was written, by the server's clock."""

    version: str
    content: bytes
    age: float


def read_version(path: str) -> Version | None:
    """A small object on gs:// with its version number; None if it does not exist."""
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
    """Replaces a version ("0": no object) of an object on gs://; returns the new version.

    None if the object now has another version. That may be this write's own: a request is sent
    again if its response was lost.
    """
    bucket, _, name = path.removeprefix("gs://").partition("/")
    try:
        written = _file_system().upload(bucket, name, content, ifGenerationMatch=version)
        return written["generation"]
    except FileExistsError:  # gcsfs raises this for an unmet condition
        return None
    except FileNotFoundError:
        if version == "0":  # the bucket does not exist
            raise
        return None


def delete_version(path: str, version: str) -> None:
    """Deletes an object on gs:// if it has this version."""
    bucket, _, name = path.removeprefix("gs://").partition("/")
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        _file_system().call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=version)


def failure(error: Exception, place: str = "") -> UserError | RunError | None:
    """The error to raise for one that storage gives after all retries; None for any other.

    place: the path that TensorStore read or wrote; it raises the same errors for local files.
    Returns UserError if storage refuses, TransientError if it may answer later.
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
    """Whether a storage library raised this for a broken connection, time-out or busy server."""
    kinds = type(error).__mro__
    if not any(kind.__module__.startswith(_LIBRARIES) for kind in kinds):
        return False
    if number := _number(error):
        return bool(_BUSY.fullmatch(number))
    return not _BROKEN.isdisjoint(kind.__name__ for kind in kinds)


def _transient(error: BaseException) -> TransientError:
    return TransientError(
        f"Cloud storage failed, also after retries: {_text(error)}. Everything saved before is "
        "intact: once storage answers again, the same command resumes from there."
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and the chain of errors that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_refusal(error: BaseException, place: str) -> bool:
    """Whether storage would refuse again. (A 404 is a FileNotFoundError, like a local one.)"""
    text, kinds = str(error), {t.__name__ for t in type(error).__mro__}
    if kinds & {"HttpError", "ClientResponseError"}:
        return _number(error) in _REFUSALS
    if "RefreshError" in kinds:  # transient if the server for credentials was not reached
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
    """The HTTP status in an error of a library; '' if there is none."""
    return str(getattr(error, "code", None) or getattr(error, "status", None) or "")


def _from_tensorstore(status: re.Pattern, error: BaseException, place: str) -> bool:
    return (
        place.startswith("gs://")
        and isinstance(error, ValueError)
        and bool(status.match(str(error)))
    )


def _ask(bucket: str, request: str, **parameters) -> dict:
    """The response to a GET request about a bucket. Raises UserError if it is refused."""
    try:
        return _file_system().call("GET", request, bucket, json_out=True, **parameters)
    except FileNotFoundError:
        why = "there is no such bucket. Check its name, or create it"
    except Exception as e:  # refusals, and missing credentials
        if isinstance(failed := failure(e), TransientError):
            raise failed from None
        why = f"{_text(e)}. Check your permission to read it and {_LOG_IN}"
    raise UserError(f"gs://{bucket}: {why}.")


@functools.cache
def _file_system():
    """The gcsfs file system, which epath uses too, with TensorStore's time-outs and with
    TransientError for transient failures."""
    from bigjax.private import gcsfs  # slow to import

    # Variables that TensorStore reads at its first request; less than a byte per second is a stall.
    seconds = int(os.environ.setdefault(f"{_CURL}_LOW_SPEED_TIME_SECONDS", STALL_SECONDS))
    os.environ.setdefault(f"{_CURL}_LOW_SPEED_LIMIT_BYTES", "1")
    os.environ.setdefault(f"{_CURL}_CONNECT_TIMEOUT_SECONDS", str(seconds))
    return gcsfs.file_system(seconds, _as_transient)


def _as_transient(error: Exception) -> TransientError | None:
    """The TransientError to raise for a transient failure of a request; None for any other."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return _transient(error)
    failed = failure(error)
    return failed if isinstance(failed, TransientError) else None


def _text(error: Exception) -> str:
    # gcsfs writes ", 503" if the response has no text.
    return " ".join(str(error).split())[:300].strip("., ") or type(error).__name__
