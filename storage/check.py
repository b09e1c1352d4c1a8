"""Setting damaged shards aside, so that their cells count as empty and nothing below them reruns."""

from __future__ import annotations

import contextlib
import os
import time

from storage import owner
from storage.commit import Record, publish_record
from storage.digests import canonical_json
from storage.errors import StorageError
from storage.shards import forget_shard, verify_shard
from storage.table import BadShard, Table


def check_table(table: Table, deep: bool = True) -> list[BadShard]:
    """Find shards that are missing, of another size, or (``deep``) of other bytes, and set them aside.

    The payload moves to ``bad/``; its record stays (its value digests still count) with a marker beside it. A record
    whose own bytes have changed moves to ``bad/`` altogether. Also removes leftovers of dead writers.

    Raises:
        OSError: the table's folder cannot be read or written.
    """
    found: list[BadShard] = []
    records = table.records()
    broken = table.broken_records()
    cells = dict.fromkeys(broken, 0)
    for record in records if deep else []:
        try:
            record.verify()
        except StorageError as error:
            broken[record.name], cells[record.name] = str(error), record.header["cells"]
    for name, reason in broken.items():
        with contextlib.suppress(FileNotFoundError):
            os.replace(table.dir / "commits" / name, table.dir / "bad" / name)
        found.append(BadShard(table.dir.name, name, reason, cells[name]))
    for record in records:
        if record.header["payload"] is None or record.name in broken or table.is_set_aside(record):
            continue
        fault = _fault(table, record, deep)
        if fault is not None:
            _set_aside(table, record, fault)
            found.append(BadShard(table.dir.name, record.header["payload"], fault, record.header["cells"]))
    _sweep(table)
    return found


def _fault(table: Table, record: Record, deep: bool) -> str | None:
    """What is wrong with a record's payload."""
    path = table.dir / "shards" / record.header["payload"]
    try:
        size = path.stat().st_size
        if size != record.header["bytes"]:
            return f"{size} bytes where {record.header['bytes']} were written"
        if deep:
            verify_shard(path)
    except FileNotFoundError:
        return "missing"
    except StorageError as error:
        return str(error)
    return None


def _set_aside(table: Table, record: Record, reason: str) -> None:
    """Marker first: a kill in between leaves a marked record, whose cells are empty, as they should be."""
    payload = table.dir / "shards" / record.header["payload"]
    note = canonical_json({"reason": reason, "payload": payload.name})
    publish_record(table.dir / "tmp", table.dir / "commits" / f"{record.name}.bad", note)
    with contextlib.suppress(FileNotFoundError):
        os.replace(payload, table.dir / "bad" / payload.name)
    forget_shard(payload)


def _sweep(table: Table) -> None:
    """Remove temporaries of dead writers, and old payloads that no record names (their writer died in between)."""
    owner.sweep(table.dir / "tmp")
    named = {record.header["payload"] for record in table.records()}
    for entry in os.scandir(table.dir / "shards"):
        with contextlib.suppress(FileNotFoundError):  # another check may sweep as well
            if entry.name not in named and time.time() - entry.stat().st_mtime > owner.STALE_SECONDS:
                os.unlink(entry.path)
