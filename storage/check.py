"""Setting damaged files aside, so that their cells count as empty and nothing below them reruns.

Set aside means kept: what is damaged moves to a folder ``bad``, and nothing that it may have vouched for is removed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hoi_distill.storage.damage import Damaged
from hoi_distill.storage.digests import canonical_json
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.files import owner
from hoi_distill.storage.files.address import Place
from hoi_distill.storage.files.folders import FOLDERS, block_keys
from hoi_distill.storage.files.notes import notes_in, read_note, set_note_aside
from hoi_distill.storage.files.stores import store_of
from hoi_distill.storage.records import Record, publish_record
from hoi_distill.storage.shards.payload import forget_shards, verify_shard
from hoi_distill.storage.table import Table

if TYPE_CHECKING:
    from hoi_distill.storage.cache import Cache

EMPTIED = "set aside, its cells count as empty: run again"
LEFT = "left where it is, for the cache cannot be written here"
_UNDESCRIBED: dict[str, Any] = {"name": "", "fingerprint": "", "record": {}, "output": {}, "type": None}


@dataclass(frozen=True)
class BadShard:
    """A damaged file of a table, or of the cache itself.

    Attributes:
        table: the folder it is of.
        shard: its name.
        reason: what is wrong with it.
        cells: how many values of it count as empty from now on.
        outcome: what was done, and what mends it.
    """

    table: str
    shard: str
    reason: str
    cells: int
    outcome: str = EMPTIED

    def line(self) -> str:
        """What was found and done, for a reader."""
        return f"{self.table}/{self.shard}: {self.reason}; {self.outcome}"


def check_cache(cache: Cache, deep: bool = True) -> list[BadShard]:
    """Check every table and note, each whatever became of the others. A cache that cannot be written is only looked at."""
    mend = cache.is_writable()
    found = [
        *_check_notes(
            cache.root / "registered", mend, "set aside; gc moves nothing until its configuration has run again"
        ),
        *_check_notes(cache.root / "leases", mend, "set aside; whoever left it writes it again"),
    ]
    found += [
        BadShard("tables", name, "a link that leads nowhere", 0, "left where it is: mend or remove it")
        for name in sorted(cache.store.names(cache.root / "tables") - {folder.name for folder in cache.folders()})
        if cache.store.size(cache.root / "tables" / name) is None
    ]
    for folder in cache.folders():
        try:
            found += _check_description(folder, mend)
            found += check_table(Table(folder, _UNDESCRIBED), deep, mend)
        except StorageError as error:
            found.append(BadShard(folder.name, "", str(error), 0, "not checked"))
    return found


def _check_notes(folder: Place, mend: bool, outcome: str) -> list[BadShard]:
    found = []
    try:
        notes = notes_in(folder)
    except OSError as error:
        return [BadShard(folder.name, "", error.strerror or str(error), 0, "not checked")]
    for note in notes:
        try:
            read_note(note, "tables")
        except Damaged as error:
            if store_of(note).lies(note):
                found.append(BadShard(folder.name, note.name, error.reason, 0, outcome if mend else LEFT))
                if mend:
                    set_note_aside(note)
        except OSError as error:
            found.append(BadShard(folder.name, note.name, error.strerror or str(error), 0, "not checked"))
    return found


def _check_description(folder: Place, mend: bool) -> list[BadShard]:
    """Planning and writing know what table.json says, and write it again."""
    file, store = folder / "table.json", store_of(folder)
    try:
        Table(folder)
    except Damaged as error:
        if not store.lies(file):
            return []
        if mend:
            store.prepare([folder / "bad"])
            store.move(file, folder / "bad" / file.name)
        outcome = "set aside; the next plan or run that wants the table writes it again, no cell is lost"
        return [BadShard(folder.name, "table.json", error.reason, 0, outcome if mend else LEFT)]
    return []


def check_table(table: Table, deep: bool = True, mend: bool = True) -> list[BadShard]:
    """Find shards that are missing, of another size, or (``deep``) of other bytes, and (``mend``) set them aside.

    The payload moves to ``bad/``; its record stays (its value digests still count) with a marker beside it. A record
    whose own bytes have changed moves to ``bad/`` altogether, and its payload stays where it is. Also removes leftovers of
    dead writers.

    Raises:
        StorageError: the table's folder cannot be read or written.
    """
    with table.errors("check"):
        return _check_table(table, deep, mend)


def _check_table(table: Table, deep: bool, mend: bool) -> list[BadShard]:
    found = _check_folders(table, mend)
    if found and not mend:
        return found
    records = table.records()
    if table.broken_records():  # read twice, as payloads are
        table.forget_broken()
        records = table.records()
    broken = _broken(table, records, deep)
    for name, (reason, cells) in broken.items():
        if mend:
            table.store.move(table.dir / "commits" / name, table.dir / "bad" / name)
        found.append(BadShard(table.dir.name, name, reason, cells, EMPTIED if mend else LEFT))
    for record in records:
        payload = record.header["payload"]
        if payload is None or record.name in broken or table.is_set_aside(record):
            continue
        fault = _fault(table, payload, record.header["bytes"], deep)
        if fault is not None:
            if mend:
                _set_aside(table, record.name, payload, fault)
            found.append(BadShard(table.dir.name, payload, fault, record.header["cells"], EMPTIED if mend else LEFT))
    if mend:
        _sweep(table, bool(found))
    return found


def _broken(table: Table, records: Sequence[Record], deep: bool) -> dict[str, tuple[str, int]]:
    """``{name: (why, cells)}`` of the records whose bytes have changed: those that cannot be read, and (``deep``) others."""
    broken = {name: (reason, 0) for name, reason in table.broken_records().items()}
    for record in records if deep else ():
        if (reason := _confirmed(record.verify)) is not None:
            broken[record.name] = reason, record.header["cells"]
    return broken


def _check_folders(table: Table, mend: bool) -> list[BadShard]:
    """A file, or a link that leads nowhere, in the place of a folder moves to ``bad``; a missing folder is made."""
    found = []
    for name in FOLDERS:
        folder = table.dir / name
        if table.store.is_folder(folder):
            continue
        if table.store.lies(folder):
            found.append(BadShard(table.dir.name, name, "not a folder", 0, EMPTIED if mend else LEFT))
            if mend:
                keep = table.dir / "bad" if name != "bad" else table.dir / f"bad.{time.time_ns()}"
                table.store.prepare([keep])
                table.store.move(folder, keep / name)
        if mend:
            table.store.prepare([folder])
    return found


def _fault(table: Table, payload: str, written_bytes: int, deep: bool) -> str | None:
    """What is wrong with a payload."""
    path = table.dir / "shards" / payload
    size = table.store.size(path)
    if size is None:
        return "missing"
    if size != written_bytes:
        return f"{size} bytes where {written_bytes} were written"
    return _confirmed(lambda: verify_shard(str(path))) if deep else None


def _confirmed(verify: Callable[[], None]) -> str | None:
    """What is wrong, found twice: an I/O error that passes moves nothing aside."""
    reason = None
    for _ in range(2):
        try:
            verify()
        except Damaged as error:
            reason = error.reason
        else:
            return None
    return reason


def _set_aside(table: Table, record: str, payload: str, reason: str) -> None:
    """Set a record's payload aside. The marker comes first: a kill in between leaves a marked record, whose cells are empty,
    as they should be."""
    note = canonical_json({"reason": reason, "payload": payload})
    publish_record(table.dir / "tmp", table.dir / "commits" / f"{record}.bad", note)
    table.store.move(table.dir / "shards" / payload, table.dir / "bad" / payload)
    forget_shards()


def _sweep(table: Table, found: bool) -> None:
    """Remove temporaries of dead writers, and old payloads that no record names (their writer died in between). Where
    something was found, or a record of the payload's block was ever set aside, its record may be what was lost."""
    table.store.sweep(table.dir / "tmp")
    named = {record.header["payload"] for record in table.records()}
    if found or not named:
        return
    kept = block_keys(table.store.names(table.dir / "bad"))
    with contextlib.suppress(OSError):  # another check may sweep as well
        for name, age in table.store.ages(table.dir / "shards", table.dir / "tmp").items():
            if name in named or name.partition("-")[0] in kept or age <= owner.STALE_SECONDS:
                continue
            with contextlib.suppress(OSError):
                _remove_unnamed(table, name)


def _remove_unnamed(table: Table, payload: str) -> None:
    """Remove an old payload, unless a writer commits the same one meanwhile: it is out of the way before the records are
    read again, and a writer looks for its payload after its record is there."""
    path, aside = table.dir / "shards" / payload, table.dir / "tmp" / f"{owner.tag()}-{payload}"
    table.store.move(path, aside)
    if any(record.header["payload"] == payload for record in table.records()):
        table.store.move(aside, path)
    else:
        table.store.delete(aside)
