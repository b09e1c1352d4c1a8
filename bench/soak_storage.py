"""Sequences on storage alone: commits, reads, checks and retries of one or two tables whose right values are known."""

from __future__ import annotations

import functools
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.soak_children import Child, Send
from bench.soak_house import House, command
from bench.soak_ledger import report_commits
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef
from hoi_distill.storage.table import Table

ROWS, COLUMNS, BLOCK = 10, ("a", "b", "c", "d"), 4
IDS = as_rows([digest_bytes(f"row {index}".encode()) for index in range(ROWS)]).copy()
BOXES = pa.list_(pa.list_(pa.float32(), 4))
TYPES: dict[str, pa.DataType | None] = {
    "structs": pa.struct([("score", pa.float32()), ("boxes", BOXES), ("text", pa.string())]),
    "lists": pa.list_(pa.int64()),
    "numbers": pa.float32(),
    "maps": None,
    "small_maps": None,
}
SHAPES = {"maps": (4, 5, 5), "small_maps": (2, 3)}
CODECS = {"maps": "fp16", "small_maps": "int8"}


@dataclass
class Kind:
    """One table of a sequence: what its cells are, and from which generation of its inputs each row is computed."""

    name: str
    inputs: str  # "none", "row" or "cell"
    generation: np.ndarray  # int [R]

    def open(self, root: Path) -> Table:
        """The table in a cache; it is created if it is not there."""
        kind = TYPES[self.name]
        described: dict[str, Any] = {"format": "arrow", "type": str(kind)}
        if kind is None:
            described = {"format": "lmdb", "shape": list(SHAPES[self.name]), "codec": CODECS[self.name]}
        record = {"stage": self.name, "inputs": self.inputs, "output": described}
        return Cache.open(root).table(self.name, record, described, kind)

    def digests(self) -> np.ndarray | None:
        """Input digests of all rows: ``uint64 [R]`` or ``[R, C]``."""
        if self.inputs == "none":
            return None
        rows = (1000 + self.generation).astype(np.uint64)
        return rows if self.inputs == "row" else rows[:, None] * np.uint64(31) + np.arange(4, dtype=np.uint64)

    def seed(self, row: int, column: str) -> int:
        """A number that follows from table, row, column and the generation of the inputs."""
        generation = 0 if self.inputs == "none" else int(self.generation[row])
        return zlib.crc32(f"{self.name} {row} {column} {generation}".encode())

    def fails(self, row: int, column: str) -> bool:
        """Whether the cell is a failure."""
        return zlib.crc32(f"{row} {column}".encode()) % 9 == 0

    def failing(self) -> np.ndarray:
        """``bool [R, C]``: the cells that are failures."""
        return np.array([[self.fails(row, column) for column in COLUMNS] for row in range(ROWS)])

    def value(self, row: int, column: str) -> Any:
        """The right value: what Arrow gives as a Python object, or an array."""
        seed = self.seed(row, column)
        if TYPES[self.name] is None:
            ramp = np.arange(np.prod(SHAPES[self.name])).reshape(SHAPES[self.name])
            return ((ramp * (1 + seed % 5) + seed % 97) % 61).astype(np.float32)
        boxes = [[float(seed % (7 + i)), float(i), 9.0, float(seed % 31)] for i in range(seed % 4)]
        return {
            "structs": {"score": float(seed % 1000) / 8, "boxes": boxes, "text": f"w{seed}" * (seed % 3)},
            "lists": [seed % (3 + i) for i in range(seed % 5)],
            "numbers": float(seed % 4096) / 4,
        }[self.name]

    def column(self, rows: np.ndarray, column: str) -> Any:
        """The values of some rows, as a stage would hand them over."""
        values = [self.value(int(row), column) for row in rows]
        kind = TYPES[self.name]
        return np.stack(values) if kind is None else pa.array(values, kind)

    def right(self, read: Any, row: int, column: str) -> bool:
        """Whether a cell that was read holds its value."""
        expected = self.value(row, column)
        if TYPES[self.name] is not None:
            return bool(read == expected)
        step = np.abs(expected).max() / 127 if CODECS[self.name] == "int8" else 0.0
        return read is not None and bool((np.abs(np.asarray(read, np.float32) - expected) <= step * 0.51).all())


def commit(kind: Kind, table: Table, asked: np.ndarray) -> None:
    """Commit the asked cells (``bool [R, C]``), failures as failures."""
    rows, columns = np.flatnonzero(asked.any(axis=1)), np.flatnonzero(asked.any(axis=0))
    if not len(rows):
        return
    asked = asked[np.ix_(rows, columns)]
    failing = kind.failing()[np.ix_(rows, columns)]
    names = [COLUMNS[index] for index in columns]
    failures = {(int(r), int(c)): "it fails" for r, c in np.argwhere(asked & failing)}
    cells = CellSelection(IDS, COLUMNS, kind.digests()).take(rows).select(names)
    valid = asked & ~failing
    values = {name: kind.column(rows, name) for i, name in enumerate(names) if valid[:, i].any()}
    table.commit(CellBlock(cells.row_ids, cells.columns, valid, failures, cells.inputs), values, {"seconds": 0.1})


def fill(kind: Kind, root: Path) -> None:
    """Commit whatever is empty, block by block."""
    table = kind.open(root)
    empty = table.state(CellSelection(IDS, COLUMNS, kind.digests())).empty()
    for start in range(0, ROWS, BLOCK):
        part = np.zeros_like(empty)
        part[start : start + BLOCK] = empty[start : start + BLOCK]
        commit(kind, table, part)


def wrong_cells(kind: Kind, root: Path, streamed: bool) -> list[str]:
    """Read every cell that counts as filled; those that are not right, in words."""
    table = kind.open(root)
    cells = CellSelection(IDS, COLUMNS, kind.digests())
    filled = table.state(cells).filled
    cells = replace(cells, wanted=filled.copy())
    if streamed:
        ref = TableRef(str(table.dir), table.fingerprint, cells)
        stream = SampleStream(StreamSpec(IDS, {"t": ref}, "run"))
        samples = {row: stream[row]["t"] for row in stream.live.tolist()}

        def read(row: int, column: int) -> Any:
            return _plain(samples[row][COLUMNS[column]])

        filled &= np.isin(np.arange(ROWS), stream.live)[:, None]
    else:
        found = table.read(cells)
        values = {name: each.to_pylist() if isinstance(each, pa.Array) else each for name, each in found.items()}

        def read(row: int, column: int) -> Any:
            return values[COLUMNS[column]][row]

    return [
        f"{kind.name}: row {row}, column {COLUMNS[column]!r}: {str(read(row, column))[:80]}"
        for row, column in np.argwhere(filled).tolist()
        if not kind.right(read(row, column), row, COLUMNS[column])
    ]


def _plain(value: Any) -> Any:
    """A streamed cell as Arrow's own Python objects."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray) and value.dtype != np.float16 and value.ndim <= 2:
        return value.tolist()
    return value


class StorageHouse(House):
    """A cache of one or two tables."""

    def __init__(self, folder: Path, generator: random.Random) -> None:
        super().__init__(folder, generator)
        names = generator.sample(sorted(TYPES), generator.choice((1, 1, 2)))
        self.streams = generator.random() < 0.5
        self.kinds = [Kind(name, generator.choice(("none", "row", "cell")), np.zeros(ROWS, np.int64)) for name in names]

    # ---- what may happen ----

    def begin(self) -> None:
        """Begin with a commit or with all of them."""
        self.some_fill() if self.generator.random() < 0.5 else self.some_commit()

    def act(self) -> None:
        """Do one thing at random."""
        actions: dict[Callable[[], None], int] = {
            self.some_commit: 26, self.some_fill: 18, self.some_read: 14, self.some_check: 10, self.rivals: 8,
            self.new_inputs: 4, self.retry: 4, self.sweep: 3, self.days_pass: 6, self.damage: 22,
        }  # fmt: skip
        self.generator.choices(list(actions), list(actions.values()))[0]()

    def some_commit(self) -> None:
        """Commit some cells."""
        self.run(self.commit_child())

    def some_fill(self) -> None:
        """Commit all empty cells."""
        self.run(self.struck("fill", self.filling, 70))

    def some_read(self, undisturbed: bool = False) -> None:
        """Read all filled cells and compare them."""
        streamed = self.generator.random() < 0.4
        reading = functools.partial(self.reading, streamed=streamed)
        self.run(self.child("stream" if streamed else "read", reading, 15, 0.02, undisturbed))

    def some_check(self) -> None:
        """Check the cache."""
        self.checked(self.check(self.generator.random() < 0.2))

    def rivals(self) -> None:
        """Commit in several processes at once."""
        both = [self.commit_child() for _ in range(self.generator.choice((2, 2, 3)))]
        if self.generator.random() < 0.4:
            both.append(self.check())
        self.run(*both)

    def new_inputs(self) -> None:
        """Change the inputs of a row."""
        kind = self.generator.choice(self.kinds)
        row = self.generator.randrange(ROWS)
        kind.generation[row] = self.generator.randrange(3)
        self.steps.append(f"{kind.name}: row {row} now of inputs {kind.generation[row]}")

    def retry(self) -> None:
        """Drop recorded failures."""

        def dropping(_send: Send) -> int:
            for kind in self.kinds:
                kind.open(self.cache).drop_failures(CellSelection(IDS, COLUMNS, kind.digests()))
            return 0

        self.run(self.struck("drop failures", dropping, 20))

    def sweep(self) -> None:
        """Leases and trash; nothing of these tables may go, if the note that they are in use could be left."""

        def sweeping(send: Send) -> int:
            cache = Cache.open(self.cache)
            used = cache.tables()  # but for one that cannot be read for the moment
            with cache.lease("run", used):
                noted = any((self.cache / "leases").glob("*.json"))
                for table in used if noted else []:
                    try:
                        cache.trash(table)
                    except UserError:
                        continue
                    send(("lost", f"{table.dir.name} moved to the trash while it is used"))
            cache.empty_trash(0)
            return 0

        self.run(self.struck("leases and trash", sweeping, 20))

    # ---- what a process does ----

    def struck(self, name: str, action: Callable[[Send], int], operations: int) -> Child:
        """A process that a fault may strike."""
        return self.child(name, action, operations, 0.02)

    def check(self, quick: bool = False) -> Child:
        """A check that a fault may strike."""
        options = ["--quick"] if quick else []
        action = command("check", "--cache", str(self.cache), *options)
        return self.struck(" ".join(["check", *options]), action, 30)

    def commit_child(self) -> Child:
        """A process that commits some cells."""
        kind, generator = self.generator.choice(self.kinds), self.generator
        rows = generator.sample(range(ROWS), generator.randint(1, 6))
        columns = generator.sample(range(len(COLUMNS)), generator.randint(1, len(COLUMNS)))
        asked = np.zeros((ROWS, len(COLUMNS)), bool)
        asked[np.ix_(rows, columns)] = True
        if generator.random() < 0.3:  # a block with gaps
            asked &= np.array([[generator.random() < 0.7 for _ in COLUMNS] for _ in range(ROWS)])

        def committing(send: Send) -> int:
            report_commits(send)
            commit(kind, kind.open(self.cache), asked)
            return 0

        return self.struck(f"commit {kind.name} rows {rows} columns {columns}", committing, 30)

    def filling(self, send: Send) -> int:
        """Commit all empty cells of all tables."""
        report_commits(send)
        for kind in self.kinds:
            fill(kind, self.cache)
        return 0

    def reading(self, send: Send, streamed: bool) -> int:
        """Wrong values where a checksum could tell. A refusal in one line is right where bytes were destroyed."""
        for kind in self.kinds:
            if wrong := wrong_cells(kind, self.cache, streamed):
                send(("wrong", wrong))
        return 0

    # ---- the end ----

    def finish(self) -> None:
        """Fill without faults, and compare every cell."""
        check = command("check", "--cache", str(self.cache))
        first = self.one(Child("run to the end", self.looking(self.filling)))
        if first.code != 0 and not self.damaged:
            self.human(f"the run does not end, though no file was damaged: {first.refusal or first.crash}")
        self.checked(Child("check", check))
        self.settled(self.one(Child("run, compare, check", self.looking(self.comparing, check))))

    def comparing(self, send: Send) -> int:
        """Fill, and compare every cell."""
        self.filling(send)
        self.reading(send, streamed=self.streams)
        for kind in self.kinds:
            state = kind.open(self.cache).state(CellSelection(IDS, COLUMNS, kind.digests()))
            if (state.filled != ~kind.failing()).any() or (state.failed != kind.failing()).any():
                send(("incomplete", f"{kind.name}: {state.counts()}"))
        return 0
