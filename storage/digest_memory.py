"""Digests of files, remembered, so that planning over a million pictures reads none of them twice.

A file is known by (path, size, mtime_ns, inode). The memory is one SQLite file in WAL mode; what is known of a
directory is a few packed segments rather than a row per file, which makes a warm look-up of a million paths quick.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from storage.errors import StorageError, UserError

_ENTRY = np.dtype([("size", "<i8"), ("mtime_ns", "<i8"), ("inode", "<u8"), ("digest", "V16")])
_SEGMENTS = 16  # a directory with more is packed into one
_BATCH = 8192  # files hashed between two writes: what a kill costs
_THREADS = 8  # hashing waits for the disk more than for the processor


def digest_bytes(data: bytes) -> bytes:
    """The 16-byte name of an input: blake2b of its bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


class _Known(NamedTuple):
    places: dict[str, int]  # file name -> position in entries
    entries: np.ndarray  # _ENTRY [n]


class DigestMemory:
    """Remembers digests of local files. Uris of object stores are not supported."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def digests(
        self, paths: Sequence[str | os.PathLike[str]], rehash: bool = False, missing: str = "raise"
    ) -> np.ndarray:
        """``V16 [N]`` digests of N files' bytes.

        Args:
            rehash: read every file again, whatever is remembered.
            missing: what to do with a path that is not a readable file: ``"raise"`` a ``UserError`` naming the first
                and their count, or give it the ``"zero"`` digest (16 zero bytes), for callers that drop such entries.
        """
        found = np.zeros(len(paths), "V16")
        reasons: dict[int, OSError] = {}
        folders: dict[str, list[int]] = {}
        names: list[str] = []
        for position, path in enumerate(paths):
            folder, _, name = os.fspath(path).rpartition("/")
            names.append(name)
            folders.setdefault(folder, []).append(position)
        with self._connect() as connection, ThreadPoolExecutor(_THREADS) as pool:
            for folder, positions in folders.items():
                base = os.path.abspath(folder or ("/" if os.fspath(paths[positions[0]]).startswith("/") else "."))
                self._folder(
                    connection, pool, base, [names[p] for p in positions], np.array(positions), found, reasons, rehash
                )
        if reasons and missing == "raise":
            first = min(reasons)
            others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            why = f"cannot be read: {reasons[first].strerror}{others}"
            raise UserError(f"{os.fspath(paths[first])}: {why}; restore it or drop its entry")
        return found

    def derived(self, path: str | os.PathLike[str], name: str, make: Callable[[], str]) -> str:
        """``make()``, which must follow from the bytes of one file and from ``name`` alone; remembered under the file's
        digest, so that it is worked out once for all copies of a file."""
        return self.derived_all(self.digests([path]), name, lambda _: make())[0]

    def derived_all(self, digests: np.ndarray, name: str, make: Callable[[int], str]) -> list[str]:
        """:meth:`derived` of N files at once, by ``V16 [N]`` digests of their bytes: ``make(i)`` of those not remembered. An
        empty answer is not remembered."""
        keys = [f"{digest.tobytes().hex()} {name}" for digest in digests]
        known: dict[str, str] = {}
        with self._connect() as connection:
            for start in range(0, len(keys), _BATCH):
                part = keys[start : start + _BATCH]
                query = f"SELECT key, value FROM derived WHERE key IN ({','.join('?' * len(part))})"
                found = dict(connection.execute(query, part).fetchall())
                fresh = {key: make(start + i) for i, key in enumerate(part) if key not in found}
                if kept := [(key, value) for key, value in fresh.items() if value]:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany("INSERT OR REPLACE INTO derived (key, value) VALUES (?, ?)", kept)
                    connection.execute("COMMIT")
                known |= found | fresh
        return [known[key] for key in keys]

    def _folder(
        self,
        connection: sqlite3.Connection,
        pool: ThreadPoolExecutor,
        folder: str,
        names: list[str],
        positions: np.ndarray,
        found: np.ndarray,
        reasons: dict[int, OSError],
        rehash: bool,
    ) -> None:
        """Fill ``found[positions]`` for the named files of one folder."""
        known = _Known({}, np.zeros(0, _ENTRY)) if rehash else _read(connection, folder)
        unknown = np.arange(len(names))
        if known.places:
            now = _stat(folder, names)
            where = np.fromiter((known.places.get(name, -1) for name in names), np.int64, len(names))
            entry = known.entries[where]
            same = (where >= 0) & (now["size"] >= 0)
            for field in ("size", "mtime_ns", "inode"):
                same &= entry[field] == now[field]
            found[positions[same]] = entry["digest"][same]
            unknown = np.flatnonzero(~same)
        for start in range(0, len(unknown), _BATCH):
            part = unknown[start : start + _BATCH].tolist()
            fresh: dict[str, np.void] = {}
            hashed = pool.map(lambda i: _hash(os.path.join(folder, names[i])), part, chunksize=16)
            for i, result in zip(part, hashed, strict=True):
                if isinstance(result, OSError):
                    reasons[int(positions[i])] = result
                    continue
                stamped, settled = result
                found[positions[i]] = stamped["digest"]
                if settled:
                    fresh[names[i]] = stamped
            if fresh:
                _append(connection, folder, fresh)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        """A connection, or one in memory where the cache is read-only: then nothing is remembered, nothing is lost."""
        connection: sqlite3.Connection | None = None
        try:
            try:
                connection = _open(self.path)
            except sqlite3.OperationalError as error:
                if os.path.isdir(self.path.parent) and os.access(self.path.parent, os.W_OK):
                    raise StorageError(
                        f"{self.path}: {error}; delete this file, digests are then taken afresh"
                    ) from error
                connection = sqlite3.connect(":memory:", isolation_level=None)
                connection.executescript(_SCHEMA)
            yield connection
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{self.path}: {error}; delete this file, digests are then taken afresh") from error
        finally:
            if connection is not None:
                connection.close()


_SCHEMA = """
CREATE TABLE IF NOT EXISTS segment (id INTEGER PRIMARY KEY, folder TEXT NOT NULL, names BLOB, entries BLOB);
CREATE TABLE IF NOT EXISTS derived (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def _open(path: Path, patience: float = 60.0) -> sqlite3.Connection:
    """A connection with its tables. Entering WAL mode does not wait for others as every later statement does, so of
    processes that make the file at one time some find it locked and try again."""
    give_up = time.monotonic() + patience
    while True:
        connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(_SCHEMA)
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _hash(path: str) -> tuple[np.void, bool] | OSError:
    """The entry of a file just read, and whether its stamp can be trusted to change when the file does."""
    try:
        with open(path, "rb", buffering=0) as file:
            started = time.time_ns()
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                return OSError(0, "not a regular file")
            state = hashlib.blake2b(digest_size=16)
            while block := file.read(1 << 20):
                state.update(block)
            after = os.fstat(file.fileno())
    except OSError as error:
        return error
    entry = np.zeros(1, _ENTRY)[0]
    entry["size"], entry["mtime_ns"], entry["inode"] = after.st_size, after.st_mtime_ns, after.st_ino
    entry["digest"] = np.void(state.digest())
    # A file written in the same tick of its clock as it was read may change again without its stamp changing.
    tick = 2_000_000_000 if after.st_mtime_ns % 1_000_000_000 == 0 else 20_000_000
    unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return entry, unchanged and after.st_mtime_ns < started - tick


def _stat(folder: str, names: Sequence[str]) -> np.ndarray:
    """``_ENTRY [N]`` of the files as they are now, digests left zero; size -1 where there is none."""
    absent = (-1, 0, 0)
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        stamps = [absent] * len(names)
    else:
        stamps = []
        lookup = os.stat
        try:
            for name in names:
                try:
                    entry = lookup(name, dir_fd=descriptor)
                except OSError:
                    stamps.append(absent)
                else:
                    stamps.append((entry.st_size, entry.st_mtime_ns, entry.st_ino))
        finally:
            os.close(descriptor)
    packed = np.zeros(len(names), _ENTRY)
    if stamps:
        packed["size"], packed["mtime_ns"], packed["inode"] = zip(*stamps, strict=True)
    return packed


def _read(connection: sqlite3.Connection, folder: str) -> _Known:
    """All that is known of a folder; later segments win."""
    query = "SELECT names, entries FROM segment WHERE folder = ? ORDER BY id"
    segments = connection.execute(query, (folder,)).fetchall()
    names: list[str] = []
    for blob, _ in segments:
        names += os.fsdecode(blob).split("\0")
    entries = np.concatenate([np.frombuffer(blob, _ENTRY) for _, blob in segments] or [np.zeros(0, _ENTRY)])
    return _Known(dict(zip(names, range(len(names)), strict=True)), entries)


def _append(connection: sqlite3.Connection, folder: str, fresh: dict[str, np.void]) -> None:
    """Add a segment; pack a folder's segments into one when they have become many."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        insert = "INSERT INTO segment (folder, names, entries) VALUES (?, ?, ?)"
        entries = np.array(list(fresh.values()), _ENTRY)
        connection.execute(insert, (folder, os.fsencode("\0".join(fresh)), entries.tobytes()))
        count = connection.execute("SELECT count(*) FROM segment WHERE folder = ?", (folder,)).fetchone()[0]
        if count > _SEGMENTS:
            known = _read(connection, folder)
            connection.execute("DELETE FROM segment WHERE folder = ?", (folder,))
            packed = known.entries[np.fromiter(known.places.values(), np.int64, len(known.places))]
            connection.execute(insert, (folder, os.fsencode("\0".join(known.places)), packed.tobytes()))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
