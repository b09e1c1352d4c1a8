"""Files that appear whole or not at all: written beside their place, synced, then renamed over it."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file open for writing that takes its place once the block has ended without an error; until then, and after an
    error, what stood there stands there still. A link keeps pointing where it does; a device (``/dev/null``) is written as
    it is.

    Args:
        mode: ``"wb"``, or ``"w"`` for UTF-8.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    encoding = None if "b" in mode else "utf-8"
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        with open(place, mode, encoding=encoding) as file:
            yield file
        return
    draft = place.with_name(f".{uuid.uuid4().hex}.draft")
    try:
        with open(draft, mode.replace("w", "x"), encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, place)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, data: bytes | str) -> None:
    """:func:`atomic_write` of bytes, or of a text in UTF-8."""
    with atomic_write(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
