"""The file behind a memory of digests: SQLite with a rollback journal, which file systems on a network bear as well.

It can be lost at any time and never stops anybody. One whose bytes have changed (what it holds has checksums of its own) is
set aside, and digests are taken afresh; where it cannot be written, what it holds is used and nothing is added; where it
cannot be read, nothing is remembered. What is lost is said in a line.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

Answer = TypeVar("Answer")

_SCHEMA = """
DROP TABLE IF EXISTS segment;
DROP TABLE IF EXISTS derived;
CREATE TABLE stamped (id INTEGER PRIMARY KEY, folder BLOB NOT NULL, names BLOB, entries BLOB, checksum BLOB);
CREATE INDEX stamped_folder ON stamped (folder);
CREATE TABLE followed (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB)
"""  # the first two are those of before, which knew no change times and had no checksums
_BUSY, _LOCKED, _FULL = 5, 6, 13
_PLACE = (3, _BUSY, _LOCKED, 8, 10, _FULL, 14, 15, 22, 23)
"""SQLite's codes for what is wrong with the place and not with the file: permission, busy, locked, read-only, I/O, full,
cannot open, locking protocol, no large files, authorisation."""
_SEGMENTS = 16  # a directory with more is packed into one
_KEYS = 8192  # of one query
_PATIENCE = 60.0  # seconds to wait for other processes
_log = logging.getLogger(__name__)


class MemoryFile:
    """An open memory; ``with`` closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._writes = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
        self._connection: sqlite3.Connection | None = None
        self._reopen()

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def segments(self, folder: str) -> list[tuple[bytes, bytes]]:
        """``(names, entries)`` as they were added, the oldest first; nothing where nothing is known."""
        return self._try(lambda connection: _segments(connection, os.fsencode(folder)), [])

    def add(self, folder: str, names: bytes, entries: bytes) -> None:
        """Remember n files of a folder: their names, joined by zero bytes, and n entries of one size."""
        self._try(lambda connection: _add(connection, os.fsencode(folder), names, entries), None)

    def values(self, keys: Sequence[str]) -> dict[str, str]:
        """What :meth:`keep` was told, of the keys that it was told of."""

        def read(connection: sqlite3.Connection) -> dict[str, str]:
            found: dict[str, str] = {}
            for start in range(0, len(keys), _KEYS):
                part = keys[start : start + _KEYS]
                query = f"SELECT key, value, checksum FROM followed WHERE key IN ({','.join('?' * len(part))})"
                for key, value, checksum in connection.execute(query, part):
                    if checksum != _checksum(key.encode(), value.encode()):
                        raise sqlite3.DatabaseError("a checksum differs")
                    found[key] = value
            return found

        return self._try(read, {})

    def keep(self, values: Mapping[str, str]) -> None:
        """Remember a value for each key."""

        def write(connection: sqlite3.Connection) -> None:
            rows = [(key, value, _checksum(key.encode(), value.encode())) for key, value in values.items()]
            with _transaction(connection):
                connection.executemany("INSERT OR REPLACE INTO followed (key, value, checksum) VALUES (?, ?, ?)", rows)

        self._try(write, None)

    def _try(self, action: Callable[[sqlite3.Connection], Answer], otherwise: Answer) -> Answer:
        """The action's answer, or the other one where the file does not give it."""
        if self._connection is None:
            return otherwise
        try:
            return action(self._connection)
        except sqlite3.Error as error:
            self._give_up(error)
            return otherwise

    def _reopen(self) -> None:
        try:
            self._connection = self._open()
        except sqlite3.Error as error:
            self._give_up(error)
        except OSError:  # it went while it was opened
            self._close()

    def _open(self) -> sqlite3.Connection | None:
        if not self._writes:
            # Immutable: neither locks nor a journal, which nobody could write here.
            address = f"file:{quote(os.path.abspath(self._path))}?immutable=1"
            return sqlite3.connect(address, uri=True, isolation_level=None) if self._path.is_file() else None
        if os.path.lexists(self._path) and not self._path.is_file():
            raise sqlite3.DatabaseError("not a file")
        self._connection = connection = sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)
        self._inode = os.stat(self._path).st_ino
        try:
            connection.execute("PRAGMA journal_mode=TRUNCATE")
        except sqlite3.OperationalError as error:  # a program of before holds it open in WAL mode
            if _code(error) not in (_BUSY, _LOCKED):
                raise
        connection.execute("PRAGMA synchronous=NORMAL")
        if not _has_tables(connection):
            with _transaction(connection):
                for statement in [] if _has_tables(connection) else _SCHEMA.split(";"):
                    connection.execute(statement)
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on without a file that cannot be used here; set aside one that is none, once, and begin another."""
        self._close()
        if not self._writes:
            return
        if _code(error) in _PLACE:
            self._writes = False
            remedy = "; free some space" if _code(error) == _FULL else ""
            _log.warning("%s: %s: digests are not remembered%s", self._path, error, remedy)
            return
        _log.warning("%s: %s; set aside as %s.bad, digests are taken afresh", self._path, error, self._path.name)
        with contextlib.suppress(OSError):
            if self._inode in (None, os.stat(self._path, follow_symlinks=False).st_ino):  # no rival was here before
                for suffix in ("-journal", "-wal", "-shm", ""):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(f"{self._path}{suffix}", f"{self._path}.bad{suffix}")
        try:
            self._connection = self._open()
        except (sqlite3.Error, OSError):
            self._close()


def _has_tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'followed'").fetchone() is not None


def _segments(connection: sqlite3.Connection, folder: bytes) -> list[tuple[bytes, bytes]]:
    query = "SELECT names, entries, checksum FROM stamped WHERE folder = ? ORDER BY id"
    found = connection.execute(query, (folder,)).fetchall()
    for names, entries, checksum in found:
        if checksum != _checksum(folder, names, entries):
            raise sqlite3.DatabaseError("a checksum differs")
    return [(names, entries) for names, entries, _ in found]


def _add(connection: sqlite3.Connection, folder: bytes, names: bytes, entries: bytes) -> None:
    insert = "INSERT INTO stamped (folder, names, entries, checksum) VALUES (?, ?, ?, ?)"
    with _transaction(connection):
        connection.execute(insert, (folder, names, entries, _checksum(folder, names, entries)))
        if connection.execute("SELECT count(*) FROM stamped WHERE folder = ?", (folder,)).fetchone()[0] > _SEGMENTS:
            known: dict[bytes, bytes] = {}
            for some, packed in _segments(connection, folder):
                each = some.split(b"\0")
                size = len(packed) // len(each)
                known.update((name, packed[i * size : (i + 1) * size]) for i, name in enumerate(each))
            names, entries = b"\0".join(known), b"".join(known.values())
            connection.execute("DELETE FROM stamped WHERE folder = ?", (folder,))
            connection.execute(insert, (folder, names, entries, _checksum(folder, names, entries)))


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite has rolled back by itself where the disk is full
            connection.execute("ROLLBACK")
        raise


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code; None of an error of ours."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _checksum(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"".join(hashlib.blake2b(part).digest() for part in parts), digest_size=16).digest()
