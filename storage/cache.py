"""The cache: a folder of tables, the memory of files' digests, notes of who uses what, and the trash. Its root is a path or an
address in an object store.

tables/<name>-<fingerprint>/    see hoi_distill.storage.table
digests.sqlite                  hoi_distill.storage.file_digests; beside the local copies of what is in an object store
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
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from hoi_distill.storage.damage import Damaged
from hoi_distill.storage.digests import canonical_json, fingerprint
from hoi_distill.storage.errors import READ_ONLY, StorageError, UserError, remedy
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.files import owner
from hoi_distill.storage.files.address import ObjectPath, Place, place_at
from hoi_distill.storage.files.folders import FOLDERS
from hoi_distill.storage.files.local_copies import folder_of
from hoi_distill.storage.files.notes import encode_note, notes_in, read_note, write_note
from hoi_distill.storage.files.stores import store_of
from hoi_distill.storage.records import publish_record
from hoi_distill.storage.table import Table

_TABLE = re.compile(r"[A-Za-z0-9_.]+-[0-9a-f]{16}")
_log = logging.getLogger(__name__)
LEASE_SECONDS = 600.0
"""A note is believed this long after it was last renewed, where its process cannot be asked."""


class Cache:
    """A cache root. Open it with :meth:`open`.

    Attributes:
        root: where it lies.
        store: what keeps it.
        local: a folder of this machine, which is the root itself where that is a path. It holds what others need not see.
    """

    def __init__(self, root: str | os.PathLike[str] | ObjectPath) -> None:
        self.root = place_at(root)
        self.store = store_of(self.root)
        self.local = folder_of(self.root) if isinstance(self.root, ObjectPath) else self.root

    @classmethod
    def open(cls, root: str | os.PathLike[str] | ObjectPath) -> Cache:
        """The cache at ``root``, made if it is not there. One that cannot be written can be read.

        Raises:
            StorageError: there is none, and none can be made; or the object store replaces what must stay.
        """
        cache = cls(root)
        try:
            cache.store.probe(cache.root)
            cache.store.prepare(cache.root / folder for folder in ("tables", "leases", "trash"))
        except OSError as error:
            if error.errno not in READ_ONLY or not cache._is_readable():
                raise StorageError(
                    f"cache {error.filename}: {error.strerror}; give another root or mend this one"
                ) from error
        return cache

    def _is_readable(self) -> bool:
        tables = self.root / "tables"
        try:
            return self.store.is_folder(tables) and self.store.is_used(tables)
        except OSError:
            return False

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
            self.store.create(probe, b"", self.root / "leases")
            self.store.delete(probe)
        except OSError as error:
            raise StorageError(f"cache {self.root}: {error.strerror}; {remedy(error)} or give another root") from error

    @property
    def memory(self) -> DigestMemory:
        """Remembered digests of files."""
        return DigestMemory(self.local / "digests.sqlite")

    def folders(self) -> list[Place]:
        """The folder of every table present, whatever is in it, by name."""
        names = filter(_TABLE.fullmatch, sorted(self.store.folders(self.root / "tables")))
        return [self.root / "tables" / name for name in names]

    def tables(self) -> list[Table]:
        """Every table that says what it is, by folder name. :meth:`find` finds the others too."""
        found = []
        for folder in self.folders():
            with contextlib.suppress(StorageError):
                found.append(Table(folder))
        return found

    def folder(self, name: str, record: Mapping[str, Any]) -> Place:
        """Where the table of a record lies, whether it exists or not."""
        if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
            raise ValueError(f"a table's name is letters, digits, dots and underscores, not {name!r}")
        return self.root / "tables" / f"{name}-{fingerprint(record)[:16]}"

    def find(
        self, name: str, record: Mapping[str, Any], output: Mapping[str, Any], value_type: pa.DataType | None
    ) -> Table | None:
        """:meth:`table`, or None where it does not exist yet."""
        return self.table(name, record, output, value_type) if self.store.is_used(self.folder(name, record)) else None

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
            self.store.prepare(folder / part for part in FOLDERS)
            table = _described(folder, description)
        except OSError as error:
            if error.errno not in READ_ONLY or not self.store.is_folder(folder):
                raise StorageError(f"table {folder}: cannot be created: {error.strerror}; mend or remove it") from error
            table = Table(folder, description)
        if (table.fingerprint, table.output, table.type) != (fingerprint(record), dict(output), value_type):
            raise StorageError(
                f"table {folder}: holds {table.output}, not {dict(output)}; move it away or raise the version"
            )
        return table

    # ---- leases ----

    @contextlib.contextmanager
    def lease(self, kind: str, tables: Sequence[Table | str | Place]) -> Iterator[None]:
        """Leave a note, renewed until the end, that these tables are in use (``kind``: ``run`` or ``reader``).
        On a cache that cannot be written there is nothing to guard against, and no note."""
        used = [_table_name(table) for table in tables]
        note = self.root / "leases" / f"{owner.tag()}-{uuid.uuid4().hex[:12]}.json"
        done = threading.Event()

        content = {"kind": kind, "tables": used, "host": os.uname().nodename, "pid": os.getpid()}

        def renew() -> None:
            while not done.wait(LEASE_SECONDS / 4):
                with contextlib.suppress(OSError):
                    self.store.renew(note, encode_note(content))

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
                self.store.delete(note)

    def leased(self) -> dict[str, str]:
        """``{table folder name: who}`` of the tables in use; notes of the dead are removed.

        Raises:
            StorageError: it cannot be known.
        """
        users: dict[str, str] = {}
        try:
            notes = notes_in(self.root / "leases")
            ages = self.store.ages(self.root / "leases") if notes else {}
        except OSError as error:
            raise StorageError(f"cache {self.root}: leases: {error.strerror}; {remedy(error)} and run again") from error
        for note in notes:
            try:
                if owner.is_dead(note.name, ages.get(note.name, 0.0), LEASE_SECONDS):
                    self.store.delete(note)
                    continue
                content = read_note(note, "tables", "kind", "pid", "host")
                users.update(
                    dict.fromkeys(content["tables"], f"{content['kind']} {content['pid']} on {content['host']}")
                )
            except Damaged as error:
                if self.store.lies(note):  # somebody uses something
                    users.update(dict.fromkeys([folder.name for folder in self.folders()], f"somebody ({error})"))
            except FileNotFoundError:
                continue
            except OSError as error:  # nor may anybody touch what a note protects that cannot be read for the moment
                users.update(dict.fromkeys([folder.name for folder in self.folders()], f"somebody ({note}: {error})"))
        return users

    # ---- trash ----

    def trash(self, table: Table | str | Place) -> Place:
        """Move a table, or the folder of a trained network, to the trash; returns where it is now.

        Raises:
            UserError: a run or a reader uses it. StorageError: it cannot be moved.
        """
        name = _table_name(table)
        user = self.leased().get(name)
        if user is not None:
            raise UserError(f"table {name}: in use by {user}; try again when it is done")
        try:
            given = place_at(table) if not isinstance(table, Table) else table.dir
            folder = given if store_of(given).is_folder(given) else self.root / "tables" / name
            trash = (self.root if isinstance(folder, ObjectPath) else self.local) / "trash"
            store_of(trash).prepare([trash])
            target = trash / f"{int(store_of(trash).now(trash) * 1e9)}-{name}"
            store_of(trash).move_folder(folder, target)
        except OSError as error:
            raise StorageError(f"table {name}: cannot be moved to the trash: {error.strerror}") from error
        return target

    def empty_trash(self, grace_seconds: float) -> list[str]:
        """Delete for good what has been in the trash for longer than the grace; returns the names."""
        deleted = []
        for trash in {str(root): root / "trash" for root in (self.root, self.local)}.values():
            store = store_of(trash)
            entries = sorted(store.folders(trash))
            now = _clock_of(trash) if entries else 0.0
            for entry in entries:
                moved_ns, _, name = entry.partition("-")
                if moved_ns.isdigit() and now * 1e9 - int(moved_ns) >= grace_seconds * 1e9:
                    store.delete_folder(trash / entry)
                    deleted.append(name)
        return deleted


def _described(folder: Place, description: Mapping[str, Any]) -> Table:
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
            if asked.store.lies(file):
                _log.warning("table %s: table.json: %s; set aside and written again", folder, error.reason)
                asked.store.move(file, folder / "bad" / file.name)
            publish_record(folder / "tmp", file, canonical_json(description))
        except StorageError:
            break  # of a table that somebody else may read
    return asked


def _clock_of(folder: Place) -> float:
    """The folder's own clock; what lies in it counts as new where it cannot be asked."""
    try:
        return store_of(folder).now(folder)
    except OSError:
        return 0.0


def _table_name(table: Table | str | Place) -> str:
    return table.dir.name if isinstance(table, Table) else place_at(table).name
