"""Random faults between a cache and its object store: whatever happens, nothing committed is lost, doubled or silently wrong.

In a sequence two or three drivers commit the same blocks to one table in an order of their own, through a proxy that refuses
requests, cuts them off, tears uploads, and loses answers after the server has done what was asked. A driver dies at a request:
of the threads here nothing more is sent then, as of a killed process (``tests/faults`` kills real ones). A check and a reader run
beside them. Then the faults end: a last driver fills what is missing, and the book of what was said to be committed is compared.

    python -m bench.soak_objects [--sequences N] [--seed S] [--first K]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from bench.s3_proxy import FATES, Fate, Request, proxy
from bench.s3_server import BUCKET, environment, s3_server
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.check import check_table
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import StorageError
from hoi_distill.storage.files.bucket import Bucket
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.table import Table

COLUMNS = ("a", "b")
ROWS = 8
AT_ONCE = 6
PATIENCE = 20.0
_turn = threading.local()


class Killed(BaseException):
    """The driver of this thread is dead."""


def _mortal(real: Any) -> Any:
    def ask(self: Bucket, key: str, action: Any, patience: float = PATIENCE) -> Any:
        left = getattr(_turn, "left", None)
        if left is None:
            return real(self, key, action, patience)
        _turn.left = left - 1
        if left <= 0:
            if left == 0 and _turn.after:
                real(self, key, action, patience)
            raise Killed
        return real(self, key, action, patience)

    return ask


@dataclass
class Book:
    """What drivers said, and what went wrong.

    Attributes:
        created: by block, how many drivers said that theirs was the first.
        committed: blocks that somebody said are durable.
        wrong: lines.
        met: how many faults of each kind there were.
    """

    created: Counter[int] = field(default_factory=Counter)
    committed: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)


class Sequence:
    """One cache, its drivers and its faults.

    Args:
        seed: of the soak.
        number: the sequence's.
    """

    def __init__(self, seed: int, number: int) -> None:
        self.chance = random.Random(f"{seed} objects {number}")
        self.root = f"s3://{BUCKET}/sequence-{seed}-{number}-"
        self.kind = self.chance.choice(["arrow", "lmdb"])
        self.blocks = self.chance.randint(3, 6)
        self.rate = self.chance.choice([0.05, 0.15, 0.3])
        self.book, self.calm, self._lock = Book(), True, threading.Lock()

    def fate(self, _: Request) -> Fate:
        """What becomes of a request of this cache."""
        with self._lock:
            if self.calm or self.chance.random() >= self.rate:
                return "pass"
            fate = self.chance.choice(FATES)
            self.book.met[fate] += 1
            return fate

    def live(self) -> Book:
        """Live it."""
        folder = str(self.table().dir)
        self.calm = False
        for _ in range(self.chance.randint(1, 2)):
            drivers = [self.driver(folder, number) for number in range(self.chance.randint(2, 3))]
            threads = [threading.Thread(target=self.guarded, args=(one,)) for one in (*drivers, self.watcher(folder))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.calm = True
        self.guarded(lambda: self.end(folder))
        return self.book

    def guarded(self, action: Any) -> None:
        """An error that is no line for a user is a fault of ours."""
        try:
            action()
        except Killed:
            self.book.met["killed"] += 1
        except Exception:  # noqa: BLE001  # whatever it is, it is found
            self.book.wrong.append(f"error {traceback.format_exc()}")

    def table(self) -> Table:
        """The table, made where it is missing."""
        if self.kind == "arrow":
            return Cache.open(self.root).table("cells", {}, {"format": "arrow", "type": "int64"}, pa.int64())
        return Cache.open(self.root).table("cells", {}, {"format": "lmdb", "shape": [30, 10], "codec": "fp16"}, None)

    def rows(self, block: int) -> np.ndarray:
        """``V16 [R]``."""
        return as_rows([digest_bytes(b"%d %d" % (block, row)) for row in range(ROWS)])

    def values(self, driver: int) -> dict[str, Any]:
        """What a driver computes: each gets other values, of which the first ones have to stand."""
        if self.kind == "arrow":
            return {column: pa.array([driver] * ROWS) for column in COLUMNS}
        return dict.fromkeys(COLUMNS, np.full((ROWS, 30, 10), driver, np.float32))

    def driver(self, folder: str, number: int) -> Any:
        """What a driver does until it is done or dead."""
        order = self.chance.sample(range(self.blocks), self.blocks)
        left = self.chance.choice([None, self.chance.randint(0, 40)])
        after, own = self.chance.random() < 0.5, self.chance.randint(0, 1) * number

        def drive() -> None:
            _turn.left, _turn.after = left, after
            for block in order:
                try:
                    done = Table(folder).commit(
                        CellBlock(self.rows(block), COLUMNS, np.ones((ROWS, 2), bool)), self.values(own)
                    )
                except StorageError:
                    self.book.met["away"] += 1
                    continue
                with self._lock:
                    self.book.committed.add(block)
                    self.book.created[block] += done.created

        return drive

    def watcher(self, folder: str) -> Any:
        """A check, which has nothing to find, and a reader, for whom the first value that it sees has to stand."""
        deep = self.chance.random() < 0.5

        def watch() -> None:
            try:
                if bad := check_table(Table(folder), deep=deep):
                    self.book.wrong.append(f"silent: a check found {bad[0].line()}")
                for block in range(self.blocks):
                    self.first.setdefault(block, self.seen(Table(folder), block))
            except StorageError:
                self.book.met["away"] += 1

        self.first: dict[int, int | None] = getattr(self, "first", {})
        return watch

    def seen(self, table: Table, block: int) -> int | None:
        """The driver whose values a block holds, None where it is empty; -1 where they are mixed or wrong."""
        cells = CellSelection(self.rows(block), COLUMNS)
        filled = table.state(cells).filled
        if not filled.any():
            return None
        read = table.read(cells) if filled.all() else None
        numbers = (
            {-1} if read is None else {int(value) for each in read.values() for value in np.unique(np.asarray(each))}
        )
        return numbers.pop() if len(numbers) == 1 else -1

    def end(self, folder: str) -> None:
        """Without faults: what is there, then what a last driver makes of it."""
        table, wrong = Table(folder), self.book.wrong
        for block in sorted(self.book.committed):
            if self.seen(table, block) is None:
                wrong.append(f"lost: block {block}")
        for block in range(self.blocks):
            self.book.committed.add(block)
            self.book.created[block] += table.commit(
                CellBlock(self.rows(block), COLUMNS, np.ones((ROWS, 2), bool)), self.values(9)
            ).created
            holds = self.seen(Table(folder), block)
            before = getattr(self, "first", {}).get(block)
            if holds is None or holds < 0 or (before is not None and holds != before):
                wrong.append(f"silent: block {block} holds {holds}, of which {before} was seen before")
        names = [record.name for record in Table(folder).records()]
        if len(names) != self.blocks or any(count > 1 for count in self.book.created.values()):
            wrong.append(f"doubled: {self.blocks} blocks, {len(names)} records, created {dict(self.book.created)}")
        if bad := check_table(Table(folder)):
            wrong.append(f"silent: a check found {bad[0].line()}")

    @override
    def __repr__(self) -> str:
        return f"{self.root} ({self.kind}, {self.blocks} blocks, {self.rate} of the requests)"


def soak(seed: int, sequences: int, first: int = 0) -> dict[str, Any]:
    """Live sequences, some at once; each that finds something is printed with its number.

    Returns:
        Counts: ``sequences``, ``lost``, ``doubled``, ``silent``, ``error``, ``met`` (faults by kind), ``seconds``.
    """
    living: dict[str, Sequence] = {}
    total, found = Counter[str](), Counter[str]()

    def act(request: Request) -> Fate:
        # Objects are removed by a request that names them in its body: it meets the fate of any sequence.
        known = list(living.items())
        owner = next((each for key, each in known if key in request.path or request.method == "POST"), None)
        return "pass" if owner is None else owner.fate(request)

    def one(number: int) -> tuple[int, Book]:
        sequence = Sequence(seed, number)
        key = sequence.root.rpartition("/")[2]
        living[key] = sequence
        try:
            return number, sequence.live()
        finally:
            del living[key]

    began, real = time.monotonic(), Bucket._ask
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "server")
        place.mkdir()
        with s3_server(place) as endpoint, proxy(endpoint, act) as between, ThreadPoolExecutor(AT_ONCE) as pool:
            os.environ.update(environment(between, Path(folder, "copies")))
            Bucket._ask = _mortal(real)  # type: ignore[method-assign]
            try:
                for number, book in pool.map(one, range(first, first + sequences)):
                    total += book.met
                    for line in book.wrong:
                        found[line.split(":")[0].split(" ")[0]] += 1
                        print(f"seed {seed}, sequence {number}: {line}", flush=True)
            finally:
                Bucket._ask = real  # type: ignore[method-assign]
    counts = {name: found[name] for name in ("lost", "doubled", "silent", "error")}
    return {
        "seed": seed,
        "sequences": sequences,
        **counts,
        "met": dict(total),
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first sequence")
    given = parser.parse_args()
    print(json.dumps(soak(given.seed, given.sequences, given.first)))


if __name__ == "__main__":
    main()
