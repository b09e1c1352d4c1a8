"""The cache: a folder of tables, the memory of files' digests, notes of who uses what, and the trash.

tables/<name>-<fingerprint>/    see storage.table
digests.sqlite                  storage.digest_memory
leases/                         expiring notes of runs and readers; locks of who trains what
trash/<time>-<table>/           what gc removed, until its grace is over
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage import owner
from storage.commit import publish_record
from storage.digest_memory import DigestMemory
from storage.digests import canonical_json, fingerprint
from storage.errors import StorageError, UserError
from storage.table import FOLDERS, Table

LEASE_SECONDS = 600.0
"""A note is believed this long after it was last renewed, where its process cannot be asked."""


class Cache:
    """A cache root. Open it with :meth:`open`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    @classmethod
    def open(cls, root: str | os.PathLike[str], writable: bool = True) -> Cache:
        """The cache at ``root``; created, and tried by writing to it, if ``writable``.

        Raises:
            StorageError: it cannot be written (or, not ``writable``, does not exist).
        """
        cache = cls(root)
        probe = cache.root / "leases" / f"{owner.tag()}-{uuid.uuid4().hex[:12]}.probe"
        try:
            if writable:
                for folder in ("tables", "leases", "trash"):
                    (cache.root / folder).mkdir(parents=True, exist_ok=True)
                probe.touch()
                probe.unlink()
            else:
                os.stat(cache.root / "tables")
        except OSError as error:
            raise StorageError(f"cache {cache.root}: {error.strerror}; give another root or mend this one") from error
        return cache

    @property
    def memory(self) -> DigestMemory:
        """Remembered digests of files."""
        return DigestMemory(self.root / "digests.sqlite")

    def tables(self) -> list[Table]:
        """Every table present, by folder name."""
        folder = self.root / "tables"
        if not folder.is_dir():
            return []
        return [Table(entry) for entry in sorted(folder.iterdir()) if (entry / "table.json").exists()]

    def folder(self, name: str, record: Mapping[str, Any]) -> Path:
        """Where the table of a record lies, whether it exists or not."""
        if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
            raise ValueError(f"a table's name is letters, digits, dots and underscores, not {name!r}")
        return self.root / "tables" / f"{name}-{fingerprint(record)[:16]}"

    def find(self, name: str, record: Mapping[str, Any]) -> Table | None:
        """The table of a record, or None where it does not exist yet."""
        folder = self.folder(name, record)
        return Table(folder) if (folder / "table.json").exists() else None

    def table(
        self, name: str, record: Mapping[str, Any], output: Mapping[str, Any], value_type: pa.DataType | None
    ) -> Table:
        """The table of a record, created if need be.

        Args:
            output: ``{"format": "arrow", "type": ...}`` or ``{"format": "lmdb", "shape": [...], "codec": ...}``.
            value_type: the Arrow type of a cell, None for tensors.

        Raises:
            StorageError: it cannot be written, or a table of this name holds something else.
        """
        folder = self.folder(name, record)
        kind = None if value_type is None else base64.b64encode(pa.schema([("cell", value_type)]).serialize()).decode()
        description = {"name": name, "fingerprint": fingerprint(record), "record": dict(record),
                       "output": dict(output), "type": kind}  # fmt: skip
        if not (folder / "table.json").exists():
            try:
                for part in FOLDERS:
                    (folder / part).mkdir(parents=True, exist_ok=True)
                publish_record(folder / "tmp", folder / "table.json", canonical_json(description))
            except OSError as error:
                raise StorageError(f"table {folder}: cannot be created: {error.strerror}") from error
        table = Table(folder)
        if (table.fingerprint, table.output, table.type) != (fingerprint(record), dict(output), value_type):
            raise StorageError(
                f"table {folder}: holds {table.output}, not {dict(output)}; move it away or raise the version"
            )
        return table

    # ---- leases ----

    @contextlib.contextmanager
    def lease(self, kind: str, tables: Sequence[Table | str | os.PathLike[str]]) -> Iterator[None]:
        """Leave a note, renewed until the end, that these tables are in use (``kind``: ``run`` or ``reader``).
        On a cache that cannot be written there is nothing to guard against, and no note."""
        names = [_table_name(table) for table in tables]
        note = self.root / "leases" / f"{owner.tag()}-{uuid.uuid4().hex[:12]}.json"
        done = threading.Event()

        def renew() -> None:
            while not done.wait(LEASE_SECONDS / 4):
                with contextlib.suppress(OSError):
                    os.utime(note)

        with contextlib.suppress(OSError):
            note.write_bytes(
                canonical_json({"kind": kind, "tables": names, "host": os.uname().nodename, "pid": os.getpid()})
            )
        renewal = threading.Thread(target=renew, name="lease", daemon=True)
        renewal.start()
        try:
            yield
        finally:
            done.set()
            renewal.join()
            with contextlib.suppress(OSError):
                note.unlink()

    def leased(self) -> dict[str, str]:
        """``{table folder name: who}`` of the tables in use; notes of the dead are removed."""
        users: dict[str, str] = {}
        for note in (self.root / "leases").glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                age = time.time() - note.stat().st_mtime
                if owner.is_dead(note.name, age, LEASE_SECONDS):
                    note.unlink()
                    continue
                content = json.loads(note.read_bytes())
                users.update(
                    dict.fromkeys(content["tables"], f"{content['kind']} {content['pid']} on {content['host']}")
                )
        return users

    # ---- trash ----

    def trash(self, table: Table | str | os.PathLike[str]) -> Path:
        """Move a table, or the folder of a trained network, to the trash; returns where it is now.

        Raises:
            UserError: a run or a reader uses it. StorageError: it cannot be moved.
        """
        name = _table_name(table)
        user = self.leased().get(name)
        if user is not None:
            raise UserError(f"table {name}: in use by {user}; try again when it is done")
        target = self.root / "trash" / f"{time.time_ns()}-{name}"
        try:
            elsewhere = None if isinstance(table, Table) else Path(table)
            folder = elsewhere if elsewhere is not None and elsewhere.is_dir() else self.root / "tables" / name
            os.rename(folder, target)
        except OSError as error:
            raise StorageError(f"table {name}: cannot be moved to the trash: {error.strerror}") from error
        return target

    def empty_trash(self, grace_seconds: float) -> list[str]:
        """Delete for good what has been in the trash for longer than the grace; returns the names."""
        deleted = []
        for entry in sorted((self.root / "trash").iterdir()):
            moved_ns, _, name = entry.name.partition("-")
            if moved_ns.isdigit() and time.time_ns() - int(moved_ns) >= grace_seconds * 1e9:
                shutil.rmtree(entry, ignore_errors=True)
                deleted.append(name)
        return deleted


def _table_name(table: Table | str | os.PathLike[str]) -> str:
    return table.dir.name if isinstance(table, Table) else Path(table).name
