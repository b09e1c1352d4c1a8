"""Files on a disk of this machine, or on a file system that several machines share."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from typing_extensions import override

from hoi_distill.storage.files import drafts, folders, owner
from hoi_distill.storage.files.address import Place
from hoi_distill.storage.files.atomic import sync_folder, write_atomically
from hoi_distill.storage.files.store import Store

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV)


class DiskStore(Store):
    """Folders and files. Drafts are written beside their place, synced, and then get their name."""

    read_in_threads: ClassVar[int] = 64

    @override
    def probe(self, root: Place) -> None:
        """A file system that has ``link`` or ``O_EXCL`` keeps them."""

    @override
    def prepare(self, folders: Iterable[Place]) -> None:
        for folder in folders:
            _path(folder).mkdir(parents=True, exist_ok=True)

    @override
    def is_folder(self, folder: Place) -> bool:
        return _path(folder).is_dir()

    @override
    def lies(self, place: Place) -> bool:
        return folders.lies(_path(place))

    @override
    def is_used(self, folder: Place) -> bool:
        return folders.lies(_path(folder))

    @override
    def names(self, folder: Place) -> set[str]:
        return folders.names(_path(folder))

    @override
    def folders(self, folder: Place) -> set[str]:
        return {name for name in self.names(folder) if (_path(folder) / name).is_dir()}

    @override
    def bytes_below(self, folder: Place) -> int:
        total = 0
        for file in _path(folder).rglob("*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size if file.is_file() else 0
        return total

    @override
    def size(self, place: Place) -> int | None:
        return folders.size(_path(place))

    @override
    def sizes(self, folder: Place, wanted: Iterable[str]) -> dict[str, int]:
        return folders.sizes(_path(folder), wanted)

    @override
    def stamps(self, folder: Place) -> dict[str, Any]:
        return folders.stamps(_path(folder))

    @override
    def ages(self, folder: Place, clock: Place | None = None) -> dict[str, float]:
        found: dict[str, float] = {}
        names = self.names(folder)
        now = 0.0  # what lies there counts as new where the clock cannot be asked
        with contextlib.suppress(OSError):
            now = self.now(clock or folder) if names else 0.0
        for name in sorted(names):
            with contextlib.suppress(FileNotFoundError):
                found[name] = now - os.stat(_path(folder) / name, follow_symlinks=False).st_mtime
        return found

    @override
    def now(self, folder: Place) -> float:
        return owner.clock_of(_path(folder))

    @override
    def read(self, place: Place) -> bytes:
        return _path(place).read_bytes()

    @override
    def local(self, place: Place, checksum: str | None = None) -> str:
        return str(place)

    @override
    def is_local(self, place: Place) -> bool:
        return True

    @override
    def forget(self, place: Place) -> bool:
        return False

    @override
    def create(self, place: Place, data: bytes | memoryview, scratch: Place) -> bool:
        target = _path(place)
        with drafts.draft(_path(scratch), lambda sink: drafts.write_all(sink, data)) as (path, _):
            try:
                os.link(path, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create_exclusively(target, data)
            sync_folder(target.parent)
            return True

    @override
    def replace(self, place: Place, data: bytes) -> None:
        write_atomically(_path(place), data)

    @override
    def renew(self, place: Place, data: bytes) -> None:
        path = _path(place)
        if path.exists():
            os.utime(path)
        else:
            write_atomically(path, data)

    @override
    def publish(
        self, folder: Place, key: str, suffix: str, write: Callable[[BinaryIO], None], scratch: Place
    ) -> tuple[str, int]:
        """Renaming over a file of this name is harmless: the name holds the checksum, so the bytes are the same."""
        with drafts.draft(_path(scratch), write) as (path, sink):
            name = f"{key}-{sink.state.hexdigest()}{suffix}"
            os.rename(path, _path(folder) / name)
            sync_folder(_path(folder))
            return name, sink.bytes

    @override
    def delete(self, place: Place) -> None:
        _path(place).unlink(missing_ok=True)

    @override
    def move(self, place: Place, target: Place) -> None:
        folders.move_aside(_path(place), _path(target))

    @override
    def move_folder(self, folder: Place, target: Place) -> None:
        os.rename(_path(folder), _path(target))

    @override
    def delete_folder(self, folder: Place) -> None:
        shutil.rmtree(_path(folder), ignore_errors=True)

    @override
    def sweep(self, scratch: Place) -> None:
        owner.sweep(_path(scratch))


DISK = DiskStore()


def _path(place: Place) -> Path:
    return cast(Path, place)


def _create_exclusively(target: Path, data: bytes | memoryview) -> bool:
    """Where links do not exist. A kill here leaves a torn record, which its checksum gives away: it counts as none."""
    try:
        with open(target, "xb", buffering=0) as file:
            drafts.write_all(cast(BinaryIO, file), data)
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    sync_folder(target.parent)
    return True
