"""The cache: a folder of tables, the memory of files' digests, notes of who uses what, and the trash.

tables/<name>-<fingerprint>/    see hoi_distill.storage.table
digests.sqlite                  hoi_distill.storage.file_digests
leases/                         expiring notes of runs and readers; locks of who trains what
registered/                     notes of the pipeline: who wants what
trash/<time>-<table>/           what gc removed, until its grace is over
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from hoi_distill.storage.damage import Damaged
from hoi_distill.storage.digests import canonical_json, fingerprint
from hoi_distill.storage.errors import READ_ONLY, StorageError, UserError, remedy
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.files import owner
from hoi_distill.storage.files.folders import FOLDERS, names, set_aside
from hoi_distill.storage.files.notes import notes_in, read_note, write_note
from hoi_distill.storage.records import publish_record
from hoi_distill.storage.table import Table

_TABLE = re.compile(r"[A-Za-z0-9_.]+-[0-9a-f]{16}")
_log = logging.getLogger(__name__)
LEASE_SECONDS = 600.0
"""A note is believed this long after it was last renewed, where its process cannot be asked."""


class Cache:
    """A cache root. Open it with :meth:`open`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> Cache:
        """The cache at ``root``, made if it is not there. One that cannot be written can be read.

        Raises:
            StorageError: there is none, and none can be made.
        """
        cache = cls(root)
        try:
            for folder in ("tables", "leases", "trash"):
                (cache.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in READ_ONLY or not (cache.root / "tables").is_dir():
                raise StorageError(
                    f"cache {error.filename}: {error.strerror}; give another root or mend this one"
                ) from error
        return cache

    def is_writable(self) -> bool:
        """Whether it can be written here, which only writing tells."""
        try:
            self.require_writable()
        except StorageError:
            return False
        return True

    def require_writable(self) -> None:
        """Try to write, before work begins. Raises ``StorageError``: it cannot be done."""
        probe = self.root / "leases" / f"{owner.tag()}-{uuid.uuid4().hex[:12]}.probe"
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StorageError(f"cache {self.root}: {error.strerror}; {remedy(error)} or give another root") from error

    @property
    def memory(self) -> DigestMemory:
        """Remembered digests of files."""
        return DigestMemory(self.root / "digests.sqlite")

    def folders(self) -> list[Path]:
        """The folder of every table present, whatever is in it, by name."""
        return [self.root / "tables" / name for name in sorted(names(self.root / "tables")) if self._is_table(name)]

    def _is_table(self, name: str) -> bool:
        return _TABLE.fullmatch(name) is not None and (self.root / "tables" / name).is_dir()

    def tables(self) -> list[Table]:
        """Every table that says what it is, by folder name. :meth:`find` finds the others too."""
        found = []
        for folder in self.folders():
            with contextlib.suppress(StorageError):
                found.append(Table(folder))
        return found

    def folder(self, name: str, record: Mapping[str, Any]) -> Path:
        """Where the table of a record lies, whether it exists or not."""
        if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
            raise ValueError(f"a table's name is letters, digits, dots and underscores, not {name!r}")
        return self.root / "tables" / f"{name}-{fingerprint(record)[:16]}"

    def find(
        self, name: str, record: Mapping[str, Any], output: Mapping[str, Any], value_type: pa.DataType | None
    ) -> Table | None:
        """:meth:`table`, or None where it does not exist yet."""
        return self.table(name, record, output, value_type) if os.path.lexists(self.folder(name, record)) else None

    def table(
        self, name: str, record: Mapping[str, Any], output: Mapping[str, Any], value_type: pa.DataType | None
    ) -> Table:
        """The table of a record, created if need be. What its table.json says follows from the arguments: one that is
        damaged or lost is written again, and nothing else of the table with it.

        Args:
            name: the stage's.
            record: what the fingerprint is of.
            output: ``{"format": "arrow", "type": ...}`` or ``{"format": "lmdb", "shape": [...], "codec": ...}``.
            value_type: the Arrow type of a cell, None for tensors.

        Raises:
            StorageError: it cannot be written, or a table of this name holds something else.
        """
        folder = self.folder(name, record)
        kind = None if value_type is None else base64.b64encode(pa.schema([("cell", value_type)]).serialize()).decode()
        description = {"name": name, "fingerprint": fingerprint(record), "record": dict(record),
                       "output": dict(output), "type": kind}  # fmt: skip
        try:
            for part in FOLDERS:
                (folder / part).mkdir(parents=True, exist_ok=True)
            table = _described(folder, description)
        except OSError as error:
            if error.errno not in READ_ONLY or not folder.is_dir():
                raise StorageError(f"table {folder}: cannot be created: {error.strerror}; mend or remove it") from error
            table = Table(folder, description)
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
        used = [_table_name(table) for table in tables]
        note = self.root / "leases" / f"{owner.tag()}-{uuid.uuid4().hex[:12]}.json"
        done = threading.Event()

        content = {"kind": kind, "tables": used, "host": os.uname().nodename, "pid": os.getpid()}

        def renew() -> None:
            while not done.wait(LEASE_SECONDS / 4):
                with contextlib.suppress(OSError):
                    if note.exists():
                        os.utime(note)
                    else:
                        write_note(note, content)

        with contextlib.suppress(OSError):
            write_note(note, content)
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
        """``{table folder name: who}`` of the tables in use; notes of the dead are removed.

        Raises:
            StorageError: it cannot be known.
        """
        users: dict[str, str] = {}
        try:
            notes = notes_in(self.root / "leases")
        except OSError as error:
            raise StorageError(f"cache {self.root}: leases: {error.strerror}; {remedy(error)} and run again") from error
        now = _clock_of(self.root / "leases") if notes else 0.0
        for note in notes:
            try:
                if owner.is_dead(note.name, now - note.stat().st_mtime, LEASE_SECONDS):
                    note.unlink()
                    continue
                content = read_note(note, "tables", "kind", "pid", "host")
                users.update(
                    dict.fromkeys(content["tables"], f"{content['kind']} {content['pid']} on {content['host']}")
                )
            except Damaged as error:
                if note.exists():  # somebody uses something
                    users.update(dict.fromkeys([folder.name for folder in self.folders()], f"somebody ({error})"))
            except FileNotFoundError:
                continue
            except OSError as error:  # nor may anybody touch what a note protects that cannot be read for the moment
                users.update(dict.fromkeys([folder.name for folder in self.folders()], f"somebody ({note}: {error})"))
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
        try:
            target = self.root / "trash" / f"{int(owner.clock_of(self.root / 'trash') * 1e9)}-{name}"
            elsewhere = None if isinstance(table, Table) else Path(table)
            folder = elsewhere if elsewhere is not None and elsewhere.is_dir() else self.root / "tables" / name
            os.rename(folder, target)
        except OSError as error:
            raise StorageError(f"table {name}: cannot be moved to the trash: {error.strerror}") from error
        return target

    def empty_trash(self, grace_seconds: float) -> list[str]:
        """Delete for good what has been in the trash for longer than the grace; returns the names."""
        deleted = []
        entries = sorted(names(self.root / "trash"))
        now = _clock_of(self.root / "trash") if entries else 0.0
        for entry in entries:
            moved_ns, _, name = entry.partition("-")
            if moved_ns.isdigit() and now * 1e9 - int(moved_ns) >= grace_seconds * 1e9:
                shutil.rmtree(self.root / "trash" / entry, ignore_errors=True)
                deleted.append(name)
        return deleted


def _described(folder: Path, description: Mapping[str, Any]) -> Table:
    """The table in ``folder``; what stands where its table.json should is set aside."""
    file, asked = folder / "table.json", Table(folder, description)
    for _ in range(10):  # rivals may set each other's aside
        try:
            found = Table(folder)
            # The folder's name vouches for the record, and the record, where it says the output, for the rest.
            vouched = asked.record.get("output") == asked.output
            if (found.name, found.fingerprint) != (asked.name, asked.fingerprint) or (
                vouched and (found.output, found.type) != (asked.output, asked.type)
            ):
                raise Damaged(f"table {folder}: table.json", "it is not of this table")
            return found
        except Damaged as error:
            if os.path.lexists(file):
                _log.warning("table %s: table.json: %s; set aside and written again", folder, error.reason)
                set_aside(file, folder / "bad")
            publish_record(folder / "tmp", file, canonical_json(description))
        except StorageError:
            break  # of a table that somebody else may read
    return asked


def _clock_of(folder: Path) -> float:
    """The folder's own clock; its notes count as new where it cannot be asked."""
    try:
        return owner.clock_of(folder)
    except OSError:
        return 0.0


def _table_name(table: Table | str | os.PathLike[str]) -> str:
    return table.dir.name if isinstance(table, Table) else Path(table).name
