"""Objects of Amazon's S3 and its like, of Google's and of Microsoft's stores, as files of a cache.

Payloads and records are never replaced, so a copy of each on this machine's disk serves all its processes
(:mod:`hoi_distill.storage.files.local_copies`). Names are always asked of the store itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

from typing_extensions import override

from hoi_distill.storage.damage import Damaged
from hoi_distill.storage.digests import canonical_json, digest_bytes
from hoi_distill.storage.errors import StorageError, UserError
from hoi_distill.storage.files import drafts, owner
from hoi_distill.storage.files.address import ObjectPath, Place
from hoi_distill.storage.files.bucket import ENDPOINTS, OPENING, Bucket, bucket
from hoi_distill.storage.files.local_copies import copies
from hoi_distill.storage.files.store import Store

_ONE_BY_ONE = 8  # objects that are asked for one by one and not by a list of all
_AT_ONCE = 16  # requests; they wait for the network
_IDENTITY = "cache.json"


class ObjectStore(Store):
    """Objects below a prefix. A folder is what begins alike, and always there."""

    read_in_threads: ClassVar[int] = 1

    @override
    def probe(self, root: Place) -> None:
        """Two objects of one name are created; the second must be refused. A new cache gets a name of its own, so that copies
        of one that was here before are not taken for copies of it."""
        _probe(str(root))

    @override
    def prepare(self, folders: Iterable[Place]) -> None:
        """There is nothing to make."""

    @override
    def is_folder(self, folder: Place) -> bool:
        return isinstance(folder, ObjectPath)

    @override
    def lies(self, place: Place) -> bool:
        return self.size(place) is not None

    @override
    def is_used(self, folder: Place) -> bool:
        return _bucket(folder).any_below(_key(folder))

    @override
    def names(self, folder: Place) -> set[str]:
        return set(self._entries(folder))

    @override
    def folders(self, folder: Place) -> set[str]:
        return {prefix.rstrip("/").rpartition("/")[2] for prefix in _bucket(folder).children(_key(folder))[0]}

    @override
    def bytes_below(self, folder: Place) -> int:
        return sum(int(entry["size"]) for entry in _bucket(folder).objects(_key(folder)))

    @override
    def size(self, place: Place) -> int | None:
        try:
            return int(_bucket(place).head(_key(place))["size"])
        except FileNotFoundError:
            return None

    @override
    def sizes(self, folder: Place, wanted: Iterable[str]) -> dict[str, int]:
        names = list(wanted)
        if len(names) > _ONE_BY_ONE:
            entries = self._entries(folder)
            return {name: int(entries[name]["size"]) for name in names if name in entries}
        found = _at_once(lambda name: self.size(folder / name), names)
        return {name: size for name, size in zip(names, found, strict=True) if size is not None}

    @override
    def stamps(self, folder: Place) -> dict[str, Any]:
        return {name: [entry["size"], entry["e_tag"]] for name, entry in self._entries(folder).items()}

    @override
    def ages(self, folder: Place, clock: Place | None = None) -> dict[str, float]:
        entries = self._entries(folder)
        now = 0.0  # what lies there counts as new where the clock cannot be asked
        with contextlib.suppress(OSError):
            now = self.now(clock or folder) if entries else 0.0
        return {name: now - entry["last_modified"].timestamp() for name, entry in entries.items()}

    @override
    def now(self, folder: Place) -> float:
        probe = folder / f"{owner.tag()}-{uuid.uuid4().hex[:12]}.clock"
        self.replace(probe, b"")
        try:
            return float(_bucket(probe).head(_key(probe))["last_modified"].timestamp())
        finally:
            self.delete(probe)

    @override
    def read(self, place: Place) -> bytes:
        return _bucket(place).get(_key(place))

    @override
    def local(self, place: Place, checksum: str | None = None) -> str:
        def fetch(draft: Path) -> None:
            for attempt in (True, False):
                if _bucket(place).download(_key(place), draft) == checksum or checksum is None:
                    return
                if not attempt:
                    raise Damaged(f"shard {place}", "its bytes differ from the checksum in its name")

        return str(copies().get(_copy_of(place), fetch))

    @override
    def is_local(self, place: Place) -> bool:
        return copies().holds(_copy_of(place))

    @override
    def forget(self, place: Place) -> bool:
        copies().drop(_copy_of(place))
        return True

    @override
    def create(self, place: Place, data: bytes | memoryview, scratch: Place) -> bool:
        return _bucket(place).put_new(_key(place), bytes(data))

    @override
    def replace(self, place: Place, data: bytes) -> None:
        _bucket(place).put(_key(place), data)

    @override
    def renew(self, place: Place, data: bytes) -> None:
        self.replace(place, data)

    @override
    def publish(
        self, folder: Place, key: str, suffix: str, write: Callable[[BinaryIO], None], scratch: Place
    ) -> tuple[str, int]:
        """It is written on this machine's disk first, and stays there as a copy."""
        own = copies()
        with drafts.draft(own.draft().parent, write) as (path, sink):
            name = f"{key}-{sink.state.hexdigest()}{suffix}"
            _bucket(folder).upload(_key(folder / name), path)
            own.add(_copy_of(folder / name), path)
            return name, sink.bytes

    @override
    def delete(self, place: Place) -> None:
        _bucket(place).delete([_key(place)])

    @override
    def move(self, place: Place, target: Place) -> None:
        if self.size(target) is not None:
            target = target.parent / f"{target.name}.{time.time_ns()}"
        try:
            _bucket(place).copy(_key(place), _key(target))
        except FileNotFoundError:
            return
        self.delete(place)
        self.forget(place)

    @override
    def move_folder(self, folder: Place, target: Place) -> None:
        """What is copied twice is the same: a kill in between leaves a folder that can be moved again."""
        source, goal = _key(folder), _key(target)
        keys = [entry["path"] for entry in _bucket(folder).objects(source)]
        _at_once(lambda key: _bucket(folder).copy(key, goal + key[len(source) :]), keys)
        _bucket(folder).delete(keys)

    @override
    def delete_folder(self, folder: Place) -> None:
        _bucket(folder).delete([entry["path"] for entry in _bucket(folder).objects(_key(folder))])

    def _entries(self, folder: Place) -> dict[str, Any]:
        """What the store says of each object right below a folder. Some stores list the folder itself, too."""
        below = _key(folder)
        entries = _bucket(folder).children(below)[1]
        return {entry["path"].rpartition("/")[2]: entry for entry in entries if entry["path"] != below}


OBJECTS = ObjectStore()


def _bucket(place: Place) -> Bucket:
    return bucket(cast(ObjectPath, place).bucket)


def _key(place: Place) -> str:
    return cast(ObjectPath, place).key


def _at_once(action: Callable[[str], Any], names: list[str]) -> list[Any]:
    if len(names) < 2:
        return [action(name) for name in names]
    with ThreadPoolExecutor(min(_AT_ONCE, len(names))) as pool:
        return list(pool.map(action, names))


@functools.cache
def _probe(root: str) -> None:
    place = ObjectPath(root)
    probe, store = place / "leases" / f"{owner.tag()}-{uuid.uuid4().hex[:12]}.probe", _bucket(place)
    try:
        store.put_new(probe.key, b"first", OPENING)
    except FileNotFoundError:
        raise UserError(f"cache {root}: there is no bucket {place.bucket}; make it, or mend the address") from None
    try:
        if store.put_new(probe.key, b"second", OPENING):
            raise StorageError(
                f"cache {root}: this object store replaces an object that it was asked to create only where there is none "
                "(it ignores If-None-Match), so two writers could both believe that theirs was the first; use a store that "
                "knows conditional writes, or a path"
            )
    finally:
        store.delete([probe.key])
    store.put_new((place / _IDENTITY).key, canonical_json({"id": uuid.uuid4().hex}), OPENING)


def _identity(root: str) -> str:
    """What tells this cache from another one at the same address, at another time or of another store."""
    with _IDENTIFYING:  # threads that fetch together ask once
        return _read_identity(root)


_IDENTIFYING = threading.Lock()


@functools.cache
def _read_identity(root: str) -> str:
    try:
        return digest_bytes(OBJECTS.read(ObjectPath(root) / _IDENTITY)).hex()
    except FileNotFoundError:
        endpoint = [os.environ.get(name, "") for name in ENDPOINTS]
        return digest_bytes(canonical_json([root, *endpoint])).hex()


def _copy_of(place: Place) -> str:
    """The name of an object's copy: the cache's, and the object's in it."""
    root, found, inside = str(place).rpartition("/tables/")
    return f"{_identity(root)}/tables/{inside}" if found else f"{digest_bytes(root.encode()).hex()}/{place.name}"
