"""Which store a place belongs to, and a local file for whatever lies in one."""

from __future__ import annotations

import sys

from hoi_distill.storage.files.address import SCHEMES, ObjectPath, Place
from hoi_distill.storage.files.disk_store import DISK
from hoi_distill.storage.files.store import Store


def store_of(place: Place) -> Store:
    """The store that keeps what lies at a place."""
    if not isinstance(place, ObjectPath):
        return DISK
    from hoi_distill.storage.files.object_store import OBJECTS

    return OBJECTS


def local_file(path: str, checksum: str | None = None) -> str:
    """The path itself, or for an object's address that of a local copy, see
    :meth:`hoi_distill.storage.files.store.Store.local`."""
    if not path.startswith(SCHEMES):
        return path
    place = ObjectPath(path)
    return store_of(place).local(place, checksum)


def is_object(path: str) -> bool:
    """Whether a path is the address of an object."""
    return path.startswith(SCHEMES)


def loaders_start(processes: int) -> str | None:
    """How processes that load data have to start: by no fork of one that has used an object store, whose client does not
    survive that. None where the system's way will do."""
    used = "hoi_distill.storage.files.bucket" in sys.modules
    return "forkserver" if used and processes else None
