"""Writing a table: blocks of cells are committed whole or not at all, and failures are dropped to be tried again."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.cell_state import merge
from hoi_distill.storage.digests import arrow_digests, digest_bytes, tensor_digests
from hoi_distill.storage.files.folders import block_keys
from hoi_distill.storage.records import CommitHeader, Record, encode_record, publish_payload, publish_record
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.shards import arrow as arrow_shard
from hoi_distill.storage.shards import lmdb as lmdb_shard
from hoi_distill.storage.table_folder import Seen, TableFolder


@dataclass(frozen=True)
class Commit:
    """What :meth:`TableWriter.commit` did.

    Attributes:
        name: the record's.
        payload: the payload's path, None where the block holds failures only.
        bytes: the payload's size.
        cells: how many cells have a value.
        created: False where this block had been committed before. Then the first values stand.
    """

    name: str
    payload: str | None
    bytes: int
    cells: int
    created: bool


class _Payload(NamedTuple):
    """A published payload: its name (None where no cell has a value), size and ``uint64 [R, C]`` value digests."""

    name: str | None
    bytes: int
    digests: np.ndarray | None


class TableWriter(TableFolder):
    """The writing half of a table."""

    _swept = False
    _newest_ns = 0

    def commit(
        self,
        block: CellBlock,
        values: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        seen: Seen | None = None,
    ) -> Commit:
        """Make a block's cells durable, or nothing at all. Of equal blocks the first one committed stands.

        With ``seen`` a commit looks at the records of its own block alone, and costs the same in a table of any size.

        Args:
            block: which cells.
            values: ``{column: cells}`` for each column with a valid cell, of length R: ``pa.Array`` of the table's type,
                or ``[R, *shape]`` floats for tensors. Cells that are not valid may hold anything.
            provenance: JSON, kept with the record (seconds, device, teacher, versions).
            seen: what the plan saw of the table's records. None: they are looked at now.

        Raises:
            ValueError: the arguments do not fit each other or the table.
            StorageError: it could not be written; nothing of it exists then.
        """
        block = block.collapsed()
        try:
            block.validate()
        except ValueError as error:
            raise ValueError(f"table {self.dir.name}: {error}") from error
        seen = self.seen() if seen is None else seen
        key = block.key(seen.drops if block.failures else [])
        with self.errors(key):
            if not self._swept:
                self.store.sweep(self.dir / "tmp")
                self._swept = True
            standing, _ = self._standing(key)
            if standing is not None:
                return self._commit_of(standing, block)
            self._newest_ns = max(self._newest_ns, seen.newest_ns)
            return self._publish(key, block, values, provenance)

    def drop_failures(self, cells: CellSelection) -> int:
        """Empty the failure cells among these, for ``--retry-failed``, by a ``.drop`` record. Returns how many."""
        records = self.records()
        state = merge(records, self.live_names(records), cells)
        some = np.flatnonzero(state.packed_failed.any(axis=1))
        # A row that is selected twice is dropped once: records list distinct rows.
        some = some[np.unique(cells.row_ids[some].view("S16") if len(some) else some, return_index=True)[1]]
        if not len(some):
            return 0
        dropped = np.unpackbits(state.packed_failed[some], axis=1, count=len(cells.columns)).view(bool)
        with self.errors("drop"):
            self._newest_ns = max(self._newest_ns, self.seen().newest_ns)
            nothing = CellBlock(cells.row_ids[some], tuple(cells.columns), np.zeros_like(dropped))
            data = encode_record(self._header(_Payload(None, 0, None), nothing, None), nothing, dropped=dropped)
            publish_record(self.dir / "tmp", self.dir / "commits" / f"{digest_bytes(data).hex()}-0.drop", data)
        return int(dropped.sum())

    def _publish(
        self, key: str, block: CellBlock, values: Mapping[str, Any], provenance: Mapping[str, Any] | None
    ) -> Commit:
        """Write the payload, then the record that makes it exist, until a record of this block stands."""
        payload = self._publish_payload(key, block, values)
        while True:
            standing, generation = self._standing(key)
            if standing is not None:
                self._discard(payload.name, key)
                return self._commit_of(standing, block)
            target = self.dir / "commits" / f"{key}-{generation}.commit"
            data = encode_record(self._header(payload, block, provenance), block, payload.digests)
            is_mine = publish_record(self.dir / "tmp", target, data)
            path = None if payload.name is None else self.dir / "shards" / payload.name
            if path is not None and self.store.size(path) is None:
                # A check swept it, or another loser discarded it, before a record named it.
                payload = self._publish_payload(key, block, values)
            elif is_mine:
                where = None if path is None else str(path)
                return Commit(target.name, where, payload.bytes, block.value_count, created=True)

    def _publish_payload(self, key: str, block: CellBlock, values: Mapping[str, Any]) -> _Payload:
        """Encode and write the block's values."""
        if not block.valid.any():
            return _Payload(None, 0, None)
        digests = np.zeros(block.shape, np.uint64)
        encoded = []
        for index, column in enumerate(block.columns):
            valid = block.valid[:, index]
            try:
                cells, digests[:, index] = self._encode(values[column] if valid.any() else None, valid)
            except ValueError as error:
                raise ValueError(f"table {self.dir.name}, column {column!r}: {error}") from error
            encoded.append(cells)
        write: partial[None]
        if self.codec is None:
            suffix = ".arrow"
            write = partial(arrow_shard.write, row_ids=block.row_ids, columns=block.columns, arrays=encoded)
        else:
            suffix = ".lmdb"
            write = partial(lmdb_shard.write, block=block, encoded=encoded, codec=self.codec)
        name, size = publish_payload(self.dir / "tmp", self.dir / "shards", key, suffix, write)
        return _Payload(name, size, digests)

    def _encode(self, cells: Any, valid: np.ndarray) -> tuple[Any, np.ndarray]:
        """A column as its shard stores it, and ``uint64 [R]`` value digests (0 where not valid).

        Args:
            cells: what the caller of :meth:`commit` gave, None where no cell is valid.
            valid: ``bool [R]``.
        """
        digests = np.zeros(len(valid), np.uint64)
        if self.type is not None:
            encoded = arrow_shard.encode(pa.nulls(len(valid), self.type) if cells is None else cells, valid, self.type)
            return encoded, np.where(valid, arrow_digests(encoded), digests)
        assert self.codec is not None
        tensors = np.zeros((len(valid), *self.codec.shape), "<f2") if cells is None else np.asarray(cells)
        encoded = self.codec.encode(tensors if valid.all() else tensors[valid])
        digests[valid] = tensor_digests(encoded)
        return encoded, digests

    def _header(self, payload: _Payload, block: CellBlock, provenance: Mapping[str, Any] | None) -> CommitHeader:
        return {
            "payload": payload.name,
            "bytes": payload.bytes,
            "cells": block.value_count,
            "failures": len(block.failures),
            "host": os.uname().nodename,
            "provenance": dict(provenance or {}),
            "created_ns": self._next_instant(),
        }

    def _standing(self, key: str) -> tuple[Record | None, int]:
        """The live record of a block if there is one, and the number of the next generation."""
        block, generation = self._block(key)
        records = block.records()
        live = block.live_names(records)
        return next((record for record in records if record.name in live), None), generation

    def _block(self, key: str) -> tuple[Self, int]:
        """The table as far as the records of a block tell, and the number of the block's next generation. A generation has
        been where its record stands, is marked as bad, or was set aside."""
        names: list[str] = []
        for generation in count():
            name = f"{key}-{generation}.commit"
            places = self.dir / "commits" / name, self.dir / "commits" / f"{name}.bad", self.dir / "bad" / name
            if not any(map(self.store.lies, places)):
                break
            names.append(name)
        return self.only(names), len(names)

    def _next_instant(self) -> int:
        """Now, but later than every record seen, so that a slow clock cannot take the first place afterwards."""
        self._newest_ns = max(time.time_ns(), 1 + self._newest_ns)
        return self._newest_ns

    def _discard(self, payload: str | None, key: str) -> None:
        """Remove a loser's payload, unless it is the winner's too."""
        block, _ = self._block(key)
        named = {record.header["payload"] for record in block.records()}
        kept = block.broken_records() or key in block_keys(self.store.names(self.dir / "bad"))
        if payload is not None and payload not in named and not kept:
            self.store.delete(self.dir / "shards" / payload)

    def _commit_of(self, record: Record, block: CellBlock) -> Commit:
        """What is said of a block whose record stood already."""
        payload = record.header["payload"]
        path = None if payload is None else str(self.dir / "shards" / payload)
        return Commit(record.name, path, record.header["bytes"], block.value_count, created=False)
