"""A view of a store over HTTP, on this machine only: the page, and what it asks for."""

import ipaddress
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from flaxvgg.files.foreign import plain
from flaxvgg.plotting.store_view import StoreView

_PATH = re.compile(r"/(item|picture|thumbnail)/([0-9]{1,12})")
Answer = tuple[str, bytes]  # a type and what is sent


def serve(view: StoreView, host: str, port: int) -> ThreadingHTTPServer:
    """A server of a view that listens, on a free port for 0; `serve_forever()` runs it.

    It reads, and writes nothing. On a loopback address it answers only who asked for that: a page
    elsewhere whose name was made to point here is refused. Raises OSError for an address that
    cannot be had.
    """
    document = view.page().encode()

    class Handler(_Handler):
        def answer(self, path: str, query: dict[str, str]) -> Answer:
            if path == "/":
                return "text/html; charset=utf-8", document
            if path == "/list":
                return _json(view.listing(query))
            match = _PATH.fullmatch(path)
            if match is None:
                raise LookupError("there is nothing here")
            kind, row = match[1], int(match[2])
            if kind == "item":
                return _json(view.item(row))
            return "image/jpeg", view.picture(row, small=kind == "thumbnail")

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    server = Server((host, port), Handler)
    if is_loopback(host):
        at = server.server_address[1]
        Handler.hosts = {f"{name}:{at}" for name in (host, "localhost", "127.0.0.1")}
    return server


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD; every other method is refused, as `BaseHTTPRequestHandler` does."""

    hosts: set[str] | None = None
    answer: Callable[..., Answer]
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        status, kind, data = 200, "text/plain; charset=utf-8", b""
        if self.hosts is not None and self.headers.get("Host", "") not in self.hosts:
            status, data = 403, b"ask by the address that flaxvgg view has told"
        else:
            parts = urlsplit(self.path)
            try:
                kind, data = self.answer(parts.path, dict(parse_qsl(parts.query)))
            except (LookupError, ValueError, OSError) as error:
                status, data = 404, plain(str(error)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """The console is for what the command says."""


def _json(value: Any) -> Answer:
    return "application/json", json.dumps(value, allow_nan=False).encode()
