"""Which store a place belongs to, and a local file for whatever lies in one."""

from __future__ import annotations

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
