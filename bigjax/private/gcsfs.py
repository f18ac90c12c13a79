"""The gcsfs file system, with changes where it would wait forever or fail after a lost response.

gcsfs has no options for this, and etils' epath uses the class that fsspec registers for gs://.
"""

from collections.abc import Callable
import contextlib
import io
import logging

import aiohttp
import fsspec
import gcsfs

from bigjax import private

# {name: what needs it}.
USES = {
    "gcsfs:GCSFileSystem._request": "every request goes through it: errors are translated there",
    "gcsfs:GCSFileSystem._info": "_isdir",
    "gcsfs:GCSFileSystem._isdir": "is_dir of epath: a refusal must not return False",
    "gcsfs:GCSFileSystem._rm_file": "move_folder of cloud.py: objects are copied and deleted",
    "gcsfs:GCSFileSystem._open": "open: a file is sent in one request",
    "gcsfs:GCSFileSystem._location": "upload: such requests have another address",
    "gcsfs:GCSFileSystem.call": "cloud.py: requests about buckets",
    "gcsfs:GCSFileSystem.protocol": "its names in fsspec",
    "gcsfs.retry:HttpError": "cloud.py: its code is the HTTP status",
}
private.check("gcsfs", USES)


def file_system(seconds: float, translate: Callable[[Exception], Exception | None]):
    """The file system for gs:// paths; also makes epath use it.

    seconds: a request without any response for so long is sent again. translate: maps the error of
    a request after all retries to the one to raise instead, or None to keep it; its result must not
    be of a class by which gcsfs and its callers decide about a file.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
    for name in ("gcsfs", "fsspec"):  # they log errors that they also raise
        logging.getLogger(name).setLevel(logging.CRITICAL)

    class FileSystem(gcsfs.GCSFileSystem):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, requests_timeout=timeout, use_listings_cache=False)

        async def _request(self, *args, **options):
            try:
                return await super()._request(*args, **options)  # with retries
            except Exception as e:
                if (translated := translate(e)) is None:
                    raise
                raise translated from e

        async def _isdir(self, path):  # gcsfs returns False also for a refusal
            try:
                return (await self._info(path))["type"] == "directory"
            except (FileNotFoundError, NotADirectoryError):
                return False

        async def _rm_file(self, path, **options):
            # A deletion that is retried after its response was lost finds no file.
            with contextlib.suppress(FileNotFoundError):
                await super()._rm_file(path, **options)

        def upload(self, bucket: str, name: str, content: bytes, **conditions) -> dict:
            """Writes an object in one request; returns its metadata. conditions: such as
            ifGenerationMatch. Raises FileExistsError if they are not met."""
            address = f"{self._location}/upload/storage/v1/b/{{}}/o"
            options = dict(uploadType="media", name=name, data=content, json_out=True)
            return self.call("POST", address, bucket, **options, **conditions)

        def open(self, path, mode="rb", **options):
            # _Written accepts text too: a text wrapper around it would send a partial file when
            # garbage-collected.
            return super().open(path, "wb" if mode in ("w", "wt") else mode, **options)

        def _open(self, path, mode="rb", *args, **options):
            if mode == "wb":
                return _Written(lambda content: self.pipe_file(path, content))
            return super()._open(path, mode, *args, **options)

    for name in FileSystem.protocol:
        fsspec.register_implementation(name, FileSystem, clobber=True)
    return fsspec.filesystem("gcs", finalize_on_close=True)


class _Written(io.BytesIO):
    """A file that is sent when it is closed, if small in one request, which can be retried when the
    response was lost, unlike gcsfs's sessions of several requests.

    If writing is interrupted nothing is sent: an object is complete, or unchanged.
    """

    def __init__(self, send: Callable[[bytes], None]):
        super().__init__()
        self.send: Callable[[bytes], None] | None = send

    def write(self, content: bytes | str) -> int:
        return super().write(content.encode() if isinstance(content, str) else content)

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            if self.send:
                self.send(content)

    def __exit__(self, kind, error, trace) -> None:
        if kind:
            self.send = None
        self.close()

    def __del__(self) -> None:  # BytesIO.__del__ would close it, and so send it
        self.send = None
