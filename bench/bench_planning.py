"""Planning at size: 1,000,000 images x 600 prompts, from a list of paths to what is empty and why.

The images are distinct empty files in 100 folders: they are looked up and stat'ed for real, as on every run. Their digests are
put into the memory beforehand (empty files would all hash alike, and a warm memory is what is measured). The table is half a
thousand commit records of real form over sparse payloads: 1 % of the cells are holes in every shard, 1 % of the images are
new, ten of the prompts too. The annotations are in memory already: reading a million images' own annotation file is the
dataset's business. Everything is built in a temporary folder and removed.

The first plan merges the records. The next ones, of which there are five, remember the counts. Each stands beside a bare
``os.stat`` of every path in the same process. With ``--peers N``, DVC and Snakemake look N files up
(:mod:`bench.planning_peers`).

    python -m bench.bench_planning [--json] [--rows N] [--columns N] [--peers N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.planning_peers import look_up
from bench.process_memory import peak_bytes
from bench.synthetic_table import fill_synthetically, synthetic_rows
from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.pipeline.inputs import image_source
from hoi_distill.pipeline.planning.plan import plan
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values, fingerprint_record
from hoi_distill.storage import file_digests, hashed_files
from hoi_distill.storage.cache import Cache

FOLDERS = 100
ROWS_PER_SHARD = 2048
NEW_PROMPTS = 10
HOLES, NEW_ROWS = 0.01, 0.01
ROUNDS = 5
TARGET_SECONDS, TARGET_RATIO, TARGET_BYTES = 3.5, 1.5, 2 << 30


class Prompts(Stage):
    """A table of image-text matching logits, as far as planning sees it."""

    name = "itm"
    output = ArrowOutput(pa.list_(pa.float16(), 2))

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)

    def parameters(self) -> dict[str, Any]:
        """A record that names no teacher."""
        return {"teacher": "none"}

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing: planning opens no stage."""

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Planning never calls this."""
        raise NotImplementedError


def paths_of(root: Path, rows: int) -> list[str]:
    """Paths of images in FOLDERS folders."""
    return [f"{root}/images/{i % FOLDERS:03d}/{i:09d}.jpg" for i in range(rows)]


def prompts_of(columns: int) -> list[str]:
    """Different prompts."""
    return [f"a photo of a person doing the thing number {i}" for i in range(columns)]


def build(root: Path, rows: int, columns: int) -> None:
    """The images, the warm memory and the table."""
    paths = paths_of(root, rows)
    ids = synthetic_rows(rows)
    cache = Cache.open(root / "cache")
    with cache.memory._connect() as connection, ThreadPoolExecutor(1) as pool:
        for number in range(FOLDERS):
            folder = f"{root}/images/{number:03d}"
            os.makedirs(folder)
            own = paths[number::FOLDERS]
            for path in own:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            names = [path.rpartition("/")[2] for path in own]
            entries = np.zeros(len(names), hashed_files.ENTRY)
            entries.view("<i8").reshape(-1, 6)[:, :4] = hashed_files.stamps_in(
                hashed_files.Folder(folder, np.arange(len(names)), names), hashed_files.Listings(), pool
            )
            entries["digest"] = ids[number::FOLDERS]
            file_digests._remember(connection, folder, names, entries)
    stage = Prompts(prompts_of(columns))
    table = cache.table(stage.name, fingerprint_record(stage), stage.output.describe(), stage.output.type)
    old_rows = ids[: int(rows * (1 - NEW_ROWS))]
    fill_synthetically(table, old_rows, stage.columns[:-NEW_PROMPTS], ROWS_PER_SHARD, hole=HOLES)


def measure(root: Path, rows: int, columns: int) -> dict[str, Any]:
    """Plan in this process; CPU seconds by step, and this process's peak resident memory."""
    paths = paths_of(root, rows)
    nothing, boxes = np.zeros(0, np.int16), np.zeros((0, 4), np.float32)
    side = np.full(rows, 640, np.int32)
    images = Annotations(
        "synthetic", "train", None, np.array([path[-13:] for path in paths]), paths, side, side,
        np.zeros(rows + 1, np.int64), boxes, boxes, nothing, nothing, nothing,
    )  # fmt: skip
    cache = Cache.open(root / "cache")
    stage = Prompts(prompts_of(columns))
    node = Node("itm", stage, ("train",), ROWS_PER_SHARD)
    before = peak_bytes()
    times = []
    for _ in range(1 + ROUNDS):
        started, wall = time.process_time(), time.perf_counter()
        for path in paths:
            os.stat(path)
        stats = time.process_time() - started
        started, wall = time.process_time(), time.perf_counter()
        _, source = image_source({"train": images}, cache.memory)
        looked_up = time.process_time()
        table_plan = plan({"itm": node}, {"images": source}, cache)["itm"]
        ended = time.process_time()
        times.append((ended - started, looked_up - started, ended - looked_up, stats, time.perf_counter() - wall))
    cpu, digests, cells, stats, seconds = np.median(times[1:], axis=0).tolist()
    return {
        "rows": rows,
        "columns": columns,
        "records": len(list((root / "cache/tables").glob("*/commits/*.commit"))),
        "cpu_seconds": round(cpu, 2),
        "cpu_seconds_digests_and_stats": round(digests, 2),
        "cpu_seconds_cells": round(cells, 2),
        "cpu_seconds_bare_stats": round(stats, 2),
        "over_bare_stats": round(float(np.median([each[0] / each[3] for each in times[1:]])), 2),
        "cpu_seconds_first_plan": round(times[0][0], 2),
        "seconds": round(seconds, 2),
        "peak_rss_bytes": peak_bytes(),
        "peak_rss_bytes_before_planning": before,
        "counts": table_plan.counts,
        "reasons": {reason.text: reason.cells for reason in table_plan.reasons},
        "target_cpu_seconds": TARGET_SECONDS,
        "target_over_bare_stats": TARGET_RATIO,
        "target_bytes": TARGET_BYTES,
    }


def main() -> None:
    """Build, then measure in a process of its own, whose peak memory is planning's alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=600)
    parser.add_argument("--peers", type=int, metavar="N", help="look N files up with DVC and Snakemake too")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--built", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.built:
        print(json.dumps(measure(options.built, options.rows, options.columns)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-planning-") as folder:
        build(Path(folder), options.rows, options.columns)
        command = [sys.executable, "-m", "bench.bench_planning", "--built", folder]
        command += ["--rows", str(options.rows), "--columns", str(options.columns)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if options.peers:
        result["peers"] = [row._asdict() for row in look_up(options.peers)]
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{result['rows']:,} rows x {result['columns']} columns, {result['records']} records: planned in "
        f"{result['cpu_seconds']} CPU s (paths, stats and digests {result['cpu_seconds_digests_and_stats']}, cells "
        f"{result['cpu_seconds_cells']}; the first plan {result['cpu_seconds_first_plan']}), {result['over_bare_stats']} of the "
        f"stats alone ({result['cpu_seconds_bare_stats']}), peak {result['peak_rss_bytes'] / 2**30:.2f} GiB; target "
        f"{TARGET_SECONDS} s, {TARGET_RATIO} of the stats, {TARGET_BYTES / 2**30:.0f} GiB"
    )
    for peer in result.get("peers", ()):
        took = "absent" if peer["cpu_seconds"] is None else f"{peer['cpu_seconds']} CPU s"
        print(f"{peer['name']}, {peer['files']:,} files: {took}; {peer['remark']}")


if __name__ == "__main__":
    main()
