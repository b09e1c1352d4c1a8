"""What was committed, and whether its bytes were destroyed since: what a cache must still hold, by the soak's own book."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.soak_children import Send
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table


@dataclass
class Committed:
    """One commit that was reported as done. ``intact`` until a byte of its record or its payload was destroyed."""

    table: str
    record: str
    payload: str | None
    cells: CellSelection
    valid: np.ndarray
    intact: bool = True


def report_commits(send: Send) -> None:
    """From now on every commit of this process is sent, once it is durable."""
    real = Table.commit

    def commit(self: Table, block: CellBlock, *given: Any, **more: Any) -> Any:
        done = real(self, block, *given, **more)
        payload = None if done.payload is None else Path(done.payload).name
        cells = CellSelection(block.row_ids.copy(), tuple(block.columns), block.inputs)
        send(Committed(self.dir.name, done.name, payload, cells, block.valid.copy()))
        return done

    Table.commit = commit  # type: ignore[method-assign]


class Ledger:
    """The book of one cache."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[tuple[str, str], Committed] = {}

    def add(self, said: Iterable[Any]) -> None:
        """Enter what a process sent. A commit that found its record standing adds nothing to what is known of it."""
        for message in said:
            if isinstance(message, Committed):
                self.entries.setdefault((message.table, message.record), message)

    def destroyed(self, path: Path) -> None:
        """A file or folder of the cache lost a byte, or all."""
        parts = path.relative_to(self.root).parts
        if parts[0] != "tables" or len(parts) < 2:
            return
        for entry in self.entries.values():
            whole = len(parts) == 2 or (parts[2] in ("shards", "commits") and len(parts) == 3)
            mine = whole or path.name in (entry.payload, entry.record)
            if entry.table == parts[1] and mine:
                entry.intact = False

    def forget(self, tables: Iterable[str]) -> None:
        """Tables that nobody wants any more may go."""
        gone = set(tables)
        for entry in self.entries.values():
            entry.intact &= entry.table not in gone

    def intact(self) -> list[Committed]:
        """Commits of which no byte was destroyed."""
        return [entry for entry in self.entries.values() if entry.intact and entry.valid.any()]

    def sound_payloads(self) -> list[str]:
        """Payloads that lie where they were committed, whole, and of whose record anything is left: a damaged one is
        enough. Of a record that was deleted nobody can know."""
        found = []
        for entry in self.entries.values():
            if entry.payload is None:
                continue
            folder = self.root / "tables" / entry.table
            path, key = folder / "shards" / entry.payload, entry.record.partition("-")[0]
            if path.is_file() and _sound(path) and any(folder.glob(f"*/{key}-*.commit*")):
                found.append(str(path))
        return found


def _sound(path: Path) -> bool:
    stated = path.stem.rpartition("-")[2]
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() == stated


def vanished(payloads: Iterable[str]) -> list[str]:
    """Of payloads that were sound before a check those that are neither in place nor kept beside."""
    gone = []
    for name in payloads:
        path = Path(name)
        kept = path.parents[1] / "bad"
        # A copy set aside may have got another name, but not other bytes.
        if not path.exists() and not any(path.stem in each.name for each in (kept.iterdir() if kept.is_dir() else ())):
            gone.append(path.name)
    return gone


def missing(root: Path, entries: Iterable[Committed]) -> list[str]:
    """Committed cells that are not there, in words. For a process of its own: it opens tables.

    Raises:
        StorageError: a table cannot be read at all.
    """
    lost = []
    tables: dict[str, Table] = {}
    for entry in entries:
        folder = root / "tables" / entry.table
        if entry.table not in tables:
            tables[entry.table] = Table(folder)
        state = tables[entry.table].state(entry.cells)
        if gone := int((entry.valid & ~state.filled).sum()):
            lost.append(f"{gone} cells of {entry.table}/{entry.record}")
    return lost
