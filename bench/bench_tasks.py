"""What tasks and commits cost beside the values: CPU time in small and large tables, with stages that answer at once.

* A task reads a table above and commits a block, in tables of few and of many shards. All but the blocks that are measured
  are records over sparse payloads (:mod:`bench.synthetic_table`). The sizes take turns, task by task.
* The driver makes and packs all tasks of one and of ten million rows. Its peak resident memory is taken
  before the other measurements, with the smaller number first.
* A trainer opens a sample stream of as many rows, takes an epoch's order and a loader's batches. The payloads are sparse, so it
  reads no cell. It is a process of its own, whose peak resident memory is taken.
* A commit writes feature maps of 1,024 x 24 x 24 fp16; beside it stands what hashing them twice (each value for what lies
  below it, the file for its name) and writing them once takes.

    python -m bench.bench_tasks [--json] [--shards N ...] [--tasks N] [--rows N ...] [--maps N]
                                [--only map|driver|trainer|task ...]
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from bench.process_memory import peak_bytes
from bench.synthetic_table import fill_synthetically, synthetic_rows
from hoi_distill.pipeline.filling.run import TaskMaker
from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.pipeline.inputs import Source
from hoi_distill.pipeline.planning.plan import plan
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values, fingerprint_record
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.files import stamps
from hoi_distill.storage.sampling import Epoch
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef
from hoi_distill.storage.table import Table
from hoi_distill.workers.executors.ray_actor import pack
from hoi_distill.workers.task import Task
from hoi_distill.workers.worker import Worker

ROWS_PER_SHARD = 16
DRIVER_SHARD = 512
MAP = (1024, 24, 24)


class Instant(Stage):
    """Numbers that cost nothing."""

    name = "above"
    decodes = False
    output = ArrowOutput(pa.int64())
    columns = tuple(f"number {index}" for index in range(8))

    @override
    def parameters(self) -> dict[str, Any]:
        return {}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        return dict.fromkeys(columns, pa.array(range(len(batch.row_ids))))


class Below(Instant):
    """The same, from the table above."""

    name = "below"
    inputs = ("above",)


class Names(Sequence[str]):
    """Paths of any number of images, without holding them."""

    def __init__(self, count: int) -> None:
        self._count = count

    @override
    def __len__(self) -> int:
        return self._count

    @override
    def __getitem__(self, index: Any) -> Any:
        return f"images/{index:09d}.jpg"


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, and its answer."""
    started = time.process_time()
    answer = run()
    return time.process_time() - started, answer


def source_of(rows: np.ndarray) -> Source:
    """These rows as images of one split."""
    names: Any = Names(len(rows))
    return Source(rows, names, names, {"train": np.arange(len(rows))})


def table_of(cache: Cache, stage: Stage) -> Table:
    """The stage's table."""
    return cache.table(
        stage.name, fingerprint_record(stage), stage.output.describe(), getattr(stage.output, "type", None)
    )


def tasks_of(root: Path, shards: int, count: int) -> Iterator[Task]:
    """The tasks that two tables of so many shards lack: ``count`` blocks of the lower one, whose upper cells can be read."""
    cache, above, below = Cache.open(root), Instant(), Below()
    rows = synthetic_rows(shards * ROWS_PER_SHARD)
    real = count * ROWS_PER_SHARD
    upper = table_of(cache, above)
    for start in range(0, real, ROWS_PER_SHARD):
        block = CellBlock(rows[start : start + ROWS_PER_SHARD], above.columns, np.ones((ROWS_PER_SHARD, 8), bool))
        upper.commit(block, dict.fromkeys(above.columns, pa.array(range(ROWS_PER_SHARD))))
    fill_synthetically(upper, rows[real:], above.columns, ROWS_PER_SHARD)
    nodes = {stage.name: Node(stage.name, stage, ("train",), ROWS_PER_SHARD) for stage in (above, below)}
    sources = {"images": source_of(rows)}
    inputs = plan(nodes, sources, cache)["below"].cells.inputs
    assert inputs is not None
    fill_synthetically(table_of(cache, below), rows[real:], below.columns, ROWS_PER_SHARD, inputs=inputs[real:])
    return iter(TaskMaker(plan(nodes, sources, cache), sources, root).workload(["below"]))


def measure_tasks(folder: Path, sizes: Sequence[int], count: int) -> dict[str, Any]:
    """Milliseconds of a task by number of shards: made, computed (values above read), committed."""
    tasks = {shards: tasks_of(folder / f"cache-{shards}", shards, count) for shards in sizes}
    workers = {shards: Worker(readers=1) for shards in sizes}
    spent: dict[int, list[list[float]]] = {shards: [[], [], []] for shards in sizes}
    gc.collect()
    gc.freeze()
    for _ in range(count):
        for shards in sizes:
            made, task = cpu_seconds(lambda: next(tasks[shards]))  # noqa: B023 - called at once
            computed, result = cpu_seconds(lambda: workers[shards].compute(task))  # noqa: B023 - called at once
            committed, _ = cpu_seconds(lambda: workers[shards].commit(result))  # noqa: B023 - called at once
            for seconds, kept in zip((made, computed, committed), spent[shards], strict=True):
                kept.append(seconds)
    for worker in workers.values():
        worker.close()
    medians = {shards: [1000 * statistics.median(part) for part in parts] for shards, parts in spent.items()}
    totals = [sum(parts) for parts in medians.values()]
    return {
        "shards": list(sizes),
        "made_ms": [round(parts[0], 3) for parts in medians.values()],
        "computed_ms": [round(parts[1], 3) for parts in medians.values()],
        "committed_ms": [round(parts[2], 3) for parts in medians.values()],
        "growth": round(totals[-1] / totals[0], 3),
    }


def measure_driver(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Milliseconds to make and to pack a task of an empty table, by number of rows, and a parcel's bytes."""
    each, peaks, length = [], [], 0
    for count in sizes:
        sources = {"images": source_of(synthetic_rows(count))}
        nodes = {"above": Node("above", Instant(), ("train",), DRIVER_SHARD)}
        plans = plan(nodes, sources, Cache.open(folder / "empty"))

        def make_all() -> int:
            workload = TaskMaker(plans, sources, folder / "empty").workload(["above"])  # noqa: B023 - called at once
            return max(len(pack(task, dict(enumerate(workload.targets)))) for task in workload)

        seconds, length = cpu_seconds(make_all)
        each.append(round(1000 * seconds / -(-count // DRIVER_SHARD), 3))
        peaks.append(peak_bytes())
    return {
        "rows": list(sizes),
        "rows_of_a_task": DRIVER_SHARD,
        "task_ms": each,
        "parcel_bytes": length,
        "peak_rss_bytes": peaks,
    }


def measure_trainers(folder: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Peak resident memory of a trainer, in a process of its own, by number of rows."""
    peaks = []
    for count in sizes:
        root, stage = folder / f"trained-{count}", Instant()
        fill_synthetically(table_of(Cache.open(root), stage), synthetic_rows(count), stage.columns[:1], DRIVER_SHARD)
        command = [sys.executable, "-m", "bench.bench_tasks", "--trainer", str(root), "--rows", str(count)]
        peaks.append(int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    return {"rows": list(sizes), "peak_rss_bytes": peaks}


def train(root: Path, count: int) -> int:
    """What a trainer does before it reads a cell; this process's peak resident memory."""
    stage, ids = Instant(), synthetic_rows(count)
    table = table_of(Cache.open(root), stage)
    sparse = os.scandir(table.dir / "shards")
    stamps.vouch({entry.path: stamps.stamp_of(entry.stat()) for entry in sparse})  # they hold nothing to compare
    ref = TableRef(str(table.dir), table.fingerprint, CellSelection(ids, stage.columns[:1]))
    loader = SampleStream(StreamSpec(ids, {"above": ref}, "make teacher-cache")).loader(32, Epoch(0, 0))
    assert len(next(iter(loader.batch_sampler or ()))) == 32
    return peak_bytes()


def measure_maps(folder: Path, count: int) -> dict[str, Any]:
    """Milliseconds a map: of a commit, and of two digests and one write of the same bytes."""
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(count, *MAP)).astype(np.float16)
    table = Cache.open(folder / "maps").table("maps", {}, {"format": "lmdb", "shape": list(MAP), "codec": "fp16"}, None)

    def commit(number: int) -> None:
        block = CellBlock(synthetic_rows(count, seed=number), ("original",), np.ones((count, 1), bool))
        table.commit(block, {"original": maps})

    def bare(number: int) -> None:
        with open(folder / f"bare-{number}", "wb", buffering=0) as file:
            whole = hashlib.blake2b(digest_size=16)
            for each in maps:
                view = memoryview(each).cast("B")
                hashlib.blake2b(view, digest_size=8)
                whole.update(view)
                file.write(view)
            os.fsync(file.fileno())

    spent: dict[str, list[float]] = {"commit_ms": [], "hashed_twice_and_written_ms": []}
    for number in range(7):
        spent["commit_ms"].append(1000 * cpu_seconds(lambda: commit(number))[0] / count)  # noqa: B023 - called at once
        spent["hashed_twice_and_written_ms"].append(1000 * cpu_seconds(lambda: bare(number))[0] / count)  # noqa: B023
    return {"bytes": maps[0].nbytes, **{name: round(statistics.median(times), 2) for name, times in spent.items()}}


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--shards", type=int, nargs="+", default=[50, 5_000, 40_000])
    parser.add_argument("--tasks", type=int, default=40, help="tasks of each size")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--maps", type=int, default=16, help="maps of a commit")
    parser.add_argument("--only", nargs="+", choices=("map", "driver", "trainer", "task"), help="some parts alone")
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trainer:
        print(train(options.trainer, options.rows[0]))
        return
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "driver": lambda folder: measure_driver(folder, options.rows),
        "trainer": lambda folder: measure_trainers(folder, options.rows),
        "map": lambda folder: measure_maps(folder, options.maps),
        "task": lambda folder: measure_tasks(folder, options.shards, options.tasks),
    }
    with tempfile.TemporaryDirectory(prefix="bench-tasks-") as name:
        result = {part: run(Path(name)) for part, run in parts.items() if part in (options.only or parts)}
    print(json.dumps(result) if options.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
