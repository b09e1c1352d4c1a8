"""What the tables of a stage that are there already say: why another is a new one, and what a cell took."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from hoi_distill.stages.stage import Stage, fingerprint_record
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.records import RecordHeader
from hoi_distill.storage.table import Table


def new_table(stage: Stage, present: Sequence[Table]) -> str:
    """Why there is no table of this fingerprint: the fields in which the nearest existing one differs."""
    record = fingerprint_record(stage)
    kin = [table for table in present if table.record.get("stage") == stage.name]
    if not kin:
        return "no such table yet"

    def differences(table: Table) -> list[str]:
        keys = sorted({*record, *table.record})
        return [key for key in keys if record.get(key) != table.record.get(key)]

    nearest = min(kin, key=lambda table: len(differences(table)))
    fields = [
        f"{key.removeprefix('parameters.')}: {short(nearest.record.get(key))} -> {short(record.get(key))}"
        for key in differences(nearest)
    ]
    return f"fingerprint differs from {nearest.dir.name} in {'; '.join(fields)}"


def short(value: Any) -> str:
    """A value as text, its middle left out where it is long."""
    text = str(value)
    return text if len(text) <= 40 else text[:18] + "…" + text[-18:]


def bytes_of(header: RecordHeader) -> float:
    """Bytes of a record's payload."""
    return header["bytes"]


def seconds_of(header: RecordHeader) -> float:
    """Seconds that a record's cells took."""
    return float(header["provenance"].get("seconds", 0.0))


def per_cell(tables: Sequence[Table], quantity: Callable[[RecordHeader], float]) -> float | None:
    """The mean over the cells that these tables have recorded, None without any. A table that cannot be read has none."""
    headers: list[RecordHeader] = []
    for table in tables:
        with contextlib.suppress(StorageError):
            headers += [record.header for record in table.records() if not record.is_drop]
    cells = sum(header["cells"] for header in headers)
    return sum(quantity(header) for header in headers) / cells if cells else None
