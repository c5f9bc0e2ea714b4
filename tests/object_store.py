"""A real S3 server on the loopback address (SeaweedFS), and a proxy before it that spoils requests.

with Server(folder) as server, Proxy(server.port) as proxy: ...
"""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "bucket"
_KEYS = """{"identities": [{"name": "tests", "actions": ["Admin"],
"credentials": [{"accessKey": "key", "secretKey": "secret"}]}]}"""


def environment(port: int, key: str = "key") -> dict[str, str]:
    """What says to a process where the server is."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, from below those that systems give to connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as taken:
            taken.bind(("127.0.0.1", port))
            found.append(port)
    return found


class Server:
    """SeaweedFS with one bucket, started and stopped; what is in it stays in the folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        names = ("master", "volume", "filer", "s3")
        ports = iter(free_ports(2 * len(names)))
        self._ports = {f"{x}.port{grpc}": next(ports) for x in names for grpc in ("", ".grpc")}
        self.port = self._ports["s3.port"]
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "keys.json").write_text(_KEYS)
        self.start()
        at = f"http://127.0.0.1:{self._ports['filer.port']}/buckets/{BUCKET}/"
        urllib.request.urlopen(urllib.request.Request(at, method="POST"), timeout=10).close()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {"dir": self._folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", **self._ports}
        options |= {"s3.config": self._folder / "keys.json", "s3.iam": "false"}
        options |= {"s3.port.iceberg": 0, "s3.port.lance": 0, "s3.autoCreateBucket": "false"}
        options |= {"master.volumeSizeLimitMB": 64, "volume.max": 20}
        given = [f"-{name}={value}" for name, value in options.items()]
        program = Path(sys.executable).with_name("weed")
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [program, "-logtostderr=true", "server", "-s3", *given], stdout=log, stderr=log
            )
        end = time.monotonic() + 120
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        """Whether it knows its bucket, or could make one."""
        for port, good in ((self.port, (403,)), (self._ports["filer.port"], (200,))):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    status = answer.status
            except urllib.error.HTTPError as error:
                status = error.code
            except (OSError, HTTPException):
                return False
            if status not in good:
                return False
        return True


class Proxy:
    """Hands requests on to a server, and does to some what `fault` says of each.

    `fault(method, path)` gives None, or a status with a code ("503 SlowDown"), or "cut", which ends
    the connection within the answer. `requests` are (method, path, range) of all that came.
    """

    def __init__(self, port: int, fault: Callable[[str, str], str | None] = lambda *_: None):
        self.fault, self.requests = fault, list[tuple[str, str, str]]()
        proxy, self.faults = self, 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                told = self.command, self.path, self.headers.get("Range") or ""
                proxy.requests.append(told)
                fault = proxy.fault(self.command, self.path)
                proxy.faults += fault is not None
                if fault and fault != "cut":
                    self._answer_error(fault)
                    return
                status, headers, data = _asked(port, self.command, self.path, self.headers, body)
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                if fault:
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                elif self.command != "HEAD":
                    self.wfile.write(data)

            def _answer_error(self, fault: str) -> None:
                status, _, code = fault.partition(" ")
                data = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>"
                data = data.encode() if isinstance(data, str) else data
                self.send_response(int(status))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def log_message(self, *args: object) -> None: ...

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                """Clients that are killed leave connections behind."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _asked(port: int, method: str, path: str, headers: object, body: bytes) -> tuple:
    """The answer of the server: status, headers, body. Its death is an answer of 503."""
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
    except (OSError, HTTPException):
        return 503, [("Content-Length", "0")], b""
    finally:
        connection.close()
    kept = [x for x in answer.getheaders() if x[0] not in ("Connection", "Transfer-Encoding")]
    if not any(name == "Content-Length" for name, _ in kept):
        kept.append(("Content-Length", str(len(data))))
    return answer.status, kept, data


def some(seed: int, part: float, *faults: str) -> Callable[[str, str], str | None]:
    """A part of all requests is spoiled, in one of these ways."""
    draw, lock = random.Random(seed), threading.Lock()

    def fault(method: str, path: str) -> str | None:
        with lock:
            return draw.choice(faults) if draw.random() < part else None

    return fault


def full_after(most: int) -> Callable[[str, str], str | None]:
    """Nothing more fits after so many writes, locks aside."""
    writes = itertools.count()

    def fault(method: str, path: str) -> str | None:
        is_more = method == "PUT" and ".lock" not in path and next(writes) >= most
        return "507 QuotaExceeded" if is_more else None

    return fault


@contextlib.contextmanager
def at(port: int, key: str = "key") -> Iterator[None]:
    """Let this process use a server, and forget what it knows of any other."""
    from flaxvgg.files import remote

    before = dict(os.environ)
    os.environ |= environment(port, key)
    remote._made.cache_clear()
    remote._answered.clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
        remote._made.cache_clear()
        remote._answered.clear()
