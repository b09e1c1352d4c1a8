"""A file's stamp, and which files this process has compared with their checksums.

Whatever changes a file's bytes moves its stamp, also where size and modification time are put back: the change time
cannot be set. A bit that turns over after a file was compared, without a write, is beyond this; ``check`` finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

Stamp = tuple[int, int, int, int]
"""Bytes, modification and change time in nanoseconds, inode."""

_sound: dict[str, Stamp] = {}


def stamp_of(found: os.stat_result) -> Stamp:
    """The stamp of a file that was looked up."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def is_settled(change_ns: int, now_ns: int) -> bool:
    """Whether a file that changed then has a stamp that its next change would move. A file written in the same tick of
    its file system's clock as it was read may change again under the same stamp."""
    tick = 2_000_000_000 if change_ns % 1_000_000_000 == 0 else 20_000_000
    return change_ns < now_ns - tick


def unproven(paths: Iterable[str]) -> dict[str, Stamp | None]:
    """The files that nobody vouches for as they are now, with their stamps; None of one that is not there."""
    found: dict[str, Stamp | None] = {}
    for path in paths:
        try:
            now = stamp_of(os.stat(path))
        except OSError:
            found[path] = None
        else:
            if _sound.get(path) != now:
                found[path] = now
    return found


def once(path: str, verify: Callable[[], None]) -> Stamp:
    """Call ``verify``, which raises where a file's bytes have changed, unless it passed in this process for the file as it
    is now. Returns the file's stamp."""
    now = stamp_of(os.stat(path))
    if _sound.get(path) != now:
        verify()
        _sound[path] = now
    return now


def vouch(stamps: Mapping[str, Stamp]) -> None:
    """These files were compared, by whomever, when they had these stamps."""
    _sound.update(stamps)


def vouched(paths: Iterable[str]) -> dict[str, Stamp]:
    """What another process needs for :func:`vouch`."""
    return {path: _sound[path] for path in paths if path in _sound}
