"""Payload files: which format a path has, how it is named and verified.

A payload's name is ``<rectangle digest>-<checksum>.<arrow|lmdb>``; the checksum is 16 bytes of blake2b over the file,
in hex. A payload is immutable and describes itself (rows, columns, codec).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from pathlib import Path

from storage import lmdb_shard
from storage.arrow_shard import ArrowShard
from storage.errors import StorageError
from storage.lmdb_shard import LmdbShard, open_lmdb

Shard = ArrowShard | LmdbShard


@functools.lru_cache(maxsize=128)
def _open_arrow(path: str, inode: int) -> ArrowShard:
    return ArrowShard(path)


def open_shard(path: str | os.PathLike[str]) -> Shard:
    """The reader of a payload file, shared within the process.

    Raises:
        StorageError: the file is missing or unreadable.
    """
    name = os.fspath(path)
    try:
        return open_lmdb(name) if name.endswith(".lmdb") else _open_arrow(name, os.stat(name).st_ino)
    except (OSError, ValueError) as error:
        raise StorageError(f"shard {name}: {error}; `hoi-distill check` sets it aside") from error


def forget_shard(path: str | os.PathLike[str]) -> None:
    """Drop the process's reader of a payload that was set aside."""
    lmdb_shard.forget(path)
    _open_arrow.cache_clear()


def stated_checksum(path: str | os.PathLike[str]) -> str:
    """The checksum in a payload's name, 32 hex digits."""
    return Path(path).stem.rpartition("-")[2]


def verify_shard(path: str | os.PathLike[str]) -> None:
    """Re-read a payload and compare it with the checksum in its name.

    Raises:
        StorageError: the file is missing, unreadable, or its bytes have changed.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            actual = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        if actual != stated_checksum(path):
            raise OSError(errno.EIO, "its bytes differ from the checksum in its name")
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"shard {os.fspath(path)}: {reason}; `hoi-distill check` sets it aside") from error
