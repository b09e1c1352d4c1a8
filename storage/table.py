"""A table: one kind of output under one fingerprint, as a matrix of cells (rows = inputs, columns = questions).

On disk, under ``<cache>/tables/<name>-<fingerprint>/``:

    table.json    the canonical record, the output's description, the Arrow type of a cell
    shards/       payloads, immutable            commits/  commit records, immutable, and ``.bad`` markers
    bad/          what check set aside           tmp/      what writers are writing
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hoi_distill.storage.cell_state import State, merge, overlaps
from hoi_distill.storage.damage import Damaged, damage
from hoi_distill.storage.digests import FAILURE_DIGEST, arrow_digests, digest_bytes, fingerprint, tensor_digests
from hoi_distill.storage.errors import StorageError, remedy
from hoi_distill.storage.files import folders, owner
from hoi_distill.storage.records import Record, encode_record, load_record, publish_payload, publish_record
from hoi_distill.storage.rectangle import collapse, name_rectangle, validate
from hoi_distill.storage.shards import arrow as arrow_shard
from hoi_distill.storage.shards import lmdb as lmdb_shard
from hoi_distill.storage.shards.codecs import Codec
from hoi_distill.storage.shards.payload import open_shard, verify_once

EMPTY, FAILED = -1, -2
_READ_ONE_BY_ONE = 16  # payloads, those of a task, that cost less to verify than to ask the machine about
_RECORD = re.compile(r"[0-9a-f]{32}-\d+\.(commit|drop)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commit:
    """What :meth:`Table.commit` did: ``created`` is False where these cells had been committed before (the first value
    stands). ``name`` of the record, ``payload`` path or None (failures only), its ``bytes``, ``cells`` with a value."""

    name: str
    payload: str | None
    bytes: int
    cells: int
    created: bool


@dataclass(frozen=True)
class Location:
    """Where cells lie.

    Attributes:
        shard: ``int32 [R, C]``, index into the lists; -1 empty, -2 a recorded failure.
        position: ``int32 [R, C]``, row within the shard.
        paths, bytes, columns: per shard, its payload file (:func:`hoi_distill.storage.shards.payload.open_shard` reads it),
            size, columns.
    """

    shard: np.ndarray
    position: np.ndarray
    paths: list[str]
    bytes: list[int]
    columns: list[tuple[str, ...]]


class Table:
    """A table that exists. Get it from :meth:`hoi_distill.storage.cache.Cache.table`, or by its folder. Pickles as its folder.

    ``rows`` are ``V16 [R]`` row ids, ``columns`` C names. ``inputs`` are the cells' input digests, ``uint64 [R]``
    (one for all of a row's cells) or ``[R, C]``: a cell counts only if it was computed from
    these. None on writing: the table has no inputs; None on reading: whatever they are, the newest first.
    """

    def __init__(self, folder: str | os.PathLike[str], description: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            description: what table.json says, where the caller knows.

        Raises:
            Damaged: table.json is missing or not what was written. StorageError: it cannot be read.
        """
        self.dir = Path(folder)
        try:
            with damage(f"table {self.dir}: table.json"):
                self._describe(
                    json.loads((self.dir / "table.json").read_bytes()) if description is None else description
                )
                stated = self.fingerprint, self.record.get("output", self.output)
                if description is None and stated != (fingerprint(self.record), self.output):
                    raise ValueError("the record is not the fingerprint's")
        except OSError as error:
            raise StorageError(f"table {self.dir}: table.json: {error.strerror}; make it readable") from error
        self._lock = threading.Lock()
        self._records: dict[str, Record | Damaged] = {}
        self._bad: set[str] = set()
        self._swept = False

    def _describe(self, said: Mapping[str, Any]) -> None:
        self.name: str = said["name"]
        self.fingerprint: str = said["fingerprint"]
        self.record: dict[str, Any] = said["record"]
        self.output: dict[str, Any] = said["output"]
        self.type: pa.DataType | None = None
        if said["type"] is not None:
            self.type = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(said["type"]))).field(0).type

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (str(self.dir),)

    @property
    def codec(self) -> Codec | None:
        """How tensor cells are encoded; None for a table of Arrow cells."""
        return Codec(self.output["codec"], tuple(self.output["shape"])) if self.type is None else None

    # ---- reading ----

    def records(self) -> list[Record]:
        """All sound commit records, in the order in which they merge. Only new ones are read."""
        with self._lock, self.errors("commits"):
            names = folders.names(self.dir / "commits")
            self._bad = {name for name in names if name.endswith(".bad")}
            names = {name for name in names - self._bad if _RECORD.fullmatch(name)}
            for gone in self._records.keys() - names:
                del self._records[gone]
            new = sorted(names - self._records.keys())
            if len(new) > 64:
                with ThreadPoolExecutor(8) as pool:
                    self._records.update(zip(new, pool.map(self._load, new, chunksize=16), strict=True))
            else:
                self._records.update((name, self._load(name)) for name in new)
            sound = [record for record in self._records.values() if isinstance(record, Record)]
        return sorted(sound, key=lambda record: record.order)

    def _load(self, name: str) -> Record | Damaged:
        try:
            return load_record(self.dir / "commits" / name)
        except Damaged as error:
            _log.warning("%s; until then it counts as none", error)
            return error

    def broken_records(self) -> dict[str, str]:
        """``{name: why}`` of the records that cannot be read; as of the last :meth:`records`."""
        return {name: error.reason for name, error in self._records.items() if isinstance(error, Damaged)}

    def forget_broken(self) -> None:
        """Let :meth:`records` read again what could not be read."""
        with self._lock:
            for name in self.broken_records():
                del self._records[name]

    def is_set_aside(self, record: Record) -> bool:
        """Whether check found its payload bad."""
        return f"{record.name}.bad" in self._bad

    def _live(self, records: Sequence[Record]) -> set[str]:
        """Names of the records whose payload is there, whole in size and not set aside."""
        payloads = {record.header["payload"] for record in records} - {None}
        with self.errors("shards"):
            sizes = folders.sizes(self.dir / "shards", payloads)
        return {
            record.name
            for record in records
            if (payload := record.header["payload"]) is None
            or (sizes.get(payload) == record.header["bytes"] and not self.is_set_aside(record))
        }

    def state(self, rows: np.ndarray, columns: Sequence[str], inputs: np.ndarray | None = None) -> State:
        """What is filled of these rows and columns."""
        records = self.records()
        return merge(records, self._live(records), rows, columns, inputs)

    def value_digests(self, rows: np.ndarray, columns: Sequence[str], inputs: np.ndarray | None = None) -> np.ndarray:
        """``uint64 [R, C]``: the first digest recorded of each cell's value, also where its payload is gone;
        ``FAILURE_DIGEST`` of a failure; 0 where nothing is recorded."""
        records = self.records()
        digests = np.zeros((len(rows), len(columns)), np.uint64)
        for overlap in overlaps(_preferred(records, inputs), rows, columns):
            keep = overlap.valid() & overlap.matches(inputs)
            if overlap.record.is_drop or not keep.any():
                continue
            values = overlap.record.cells().values
            assert values is not None
            target = np.ix_(overlap.asked_rows, overlap.asked_columns)
            before = digests[target]
            digests[target] = np.where((before == 0) & keep, values[overlap.rows][:, overlap.columns], before)
        failed = merge(records, {record.name for record in records}, rows, columns, inputs).failed
        digests[failed & (digests == 0)] = FAILURE_DIGEST
        return digests

    def locate(self, rows: np.ndarray, columns: Sequence[str], inputs: np.ndarray | None = None) -> Location:
        """Where each cell's value lies: in the first record that holds it and whose payload is there."""
        records = self.records()
        live = self._live(records)
        shape = len(rows), len(columns)
        where = Location(np.full(shape, EMPTY, np.int32), np.full(shape, EMPTY, np.int32), [], [], [])
        for overlap in overlaps(_preferred(records, inputs), rows, columns):
            record = overlap.record
            if record.name not in live or record.header["payload"] is None:
                continue
            target = np.ix_(overlap.asked_rows, overlap.asked_columns)
            take = overlap.valid() & overlap.matches(inputs) & (where.shard[target] == EMPTY)
            if take.any():
                where.shard[target] = np.where(take, len(where.paths), where.shard[target])
                where.position[target] = np.where(take, overlap.rows[:, None], where.position[target])
                where.paths.append(str(self.dir / "shards" / record.header["payload"]))
                where.bytes.append(record.header["bytes"])
                where.columns.append(record.columns)
        where.shard[merge(records, live, rows, columns, inputs).failed] = FAILED
        return where

    def read(
        self,
        rows: np.ndarray,
        columns: Sequence[str],
        inputs: np.ndarray | None = None,
        wanted: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """The cells' values, in row order: ``{column: pa.Array of length R}``, or ``ndarray [R, *shape]`` (float16 for
        codec ``fp16``, else float32) for tensors. A recorded failure reads as null, or NaN, and so does whatever stands
        where ``wanted`` (bool ``[R, C]``) is false.

        Raises:
            StorageError: a cell is empty, or its shard cannot be read or holds other bytes than were written.
        """
        where = self.locate(rows, columns, inputs)
        if wanted is not None:
            where.shard[~wanted] = FAILED
        if (where.shard == EMPTY).any():
            row, column = np.argwhere(where.shard == EMPTY)[0].tolist()
            count = int((where.shard == EMPTY).sum())
            raise StorageError(
                f"table {self.dir.name}: {count} of {where.shard.size} cells asked for are empty, the first of row "
                f"{rows[row].tobytes().hex()}, column {columns[column]!r}; `hoi-distill run` fills them"
            )
        used = np.unique(where.shard[where.shard >= 0]).tolist()
        with self.errors("shards"):
            if len(used) > _READ_ONE_BY_ONE:
                verify_once([where.paths[number] for number in used])
            read = self._read_arrow if self.type is not None else self._read_tensors
            return {column: read(column, where, index) for index, column in enumerate(columns)}

    def _read_arrow(self, column: str, where: Location, index: int) -> pa.Array:
        shard, position = where.shard[:, index], where.position[:, index]
        if not len(shard):
            return pa.nulls(0, self.type)
        order = np.argsort(shard, kind="stable")
        used, starts = np.unique(shard[order], return_index=True)
        pieces = []
        for number, part in zip(used.tolist(), np.split(order, starts[1:]), strict=True):
            if number == FAILED:
                pieces.append(pa.nulls(len(part), self.type))
            else:
                pieces.append(open_shard(where.paths[number]).take(column, position[part]))
        inverse = np.empty(len(order), np.int64)
        inverse[order] = np.arange(len(order))
        return pa.concat_arrays(pieces).take(pa.array(inverse))

    def _read_tensors(self, column: str, where: Location, index: int) -> np.ndarray:
        codec = self.codec
        assert codec is not None
        shard, position = where.shard[:, index], where.position[:, index]
        values = np.full((len(shard), *codec.shape), np.nan, codec.dtype)
        for number in np.unique(shard[shard >= 0]).tolist():
            part = np.flatnonzero(shard == number)
            values[part] = open_shard(where.paths[number]).take(column, position[part])
        return values

    def failures(
        self, rows: np.ndarray, columns: Sequence[str], inputs: np.ndarray | None = None
    ) -> dict[tuple[int, int], str]:
        """``{(row, column): reason}``, positions among the asked ones, of the cells that are recorded failures."""
        records = self.records()
        failed = merge(records, self._live(records), rows, columns, inputs).failed
        reasons: dict[tuple[int, int], str] = {}
        if not failed.any():
            return reasons
        for overlap in overlaps(records, rows, columns):
            bits = overlap.bits(overlap.record.failed)
            if overlap.record.is_drop or bits is None:
                continue
            bits = bits & overlap.matches(inputs) & failed[np.ix_(overlap.asked_rows, overlap.asked_columns)]
            some = np.flatnonzero(bits.any(axis=1))
            column_of = dict(zip(overlap.columns.tolist(), overlap.asked_columns.tolist(), strict=True))
            listed = overlap.record.cells().reasons
            assert listed is not None
            for pair, entries in zip(some.tolist(), listed.take(pa.array(overlap.rows[some])).to_pylist(), strict=True):
                row = int(overlap.asked_rows[pair])
                for entry in entries:
                    column = column_of.get(entry["column"])
                    if column is not None and failed[row, column]:
                        reasons[row, column] = entry["reason"]  # a later record's reason is the newer one
        return reasons

    def known(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """All rows (``V16``, distinct) and columns (first come first) of which something is recorded."""
        records = [record for record in self.records() if not record.is_drop]
        columns = dict.fromkeys(name for record in records for name in record.columns)
        rows = np.concatenate([record.rows for record in records] or [np.zeros(0, "V16")])
        _, first = np.unique(rows.view("S16") if len(rows) else rows, return_index=True)
        return rows[np.sort(first)], tuple(columns)

    # ---- writing ----

    def commit(
        self,
        rows: np.ndarray,
        columns: Sequence[str],
        valid: np.ndarray,
        values: Mapping[str, Any],
        failures: Mapping[tuple[int, int], str] | None = None,
        inputs: np.ndarray | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Commit:
        """Make a rectangle's cells durable, or nothing at all. Of equal rectangles the first one committed stands.

        Args:
            rows: ``V16 [R]``, distinct. valid: ``bool [R, C]``, which cells have a value.
            values: ``{column: cells}`` for each column with a valid cell, of length R (cells that are not valid may
                hold anything): ``pa.Array`` of the table's type, or ``[R, *shape]`` floats for tensors.
            failures: ``{(row, column): reason}``, positions in the rectangle; never of a valid cell.
            provenance: JSON, kept with the record (seconds, device, teacher, versions).

        Raises:
            ValueError: the arguments do not fit each other or the table.
            StorageError: it could not be written; nothing of it exists then.
        """
        failures = dict(failures or {})
        columns = tuple(columns)
        inputs = collapse(inputs)
        try:
            validate(rows, columns, valid, failures, inputs)
        except ValueError as error:
            raise ValueError(f"table {self.dir.name}: {error}") from error
        # A failure that was dropped may be recorded again, so the tombstones seen enter a name with failures.
        drops = [record.name for record in self.records() if record.is_drop] if failures else []
        rectangle = name_rectangle(rows, columns, valid, failures, inputs, drops)
        with self.errors(rectangle):
            if not self._swept:
                owner.sweep(self.dir / "tmp")
                self._swept = True
            winner, _ = self._standing(rectangle)
            if winner is not None:
                return self._commit_of(winner, int(valid.sum()), created=False)
            payload, size, digests = None, 0, None
            if valid.any():
                payload, size, digests = self._publish(rectangle, rows, columns, valid, values)
            header = _header(payload, size, int(valid.sum()), len(failures), provenance)
            while True:
                winner, generation = self._standing(rectangle)
                if winner is not None:
                    self._discard(payload, rectangle)
                    return self._commit_of(winner, int(valid.sum()), created=False)
                header["created_ns"] = self._next_instant()
                target = self.dir / "commits" / f"{rectangle}-{generation}.commit"
                data = encode_record(header, rows, columns, valid, failures, inputs, digests)
                is_mine = publish_record(self.dir / "tmp", target, data)
                path = None if payload is None else self.dir / "shards" / payload
                if path is not None and folders.size(path) is None:
                    # A check swept it, or another loser discarded it, before a record named it.
                    payload, size, digests = self._publish(rectangle, rows, columns, valid, values)
                elif is_mine:
                    return Commit(
                        target.name, None if path is None else str(path), size, int(valid.sum()), created=True
                    )

    def drop_failures(self, rows: np.ndarray, columns: Sequence[str], inputs: np.ndarray | None = None) -> int:
        """Empty the failure cells among these (for ``--retry-failed``); returns how many. Records a tombstone."""
        state = self.state(rows, columns, inputs)
        some = np.flatnonzero(state.packed_failed.any(axis=1))
        # A row that is asked for twice is dropped once: records list distinct rows.
        some = some[np.unique(rows[some].view("S16") if len(some) else rows[some], return_index=True)[1]]
        if not len(some):
            return 0
        dropped = np.unpackbits(state.packed_failed[some], axis=1, count=len(columns)).view(bool)
        with self.errors("drop"):
            header = {**_header(None, 0, 0, 0, None), "created_ns": self._next_instant()}
            nothing = np.zeros_like(dropped)
            data = encode_record(header, rows[some], tuple(columns), nothing, {}, None, None, dropped)
            publish_record(self.dir / "tmp", self.dir / "commits" / f"{digest_bytes(data).hex()}-0.drop", data)
        return int(dropped.sum())

    def _publish(
        self,
        rectangle: str,
        rows: np.ndarray,
        columns: tuple[str, ...],
        valid: np.ndarray,
        values: Mapping[str, Any],
    ) -> tuple[str, int, np.ndarray]:
        """Write the payload; returns (name, bytes, value digests ``uint64 [R, C]``)."""
        digests = np.zeros(valid.shape, np.uint64)
        scratch, folder, codec = self.dir / "tmp", self.dir / "shards", self.codec
        encoded: list[Any] = []
        for index, column in enumerate(columns):
            here = valid[:, index]
            try:
                if self.type is not None:
                    cells = values[column] if here.any() else pa.nulls(len(rows), self.type)
                    encoded.append(arrow_shard.encode(cells, here, self.type))
                    digests[:, index] = np.where(here, arrow_digests(encoded[-1]), np.uint64(0))
                else:
                    assert codec is not None
                    cells = np.asarray(values[column]) if here.any() else np.zeros((len(rows), *codec.shape), "<f2")
                    encoded.append(codec.encode(cells if here.all() else cells[here]))
                    digests[here, index] = tensor_digests(encoded[-1])
            except ValueError as error:
                raise ValueError(f"table {self.dir.name}, column {column!r}: {error}") from error
        if codec is None:
            write = partial(arrow_shard.write, rows=rows, columns=columns, arrays=encoded)
            return (*publish_payload(scratch, folder, rectangle, ".arrow", write), digests)
        write = partial(lmdb_shard.write, rows=rows, columns=columns, valid=valid, encoded=encoded, codec=codec)
        return (*publish_payload(scratch, folder, rectangle, ".lmdb", write), digests)

    def _standing(self, rectangle: str) -> tuple[Record | None, int]:
        """The live record of a rectangle if there is one, and the number of the next generation."""
        mine = [record for record in self.records() if record.name.startswith(f"{rectangle}-")]
        names = [name for name in self._records if name.startswith(f"{rectangle}-")]
        alive = self._live(mine) if mine else set()
        winner = next((record for record in mine if record.name in alive), None)
        return winner, 1 + max((int(Path(name).stem.rpartition("-")[2]) for name in names), default=-1)

    def _next_instant(self) -> int:
        """Now, but later than every record seen, so that a slow clock cannot take the first place afterwards."""
        return max(time.time_ns(), 1 + max((record.header["created_ns"] for record in self.records()), default=0))

    def _discard(self, payload: str | None, rectangle: str) -> None:
        """Remove a loser's payload, unless it is the winner's too."""
        named = {record.header["payload"] for record in self.records() if record.name.startswith(rectangle)}
        kept = folders.rectangles_of(self.broken_records()) | folders.rectangles_of(folders.names(self.dir / "bad"))
        if payload is not None and payload not in named and rectangle not in kept:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.dir / "shards" / payload)

    def _commit_of(self, record: Record, cells: int, created: bool) -> Commit:
        payload = record.header["payload"]
        path = None if payload is None else str(self.dir / "shards" / payload)
        return Commit(record.name, path, record.header["bytes"], cells, created)

    @contextlib.contextmanager
    def errors(self, shard: str) -> Iterator[None]:
        """Say which table and shard an I/O error struck, and what helps."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            number = getattr(error, "errno", None)
            mend = "`hoi-distill check` finds it" if number is None else remedy(error)
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"table {self.dir}, shard {shard}: {reason}; committed cells are intact; {mend} and run again"
            ) from error


def _header(
    payload: str | None, size: int, cells: int, failures: int, provenance: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "payload": payload,
        "bytes": size,
        "cells": cells,
        "failures": failures,
        "host": os.uname().nodename,
        "provenance": dict(provenance or {}),
    }


def _preferred(records: list[Record], inputs: np.ndarray | None) -> list[Record]:
    """The order in which records are asked for a cell: the first stands; but where nobody says which inputs are meant
    and records have some, the newest stands."""
    newest = inputs is None and any(record.header["has_inputs"] for record in records)
    return records[::-1] if newest else records
