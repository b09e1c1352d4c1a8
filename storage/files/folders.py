"""The folders of a table: what lies in them, and where what is set aside is kept."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

from hoi_distill.storage.files.stamps import Stamp, stamp_of

FOLDERS = ("bad", "tmp", "shards", "commits")


def names(folder: Path) -> set[str]:
    """What lies in a folder; nothing where there is none.

    Raises:
        OSError: it cannot be read, is no folder, or is a link that leads nowhere.
    """
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        if folder.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder.name} is a link that leads nowhere") from None
        return set()


def sizes(folder: Path, wanted: Iterable[str]) -> dict[str, int]:
    """Bytes of each of the wanted files that is there, by name. Raises ``OSError`` as :func:`names` does."""
    if not folder.is_dir():
        names(folder)
    found = {name: size(f"{folder}/{name}") for name in wanted}
    return {name: count for name, count in found.items() if count is not None}


def stamps(folder: Path) -> dict[str, Stamp | None]:
    """The stamp of each file in a folder, None of one that has vanished. Raises ``OSError`` as :func:`names` does."""
    found = {name: stat(f"{folder}/{name}") for name in names(folder)}
    return {name: None if entry is None else stamp_of(entry) for name, entry in found.items()}


def size(path: str | Path) -> int | None:
    """Bytes of a file, None as :func:`stat`."""
    found = stat(path)
    return None if found is None else found.st_size


def stat(path: str | Path) -> os.stat_result | None:
    """What the system says of a file. One that has vanished, as the payload of a writer that came second does, is none; neither
    is a link that leads nowhere or in a circle."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return None


def lies(path: str | Path) -> bool:
    """Whether anything lies at ``path``, a link that leads nowhere too. Raises ``OSError`` where that cannot be known."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return False
    return True


def move_aside(path: Path, target: Path) -> None:
    """Move what lies at ``path`` to ``target``, or beside what is there already."""
    if os.path.lexists(target):
        target = target.with_name(f"{target.name}.{time.time_ns()}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, target)


def block_keys(names: Iterable[str]) -> set[str]:
    """The block keys of the commit records among these names. A lost record may have left its payload, which stays."""
    return {name.partition("-")[0] for name in names if ".commit" in name}
