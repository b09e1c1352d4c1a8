"""A proxy on this machine that stands before an S3 server and does to each request what a test says."""

from __future__ import annotations

import http.client
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from typing_extensions import override

Fate = Literal["pass", "refuse", "cut", "torn", "lost", "failed", "half", "forbid"]
"""What becomes of a request.

``pass``: nothing. ``refuse``: 503, and the server never sees it. ``cut``: the connection ends before the server sees it.
``torn``: it ends in the middle of what the client sends. ``lost``: the server does it, and the connection ends before the answer.
``failed``: the server does it, and the client is told 500. ``half``: the connection ends in the middle of the answer.
``forbid``: 403, and the server never sees it.
"""
FATES: tuple[Fate, ...] = ("refuse", "cut", "torn", "lost", "failed", "half")


@dataclass(frozen=True)
class Request:
    """What a client asks.

    Attributes:
        number: from 1.
        method: ``PUT``, say.
        path: with the query.
    """

    number: int
    method: str
    path: str


Act = Callable[[Request], Fate]


class _Server(ThreadingHTTPServer):
    """What the handlers of all requests share."""

    daemon_threads = True

    def __init__(self, endpoint: str, act: Act, conditions: bool, done: Callable[[Request], None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.act, self.conditions, self.done = endpoint.removeprefix("http://"), act, conditions, done
        self.numbers = itertools.count(1)

    @override
    def handle_error(self, *_: Any) -> None:
        """A client that was killed is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    @override
    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def relay(self) -> None:
        """Let a request meet its fate."""
        length = int(self.headers.get("Content-Length") or 0)
        request = Request(next(self.server.numbers), self.command, self.path)
        fate = self.server.act(request)
        self.close_connection = fate in ("cut", "torn", "lost", "half")
        if fate in ("cut", "torn"):
            self.rfile.read(length // 2 if fate == "torn" else 0)
            return
        body = self.rfile.read(length)
        if fate in ("refuse", "forbid"):
            self._answer(503 if fate == "refuse" else 403, [], b"")
            return
        status, headers, data = self._ask(body)
        self.server.done(request)
        if fate == "failed":
            self._answer(500, [], b"")
        elif fate != "lost":
            self._answer(status, headers, data, half=fate == "half")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server answers."""
        kept = self.server.conditions
        headers = {name: value for name, value in self.headers.items() if kept or name.lower() != "if-none-match"}
        server = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            server.request(self.command, self.path, body, headers)
            response = server.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            server.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, half: bool = False) -> None:
        self.send_response_only(status)
        own = [] if self.command == "HEAD" and headers else [("Content-Length", str(len(data)))]
        ours = ("transfer-encoding", "connection", *(("content-length",) if own else ()))
        for name, value in [*((name, value) for name, value in headers if name.lower() not in ours), *own]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if half else data)


@contextmanager
def proxy(
    endpoint: str, act: Act, *, conditions: bool = True, done: Callable[[Request], None] = lambda _: None
) -> Iterator[str]:
    """The address of a proxy.

    Args:
        endpoint: the server behind it.
        act: decides, in the thread of the request.
        conditions: whether it passes ``If-None-Match`` on. A server that never sees it overwrites.
        done: told of each request that the server has done, before the client hears of it.
    """
    server = _Server(endpoint, act, conditions, done)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
