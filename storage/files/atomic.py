"""Files that are whole or not there: written beside their place, synced, then renamed.

An error or a kill at any instant leaves what was there before. Tables have writers of their own
(:mod:`hoi_distill.storage.records`): what they write is named by its contents and never replaced.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """A new file that takes its place at ``path``, durably, when the block ends without an error.

    Text (mode ``w``) is UTF-8. What is no regular file (a terminal, a pipe) is written as it stands; of a link, what it
    leads to is replaced.

    Raises:
        OSError: it cannot be written; ``path`` is as it was.
    """
    target = Path(os.path.realpath(path))
    encoding = None if "b" in mode else "utf-8"
    if target.exists() and not target.is_file() and not target.is_dir():
        with open(path, mode, encoding=encoding) as file:
            yield file
        return
    draft = target.with_name(f".{uuid.uuid4().hex}.draft")
    try:
        with open(draft, mode.replace("w", "x"), encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
        sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Make ``data`` the contents of ``path``; text is UTF-8. Raises ``OSError``; ``path`` is then as it was."""
    with atomic_write(path, "w" if isinstance(data, str) else "wb") as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
