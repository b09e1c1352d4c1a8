"""Files that are whole or not there: written beside their place, synced, then renamed.

An error or a kill at any instant leaves what was there before. A draft's name says which process writes it; the next writer
of the same folder removes what killed processes have left. Tables have writers of their own
(:mod:`hoi_distill.storage.records`): what they write is named by its contents and never replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hoi_distill.storage.files import owner

_DRAFT = re.compile(owner.TAG.pattern + "[0-9a-f]+-")


@contextlib.contextmanager
def atomic_path(place: Path) -> Iterator[Path]:
    """Where to write a file, or a folder of files, that takes its place durably when the block ends without an error.

    Args:
        place: what is replaced. Its parent is there.

    Raises:
        OSError: it cannot be written; ``place`` is as it was.
    """
    for left in owner.leftovers(place.parent, tagged=_DRAFT):
        _remove(left)
    draft = _draft_of(place)
    try:
        yield draft
        for file in [draft] if draft.is_file() else draft.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if draft.is_dir():
            sync_folder(draft)
            _remove(place)
        os.replace(draft, place)
        sync_folder(place.parent)
    finally:
        _remove(draft)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """A new file that takes its place at ``path``, durably, when the block ends without an error.

    What is no regular file (a terminal, a pipe) is written as it stands; of a link, what it leads to is replaced.

    Args:
        path: the place.
        mode: ``wb``, or ``w`` for text in UTF-8.

    Raises:
        OSError: it cannot be written; ``path`` is as it was.
    """
    target = Path(os.path.realpath(path))
    encoding = None if "b" in mode else "utf-8"
    if target.exists() and not target.is_file() and not target.is_dir():
        with open(path, mode, encoding=encoding) as file:
            yield file
        return
    with atomic_path(target) as draft, open(draft, mode.replace("w", "x"), encoding=encoding) as file:
        yield file


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Make ``data`` the contents of ``path``; text is UTF-8. Raises ``OSError``; ``path`` is then as it was."""
    with atomic_write(path, "w" if isinstance(data, str) else "wb") as file:
        file.write(data)


def link_atomically(place: Path, target: str) -> None:
    """Make ``place`` a symbolic link to ``target``. Raises ``OSError``; ``place`` is then as it was."""
    draft = _draft_of(place)
    try:
        draft.symlink_to(target)
        os.replace(draft, place)
    finally:
        _remove(draft)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _draft_of(place: Path) -> Path:
    # It must not end as its place does: whoever lists a folder's notes by their ending would read half of one.
    return place.with_name(f"{owner.tag()}-{uuid.uuid4().hex[:12]}-{place.name[-64:]}.draft")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
