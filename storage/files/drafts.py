"""Files that are being written: hashed as they grow, synced, and named so that everybody sees whose they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from hoi_distill.storage.files import owner


class Hashing:
    """A binary sink that hashes and counts what passes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.state, self.bytes, self.closed = file, hashlib.blake2b(digest_size=16), 0, False

    def write(self, data: Any) -> int:
        """Write all of it."""
        view = memoryview(data).cast("B")
        self.state.update(view)
        self.bytes += view.nbytes
        write_all(self.file, view)
        return view.nbytes

    def flush(self) -> None:
        """Pass on what the file holds back."""
        self.file.flush()


@contextlib.contextmanager
def draft(folder: Path, write: Callable[[BinaryIO], None]) -> Iterator[tuple[Path, Hashing]]:
    """A finished, synced file under a name that says whose it is; gone at the end unless it was renamed."""
    path = folder / f"{owner.tag()}-{uuid.uuid4().hex[:12]}"
    try:
        with open(path, "xb", buffering=0) as file:
            sink = Hashing(file)
            write(cast(BinaryIO, sink))
            os.fsync(file.fileno())
        yield path, sink
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def write_all(sink: BinaryIO, data: Any) -> None:
    """Write bytes to a sink that may take a part of them at a time."""
    view = memoryview(data).cast("B")
    while view.nbytes:
        view = view[sink.write(view) :]
