"""Payload files: which format a path has, how it is named and verified.

A payload's name is ``<block key>-<checksum>.<arrow|lmdb>``; the checksum is 16 bytes of blake2b over the file,
in hex. A payload is immutable and describes itself (rows, columns, codec). No byte of one is used before all of them were
compared with the checksum: by this process, or, where many are read, by any process of this machine.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hoi_distill.storage.damage import Damaged, damage
from hoi_distill.storage.digests import digest_of_file
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.files import stamps
from hoi_distill.storage.files.address import SCHEMES, place_at
from hoi_distill.storage.files.stamps import Stamp
from hoi_distill.storage.files.stores import local_file, store_of
from hoi_distill.storage.shards.arrow import ArrowShard
from hoi_distill.storage.shards.lmdb_reader import LmdbShard

Shard = ArrowShard | LmdbShard
UNREAD = bytes(16)
"""The digest of a file that could not be read."""


@functools.lru_cache(maxsize=128)
def _open_arrow(path: str, _stamp: Stamp) -> ArrowShard:
    return ArrowShard(path)


@functools.lru_cache(maxsize=512)
def _open_lmdb(path: str, _stamp: Stamp) -> LmdbShard:
    return LmdbShard(path)


def open_shard(path: str | os.PathLike[str]) -> Shard:
    """The reader of a payload file, shared within the process.

    Raises:
        StorageError: the file is missing or unreadable, or its bytes have changed.
    """
    name = os.fspath(path)
    with verified(name) as (file, stamp):
        return _open_lmdb(file, stamp) if name.endswith(".lmdb") else _open_arrow(file, stamp)


def fetch(path: str) -> None:
    """Bring a payload that lies in an object store to this machine's disk. Raises as :func:`open_shard` does."""
    with verified(path):
        pass


@contextlib.contextmanager
def verified(name: str) -> Iterator[tuple[str, Stamp]]:
    """In the block a payload may be opened: its bytes are those that were written. Gives the file to open, which is a local
    copy of an object, and the file's stamp.

    Raises:
        StorageError: the payload is missing or unreadable, or its bytes have changed.
    """
    with _reading(name), damage(f"shard {name}"):
        file = local_file(name, stated_checksum(name))
        yield file, stamps.once(file, lambda: verify_shard(file))


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """A payload that this process cannot read, or not for the moment, is a ``StorageError``."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"shard {name}: {error.strerror}; make it readable and run again") from error


def forget_shards() -> None:
    """Drop the process's readers, after a payload was set aside."""
    _open_lmdb.cache_clear()
    _open_arrow.cache_clear()


def stated_checksum(path: str | os.PathLike[str]) -> str:
    """The checksum in a payload's name, 32 hex digits."""
    return Path(path).stem.rpartition("-")[2]


def verify_shard(path: str | os.PathLike[str]) -> None:
    """Re-read a payload where it is stored, and compare it with the checksum in its name.

    Raises:
        Damaged: the file is missing, unreadable, or its bytes have changed.
        OSError: it cannot be read by this process or for the moment.
    """
    if os.fspath(path).startswith(SCHEMES):
        verify_object(os.fspath(path))
        return
    with damage(f"shard {os.fspath(path)}"):
        actual = digest_of_file(path).hex()
    if actual != stated_checksum(path):
        raise Damaged(f"shard {os.fspath(path)}", "its bytes differ from the checksum in its name")


def verify_object(address: str) -> None:
    """Fetch a payload from its object store, whatever this machine holds of it. Raises as :func:`verify_shard` does."""
    with damage(f"shard {address}"):
        store_of(place_at(address)).forget(place_at(address))
        local_file(address, stated_checksum(address))


def verify_once(paths: Sequence[str]) -> None:
    """Verify the payloads that this machine has not read in this state. It remembers them in the user's cache folder, not in
    the cache, which several machines may share. Those in an object store are verified when they are fetched.

    Raises:
        StorageError: the bytes of one or more have changed; one line names their number and the first. Or one cannot be
            read; the line says why.
    """
    unproven = stamps.unproven(path for path in paths if not path.startswith(SCHEMES))
    if not unproven:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hoi-distill"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    memory = DigestMemory(folder / "payloads.sqlite")
    found = memory.digests([os.path.realpath(path) for path in unproven], missing="zero")
    bad = {
        path for path, digest in zip(unproven, found, strict=True) if digest.tobytes().hex() != stated_checksum(path)
    }
    for path, digest in zip(unproven, found, strict=True):
        if digest.tobytes() == UNREAD:
            with _reading(path):
                verify_shard(path)
    stamps.vouch({path: stamp for path, stamp in unproven.items() if stamp is not None and path not in bad})
    if bad:
        raise StorageError(
            f"{len(bad)} of {len(paths)} shards hold other bytes than were written, first {min(bad)}; "
            "run `hoi-distill check`, which sets them aside"
        )
