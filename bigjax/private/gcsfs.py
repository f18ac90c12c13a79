"""gcsfs's file system, changed where it would wait for ever, or fail when an answer is lost.

gcsfs has options for none of this, and etils' epath takes the class that fsspec has for gs://.
"""

from collections.abc import Callable
import contextlib
import io
import logging

import aiohttp
import fsspec
import gcsfs

from bigjax import private

# Each name, and what it is needed for.
USES = {
    "gcsfs:GCSFileSystem._request": "every request goes through it: errors are told there",
    "gcsfs:GCSFileSystem._info": "_isdir",
    "gcsfs:GCSFileSystem._isdir": "is_dir of epath: a refusal is not a no",
    "gcsfs:GCSFileSystem._rm_file": "move_folder of cloud.py: objects are copied and deleted",
    "gcsfs:GCSFileSystem._open": "open: what is written is sent whole",
    "gcsfs:GCSFileSystem._location": "upload: requests of that kind have another address",
    "gcsfs:GCSFileSystem.call": "cloud.py: requests about buckets",
    "gcsfs:GCSFileSystem.protocol": "its names in fsspec",
    "gcsfs.retry:HttpError": "cloud.py: its code is HTTP's status",
}
private.check("gcsfs", USES)


def file_system(seconds: float, translate: Callable[[Exception], Exception | None]):
    """The file system of gs:// paths, of epath's too.

    seconds: of silence after which a request is given up and sent again. translate: the error to
    raise instead of one that a request ends in after all attempts, None to leave it; of no kind
    that gcsfs and its callers take for one about the file.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
    for name in ("gcsfs", "fsspec"):  # they log what they also raise
        logging.getLogger(name).setLevel(logging.CRITICAL)

    class FileSystem(gcsfs.GCSFileSystem):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, requests_timeout=timeout, use_listings_cache=False)

        async def _request(self, *args, **options):
            try:
                return await super()._request(*args, **options)  # several attempts
            except Exception as e:
                if (translated := translate(e)) is None:
                    raise
                raise translated from e

        async def _isdir(self, path):  # gcsfs says no where the answer is a refusal, too
            try:
                return (await self._info(path))["type"] == "directory"
            except (FileNotFoundError, NotADirectoryError):
                return False

        async def _rm_file(self, path, **options):
            # A deletion that is sent again, as its answer was lost, finds nothing.
            with contextlib.suppress(FileNotFoundError):
                await super()._rm_file(path, **options)

        def upload(self, bucket: str, name: str, content: bytes, **conditions) -> dict:
            """Writes an object in one request; what storage then says of it. conditions: such as
            ifGenerationMatch. FileExistsError if they are not met."""
            address = f"{self._location}/upload/storage/v1/b/{{}}/o"
            options = dict(uploadType="media", name=name, data=content, json_out=True)
            return self.call("POST", address, bucket, **options, **conditions)

        def open(self, path, mode="rb", **options):
            # _Written takes text too: a wrapper around it would send the half when collected.
            return super().open(path, "wb" if mode in ("w", "wt") else mode, **options)

        def _open(self, path, mode="rb", *args, **options):
            if mode == "wb":
                return _Written(lambda content: self.pipe_file(path, content))
            return super()._open(path, mode, *args, **options)

    for name in FileSystem.protocol:
        fsspec.register_implementation(name, FileSystem, clobber=True)
    return fsspec.filesystem("gcs", finalize_on_close=True)


class _Written(io.BytesIO):
    """A file that is sent when it is closed, in one request where it is small: that can be asked
    for again when its answer was lost, which gcsfs's sessions of several cannot.

    Where the writing was interrupted nothing is sent: an object is whole, or as it was before.
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

    def __del__(self) -> None:  # that of a file would close it
        self.send = None
