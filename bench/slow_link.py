"""A link of a known speed between a client and a server of this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

_AT_ONCE = 1 << 18


class _Pace:
    """Lets bytes pass at a rate that all connections share."""

    def __init__(self, bytes_a_second: float) -> None:
        self.rate, self._free, self._lock = bytes_a_second, time.monotonic(), threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self.rate
            wait = self._free - time.monotonic()
        time.sleep(max(wait, 0.0))


@contextlib.contextmanager
def slow_link(endpoint: str, bytes_a_second: float) -> Iterator[str]:
    """The endpoint of a server behind a link, whose answers pass at this rate. What is asked passes at once.

    Args:
        endpoint: the server's, ``http://host:port``.
        bytes_a_second: of all connections together.
    """
    host, port = endpoint.removeprefix("http://").split(":")
    pace = _Pace(bytes_a_second)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, (host, int(port)), pace), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _serve(listener: socket.socket, server: tuple[str, int], pace: Callable[[int], None]) -> None:
    with contextlib.suppress(OSError):  # the listener was closed
        while True:
            client, _ = listener.accept()
            away = socket.create_connection(server)
            for source, sink, each in ((client, away, lambda _: None), (away, client, pace)):
                threading.Thread(target=_pump, args=(source, sink, each), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket, pace: Callable[[int], None]) -> None:
    buffer = memoryview(bytearray(_AT_ONCE))
    with contextlib.suppress(OSError):
        while count := source.recv_into(buffer):
            pace(count)
            sink.sendall(buffer[:count])
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
