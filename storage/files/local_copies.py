"""Copies of a store's objects on a disk of this machine, which all its processes share.

Only what is never replaced is copied. A copy is verified once, when it comes: a seal beside it holds its stamp. The seal's
own time says when the copy was last used. When the copies of all caches together take more room than they may, those used
longest ago go; whoever has one mapped keeps it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files import owner, stamps
from hoi_distill.storage.files.address import ObjectPath
from hoi_distill.storage.files.stamps import stamp_of

FOLDER, ROOM = "HOI_DISTILL_DISK", "HOI_DISTILL_DISK_GB"
"""The environment's variables that say where copies lie and how much room they may take."""
_SEAL = ".seal"
_KEPT = 7 / 8  # of the room, after the oldest have gone
_IN_USE_SECONDS = 60.0  # what was used a moment ago stays: it may be about to be mapped


class LocalCopies:
    """Copies below one folder.

    Args:
        folder: where they lie.
        room: bytes that they may take together. A single larger one may be there all the same.
    """

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room
        self._swept = False

    def get(self, name: str, fetch: Callable[[Path], None]) -> Path:
        """The copy of this name. Of several processes that want it, one fetches it.

        Args:
            name: a relative path.
            fetch: writes it to a new file, and raises where it is not what it should be.
        """
        path, seal = self.folder / name, self.folder / f"{name}{_SEAL}"
        if self._is_sealed(path, seal):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(seal, "ab") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not self._is_sealed(path, seal):
                draft = self.draft()
                try:
                    fetch(draft)
                    self._seal(draft, path, seal)
                finally:
                    draft.unlink(missing_ok=True)
        return path

    def draft(self) -> Path:
        """Where a file may be written that becomes a copy. Drafts of dead processes are removed."""
        drafts = self.folder / "drafts"
        drafts.mkdir(parents=True, exist_ok=True)
        if not self._swept:
            owner.sweep(drafts)
            self._swept = True
        return drafts / f"{owner.tag()}-{uuid.uuid4().hex[:12]}"

    def add(self, name: str, draft: Path) -> None:
        """Keep a file that was written here and has gone to the store: it need not come back."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._seal(draft, path, self.folder / f"{name}{_SEAL}")

    def holds(self, name: str) -> bool:
        """Whether a copy is there. It counts as used now."""
        return self._is_sealed(self.folder / name, self.folder / f"{name}{_SEAL}")

    def drop(self, name: str) -> None:
        """Remove a copy."""
        for path in (self.folder / f"{name}{_SEAL}", self.folder / name):
            path.unlink(missing_ok=True)

    def _is_sealed(self, path: Path, seal: Path) -> bool:
        """Whether the copy is there as it was when it was verified; it counts as used then."""
        try:
            stamp = stamp_of(os.stat(path))
            if seal.read_text() != repr(stamp):
                return False
            os.utime(seal)
        except (FileNotFoundError, UnicodeDecodeError):
            return False
        stamps.vouch({str(path): stamp})
        return True

    def _seal(self, draft: Path, path: Path, seal: Path) -> None:
        self._make_room(os.stat(draft).st_size)
        os.replace(draft, path)
        stamp = stamp_of(os.stat(path))
        (mark := self.draft()).write_text(repr(stamp))
        os.replace(mark, seal)
        stamps.vouch({str(path): stamp})

    def _make_room(self, coming: int) -> None:
        """Count what comes; where that is too much, count what is there, and let the oldest go."""
        with open(self.folder / "total", "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            counted = file.read()
            total = int(counted) + coming if counted.isdigit() else self.room + 1
            if total > self.room:
                total = coming + self._evict(max(self.room - coming, 0))
            file.truncate(0)
            file.write(b"%d" % total)

    def _evict(self, room: int) -> int:
        """Remove the copies used longest ago until the others fit; returns their bytes."""
        found: list[tuple[float, int, Path]] = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                if name.endswith(_SEAL):
                    seal, copy = Path(folder, name), Path(folder, name.removesuffix(_SEAL))
                    with contextlib.suppress(FileNotFoundError):
                        found.append((seal.stat().st_mtime, copy.stat().st_size, copy))
        total = sum(size for _, size, _ in found)
        if total <= room:
            return total
        for used, size, copy in sorted(found):
            if total <= room * _KEPT or time.time() - used < _IN_USE_SECONDS:
                break
            self.drop(str(copy.relative_to(self.folder)))
            total -= size
        return total


def copies() -> LocalCopies:
    """The copies of this machine's user.

    Raises:
        UserError: the environment says something else than a size.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get(FOLDER) or home / "hoi-distill" / "objects")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; let {FOLDER} name a folder that can be written") from None
    return _copies(folder, os.environ.get(ROOM))


@functools.cache
def _copies(folder: Path, given: str | None) -> LocalCopies:
    disk = os.statvfs(folder)
    try:
        room = disk.f_blocks * disk.f_frsize // 2 if given is None else int(float(given) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"{ROOM}={given}: not a number; write how many GB copies may take, 200 say") from None
    return LocalCopies(folder, room)


def folder_of(root: ObjectPath) -> Path:
    """What this machine keeps of its own for a cache in an object store."""
    folder = copies().folder / "caches" / digest_bytes(str(root).encode()).hex()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
