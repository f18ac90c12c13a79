"""A bucket for tests: gcp-storage-emulator on loopback, behind a proxy that injects faults."""

from collections.abc import Callable, Iterator
import contextlib
import json
import socket
import struct
import threading
import urllib.error
import urllib.parse
import urllib.request

from etils.epath import backend

from bigjax import cloud

BUCKET = "bucket"
STALL_SECONDS = 30  # how long a stalled server is silent; a client should give up earlier


def environment(url: str) -> dict[str, str]:
    """Environment variables that redirect gs:// to url."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        # The emulator has no gRPC, by which gcsfs would request the kind of the bucket.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def use(monkeypatch, url: str) -> None:
    """Redirects gs:// of this process to url, also for epath, which caches a file system."""
    for key, value in environment(url).items():
        monkeypatch.setenv(key, value)
    cloud._file_system.cache_clear()
    cloud.check_writable.cache_clear()
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    cloud.check([f"gs://{BUCKET}/a"])  # creates the file system


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    """The address of an emulator with one empty bucket in memory."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


class Proxy:
    """Forwards requests to the emulator at `url`, and adds version numbers of objects and
    conditions on them, which Google's storage has and the emulator lacks.

    fault(n) determines the n-th request: 'refuse' answers 503; 'cut' resets the connection before
    the request is executed, 'lose' after it; 'stall' sends nothing for STALL_SECONDS or until the
    client gives up; None is no fault. The emulator answers one request per connection.
    """

    def __init__(self, url: str, fault: Callable[[int], str | None] = lambda n: None):
        host, port = url.removeprefix("http://").split(":")
        self._to, self._fault = (host, int(port)), fault
        self.requests, self._one_at_a_time = 0, threading.Lock()
        self.faults: list[str] = []  # in the order in which they were injected
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()

    def fault_next(self, kind: str, after: int = 1) -> None:
        """Gives only the `after`-th of the next requests this fault."""
        which = self.requests + after
        self._fault = lambda n: kind if n == which else None

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            request = _read_request(client)
            if not request:  # a connection that was opened in advance
                return
            with self._one_at_a_time:
                self.requests += 1
                fault = self._fault(self.requests)
            if fault:
                self.faults.append(fault)
            if fault == "refuse":
                client.sendall(_answer("503 Service Unavailable"))
            elif fault == "stall":
                client.settimeout(STALL_SECONDS)
                client.recv(1)  # returns when the client closes
            elif fault == "cut":
                _reset(client)
            else:
                with self._one_at_a_time:
                    answer = self._answer_to(request)
                _reset(client) if fault == "lose" else client.sendall(answer)

    def _answer_to(self, request: bytes) -> bytes:
        method, target = request.split(b" ", 2)[:2]
        address = urllib.parse.urlsplit(target.decode())
        query = urllib.parse.parse_qs(address.query)
        if "/moveTo/" in address.path:  # gcsfs copies instead
            return _answer("400 Bad Request")
        bucket, _, name = address.path.partition("/o/")
        name = urllib.parse.unquote(name) or query.get("name", [""])[0]
        generation = 0
        if query.keys() & {"ifGenerationMatch", "ifGenerationNotMatch", "alt"}:
            generation = self._generation(bucket.split("/b/")[1].split("/")[0], name)
        if query.get("ifGenerationMatch", [str(generation)]) != [str(generation)]:
            return _answer("412 Precondition Failed")
        if query.get("ifGenerationNotMatch") == [str(generation)]:
            return _answer("304 Not Modified" if generation else "404 Not Found")
        answer = self._pass_on(request)
        if generation and method == b"GET":
            answer = answer.replace(b"\r\n", b"\r\nx-goog-generation: %d\r\n" % generation, 1)
        return answer

    def _generation(self, bucket: str, name: str) -> int:
        """The version number of an object; 0 if it does not exist."""
        path = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
        head, _, body = self._pass_on(f"GET {path} HTTP/1.0\r\n\r\n".encode()).partition(
            b"\r\n\r\n"
        )
        return int(json.loads(body)["generation"]) if b" 200 " in head.split(b"\r\n")[0] else 0

    def _pass_on(self, request: bytes) -> bytes:
        with socket.create_connection(self._to) as server:
            server.sendall(request)
            return b"".join(iter(lambda: server.recv(1 << 16), b""))


def _answer(status: str) -> bytes:
    return f"HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n".encode()


def _read_request(client: socket.socket) -> bytes:
    """One request, with a body by Content-Length or in chunks."""
    data = b""
    while b"\r\n\r\n" not in data:
        block = client.recv(1 << 16)
        if not block:
            return b""
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
    if b"100-continue" in fields.get(b"expect", b""):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(fields.get(b"content-length", 0))
    chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
    while len(body) < length or chunked and not body.endswith(b"0\r\n\r\n"):
        body += client.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def faults(refuse: int, cut: int, lose: int, stall: int) -> Callable[[int], str | None]:
    """A deterministic fault(n): every `refuse`-th request is refused, and so on."""
    every = {"refuse": refuse, "cut": cut, "lose": lose, "stall": stall}
    return lambda n: next((kind for kind, k in every.items() if n % k == 0), None)


def put(url: str, name: str, content: bytes) -> None:
    """Writes an object without using the code under test."""
    query = urllib.parse.urlencode({"uploadType": "media", "name": name})
    address = f"{url}/upload/storage/v1/b/{BUCKET}/o?{query}"
    urllib.request.urlopen(urllib.request.Request(address, content, method="POST")).read()


def delete(url: str, name: str) -> None:
    path = f"/storage/v1/b/{BUCKET}/o/{urllib.parse.quote(name, safe='')}"
    urllib.request.urlopen(urllib.request.Request(url + path, method="DELETE")).read()


def get(url: str, name: str) -> bytes | None:
    """The content of an object; None if it does not exist."""
    try:
        return urllib.request.urlopen(f"{url}/{BUCKET}/{urllib.parse.quote(name)}").read()
    except urllib.error.HTTPError:
        return None
