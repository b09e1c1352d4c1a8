"""A model hub on loopback: folders served by the hub's own protocol, for the real client in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    """Serve ``root``/ORG/NAME as repositories."""
    found = Hub(root)
    thread = Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()
        thread.join()


class Hub:
    """Attributes: ``asked``, the names of the files that were fetched, in order."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, list[str]()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    def run(self, code: str, home: Path, offline: bool = False) -> str:
        """What a Python process prints that has this hub and the cache ``home``; its error is an AssertionError."""
        told = {"HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}", "HF_HOME": str(home)}
        told |= {"HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | told, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = self.path.partition("?")[0].strip("/").split("/")
                api = parts[:2] == ["api", "models"]
                repository = hub.root.joinpath(*parts[2:4] if api else parts[:2])
                if not repository.is_dir():
                    self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
                elif api and parts[4] == "revision":
                    self._answer(200, json.dumps({"id": "/".join(parts[2:4]), "sha": COMMIT}).encode())
                elif api and parts[4] == "tree":
                    files = [file for file in sorted(repository.rglob("*")) if file.is_file()]
                    listed = [
                        {"type": "file", "path": file.relative_to(repository).as_posix(), "size": file.stat().st_size,
                         "oid": hashlib.sha1(file.read_bytes()).hexdigest()}
                        for file in files
                    ]  # fmt: skip
                    self._answer(200, json.dumps(listed).encode())
                elif (file := repository.joinpath(*parts[4:])).is_file():
                    if self.command == "GET":
                        hub.asked.append(file.name)
                    tag = hashlib.sha1(file.read_bytes()).hexdigest()
                    self._answer(200, file.read_bytes(), {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
                else:
                    self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

            do_HEAD = do_GET

            def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
