"""What reading a batch costs, in CPU seconds: maps from a cold and a warm disk, 600 scores a row, the order of an epoch.

Maps are 1,024 x 24 x 24 float16, drawn in random order in batches of 32 and stacked. Beside the stream: one raw file through
``numpy.memmap`` with the kernel's readahead (the limit), a ``.npy`` per image, LMDB with pickled arrays, ``torch.save`` per
image. Cold means that the kernel was told to drop the files (``POSIX_FADV_DONTNEED`` after ``fsync``); the bytes that the
disk then read are in ``bytes_over_values``. Scores are 600 x 2 float16 a row, in 12 and in 700 shards of 64 rows. ``gathered``
is the stream where the rows do not fit into ``ROWS_IN_MEMORY``. A cold pass reads every row once. All are read through the same
DataLoader, in turn, in one process. Everything is built in a temporary folder (3 GB) and removed.

    python -m bench.bench_reading [--json] [--maps N] [--rounds N] [--only maps|scores|order]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from hoi_distill.storage import numbers, sampling
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.sampling import epoch_order
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.shards.payload import forget_shards
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef, stack

SHAPE, BATCH, ROWS_PER_SHARD = (1024, 24, 24), 32, 64
PROMPTS = tuple(f"a photo of a person doing the thing number {index}" for index in range(600))
LOGITS = pa.list_(pa.float16(), 2)
COLD_BATCHES = 6
SHARDS = (12, 700)
Reader = Callable[[int], np.ndarray]


class Rows:
    """Arrays by row, for a DataLoader."""

    def __init__(self, count: int, read: Reader) -> None:
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> np.ndarray:
        return self.read(row)


class Streamed(Rows):
    """One table's cells by row, through a sample stream."""

    def __init__(self, stream: SampleStream, value_of: Callable[[Mapping[str, Any]], np.ndarray], table: str) -> None:
        self.stream, self.value_of, self.table = stream, value_of, table

    def __len__(self) -> int:
        return len(self.stream)

    def __getitems__(self, rows: Sequence[int]) -> list[np.ndarray]:
        """The cells of a batch."""
        return [self.value_of(sample[self.table]) for sample in self.stream.__getitems__(rows)]


def row_ids(count: int) -> np.ndarray:
    """``V16 [count]`` distinct row ids."""
    return as_rows([digest_bytes(b"%d" % index) for index in range(count)])


def stream_of(folder: Path, name: str, ids: np.ndarray, columns: tuple[str, ...]) -> SampleStream:
    """A stream of one table that was filled before."""
    (table,) = (folder / "cache" / "tables").glob(f"{name}-*")
    fingerprint = json.loads((table / "table.json").read_text())["fingerprint"]
    ref = TableRef(str(table), fingerprint, CellSelection(ids, columns))
    return SampleStream(StreamSpec(ids, {name: ref}, "make teacher-cache"))


def write_maps(folder: Path, count: int) -> np.ndarray:
    """The same maps in every form; returns their row ids."""
    ids, random = row_ids(count), np.random.default_rng(0)
    output = {"format": "lmdb", "shape": list(SHAPE), "codec": "fp16"}
    table = Cache.open(folder / "cache").table("maps", {"stage": "maps"}, output, None)
    for name in ("npy", "saved"):
        (folder / name).mkdir()
    pickled = lmdb.open(str(folder / "pickled.lmdb"), subdir=False, lock=False, sync=False, map_size=count * 1_300_000)
    with open(folder / "maps.raw", "wb") as raw, pickled:
        for start in range(0, count, ROWS_PER_SHARD):
            part = ids[start : start + ROWS_PER_SHARD]
            values = random.standard_normal((len(part), *SHAPE), np.float32).astype(np.float16)
            raw.write(values.tobytes())
            table.commit(CellBlock(part, ("original",), np.ones((len(part), 1), bool)), {"original": values})
            with pickled.begin(write=True) as transaction:
                for row, value in enumerate(values, start):
                    transaction.put(b"%08d" % row, pickle.dumps(value, protocol=5))
                    np.save(folder / "npy" / f"{row}.npy", value)
                    torch.save(torch.from_numpy(value.copy()), folder / "saved" / f"{row}.pt")
    return ids


def map_readers(folder: Path, ids: np.ndarray) -> dict[str, Rows]:
    """Every form of the maps, opened anew."""
    forget_shards()
    count = len(ids)
    raw = np.memmap(folder / "maps.raw", np.float16, "r", shape=(count, *SHAPE))
    read = lmdb.open(str(folder / "pickled.lmdb"), subdir=False, readonly=True, lock=False).begin(buffers=True)
    return {
        "memmap": Rows(count, raw.__getitem__),
        "stream": Streamed(stream_of(folder, "maps", ids, ("original",)), lambda cells: cells["original"], "maps"),
        "npy_per_image": Rows(count, lambda row: np.load(folder / "npy" / f"{row}.npy")),
        "lmdb_pickle": Rows(count, lambda row: pickle.loads(read.get(b"%08d" % row))),
        "torch_save": Rows(count, lambda row: torch.load(folder / "saved" / f"{row}.pt", weights_only=True).numpy()),
    }


def cpu_milliseconds(rows: Rows, order: Sequence[int]) -> float:
    """CPU milliseconds a row, of rows read in this order and stacked in batches."""
    batches = [list(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
    loader: Iterable[Any] = DataLoader(rows, batch_sampler=batches, collate_fn=stack)  # type: ignore[arg-type]
    started, count = time.process_time(), 0
    for batch in loader:
        count += len(batch)
    return (time.process_time() - started) / count * 1e3


def bytes_read() -> int:
    """What this process has made the disk read."""
    return int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])


def drop(folder: Path) -> None:
    """Let the kernel forget the contents of every file below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            number = os.open(path, os.O_RDONLY)
            os.fsync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(number)


def over(measured: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Medians, and the median of each round's ratio to ``memmap``."""
    limit = measured["memmap"]
    return {
        name: {
            "cpu_ms": statistics.median(values),
            "over_memmap": statistics.median(value / bare for value, bare in zip(values, limit, strict=True)),
        }
        for name, values in measured.items()
    }


def maps(folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Cold and warm maps in every form."""
    ids = write_maps(folder, count)
    readers = map_readers(folder, ids)
    expected = [readers["memmap"].read(row) for row in range(0, count, 37)]
    for name, rows in readers.items():
        loader: Any = DataLoader(rows, batch_sampler=[list(range(0, count, 37))], collate_fn=stack)  # type: ignore[arg-type]
        if not torch.equal(next(iter(loader)), stack(expected)):
            raise SystemExit(f"{name}: other bytes")
    cold: dict[str, list[float]] = {name: [] for name in readers}
    waste: dict[str, list[float]] = {name: [] for name in readers}
    wall: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        order = epoch_order(1, number, count)[: COLD_BATCHES * BATCH].tolist()
        for name in rotated(list(readers), number):
            del readers
            gc.collect()
            readers = map_readers(folder, ids)
            drop(folder)
            before, started = bytes_read(), time.perf_counter()
            cold[name].append(cpu_milliseconds(readers[name], order))
            wall[name].append((time.perf_counter() - started) / len(order) * 1e3)
            waste[name].append((bytes_read() - before) / len(order) / (2 * np.prod(SHAPE)))
    warm: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        order = epoch_order(2, number, count).tolist()
        for name in rotated(list(readers), number):
            spent = cpu_milliseconds(readers[name], order)
            if number:  # the first round fills the page cache
                warm[name].append(spent)
    result: dict[str, Any] = {"count": count, "cold": over(cold), "warm": over(warm)}
    for name, entry in result["cold"].items():
        entry["wall_ms"] = statistics.median(wall[name])
        entry["bytes_over_values"] = statistics.median(waste[name])
    return result


def rotated(names: list[str], number: int) -> list[str]:
    """The names, each round beginning with another one."""
    return names[number % len(names) :] + names[: number % len(names)]


def write_scores(folder: Path, shards: int) -> None:
    """600 scores a row, as a file of rows and as a table of so many shards."""
    count = shards * ROWS_PER_SHARD
    ids, random = row_ids(count), np.random.default_rng(0)
    table = Cache.open(folder / "cache").table(
        "itm", {"stage": "itm"}, {"format": "arrow", "type": str(LOGITS)}, LOGITS
    )
    with open(folder / "scores.raw", "wb") as raw:
        for start in range(0, count, ROWS_PER_SHARD):
            part = ids[start : start + ROWS_PER_SHARD]
            values = random.standard_normal((len(PROMPTS), len(part), 2), np.float32).astype(np.float16)
            raw.write(values.transpose(1, 0, 2).tobytes())
            columns = {
                prompt: pa.FixedSizeListArray.from_arrays(pa.array(value.ravel()), type=LOGITS)
                for prompt, value in zip(PROMPTS, values, strict=True)
            }
            table.commit(CellBlock(part, PROMPTS, np.ones((len(part), len(PROMPTS)), bool)), columns)


def score_reader(folder: Path, name: str, count: int) -> Rows:
    """One of ``memmap``, ``stream`` and ``gathered``, opened anew."""
    if name == "memmap":
        return Rows(
            count, np.memmap(folder / "scores.raw", np.float16, "r", shape=(count, len(PROMPTS), 2)).__getitem__
        )
    room, numbers.ROWS_IN_MEMORY = numbers.ROWS_IN_MEMORY, 0 if name == "gathered" else numbers.ROWS_IN_MEMORY
    try:
        stream = stream_of(folder, "itm", row_ids(count), PROMPTS)
    finally:
        numbers.ROWS_IN_MEMORY = room
    return Streamed(stream, lambda cells: cells.array, "itm")  # type: ignore[attr-defined]


def scores(folder: Path, shards: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of 600 scores a row, cold and warm."""
    count = shards * ROWS_PER_SHARD
    readers = {name: score_reader(folder, name, count) for name in ("memmap", "stream", "gathered")}
    for row in range(0, count, 7):
        bare, *others = (loaded(reader, row) for reader in readers.values())
        if not all(np.array_equal(other, bare) for other in others):
            raise SystemExit("the stream's scores differ from the file's")
    warm: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        order = epoch_order(3, number, count)[:6400].tolist()
        for name in rotated(list(readers), number):
            spent = cpu_milliseconds(readers[name], order)
            if number:  # the first round turns what is not turned yet
                warm[name].append(spent)
    del readers
    cold: dict[str, list[float]] = {name: [] for name in warm}
    for number in range(rounds):
        order = epoch_order(4, number, count).tolist()
        for name in rotated(list(cold), number):
            gc.collect()  # what is mapped cannot be dropped
            reader = score_reader(folder, name, count)
            drop(folder)
            cold[name].append(cpu_milliseconds(reader, order))
            del reader
    return {"cold": over(cold), "warm": over(warm)}


def loaded(reader: Rows, row: int) -> np.ndarray:
    """One row, as a loader gets it."""
    (value,) = reader.__getitems__([row]) if isinstance(reader, Streamed) else [reader[row]]
    return value


def order_of_an_epoch(rounds: int) -> dict[str, Any]:
    """CPU milliseconds of a step's look at its epoch's order: of the first step, and of the others."""
    results = {}
    for count in (37_633, 1_000_000, 10_000_000):
        first, others = [], []
        for number in range(rounds):
            sampling.epoch_order.cache_clear()
            started = time.process_time()
            epoch_order(0, number, count)
            first.append((time.process_time() - started) * 1e3)
            started = time.process_time()
            for _ in range(100):
                epoch_order(0, number, count)
            others.append((time.process_time() - started) * 10)
        results[str(count)] = {"first_step_ms": statistics.median(first), "other_steps_ms": statistics.median(others)}
    return results


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--maps", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("maps", "scores", "order"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hoi-distill-bench-") as name:
        os.environ["XDG_CACHE_HOME"] = name
        folder = Path(name)
        if arguments.only in (None, "maps"):
            (folder / "maps").mkdir()
            result["maps"] = maps(folder / "maps", arguments.maps, arguments.rounds)
        if arguments.only in (None, "scores"):
            for shards in SHARDS:
                (folder / f"scores-{shards}").mkdir()
                write_scores(folder / f"scores-{shards}", shards)
                result[f"scores_{shards}_shards"] = scores(folder / f"scores-{shards}", shards, arguments.rounds)
    if arguments.only in (None, "order"):
        result["epoch_order"] = order_of_an_epoch(3)
    print(json.dumps({"bench": "reading", **result}, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
