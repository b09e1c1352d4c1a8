"""Planning at size: 1,000,000 pictures x 600 prompts, from a list of paths to what is empty and why.

The pictures are distinct empty files in 100 folders: they are looked up and stat'ed for real, as on every run. Their
digests are put into the memory beforehand (empty files would all hash alike, and a warm memory is what is measured).
The table is half a thousand commit records of real form over sparse payloads: 1 % of the cells are holes in every
shard, 1 % of the pictures are new, ten of the prompts too. The annotations are in memory already: reading a million
pictures' own annotation file is the dataset's business. Everything is built in a temporary folder and removed.

    python -m bench.bench_planning [--json] [--rows N] [--columns N]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.synthetic_table import fill_synthetically, synthetic_rows
from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.pipeline.inputs import image_source
from hoi_distill.pipeline.planning.plan import plan
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values, fingerprint_record
from hoi_distill.storage import file_digests
from hoi_distill.storage.cache import Cache

FOLDERS = 100
ROWS_PER_SHARD = 2048
NEW_PROMPTS = 10
HOLES, NEW_ROWS = 0.01, 0.01
TARGET_SECONDS, TARGET_BYTES = 10.0, 2 << 30


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
    """Paths of pictures in FOLDERS folders."""
    return [f"{root}/images/{i % FOLDERS:03d}/{i:09d}.jpg" for i in range(rows)]


def prompts_of(columns: int) -> list[str]:
    """Different prompts."""
    return [f"a photo of a person doing the thing number {i}" for i in range(columns)]


def build(root: Path, rows: int, columns: int) -> None:
    """The pictures, the warm memory and the table."""
    paths = paths_of(root, rows)
    ids = synthetic_rows(rows)
    cache = Cache.open(root / "cache")
    with cache.memory._connect() as connection:
        for number in range(FOLDERS):
            folder = f"{root}/images/{number:03d}"
            os.makedirs(folder)
            own = paths[number::FOLDERS]
            for path in own:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            names = [path.rpartition("/")[2] for path in own]
            entries = file_digests._stat(folder, names)
            entries["digest"] = ids[number::FOLDERS]
            file_digests._append(connection, folder, dict(zip(names, entries, strict=True)))
    stage = Prompts(prompts_of(columns))
    table = cache.table(stage.name, fingerprint_record(stage), stage.output.describe(), stage.output.type)
    old_rows = ids[: int(rows * (1 - NEW_ROWS))]
    fill_synthetically(table, old_rows, stage.columns[:-NEW_PROMPTS], ROWS_PER_SHARD, hole=HOLES)


def measure(root: Path, rows: int, columns: int) -> dict[str, Any]:
    """Plan once, in this process; seconds by step, and this process's peak resident memory."""
    paths = paths_of(root, rows)
    nothing, boxes = np.zeros(0, np.int16), np.zeros((0, 4), np.float32)
    side = np.full(rows, 640, np.int32)
    pictures = Annotations(
        "synthetic", "train", None, np.array([path[-13:] for path in paths]), paths, side, side,
        np.zeros(rows + 1, np.int64), boxes, boxes, nothing, nothing, nothing,
    )  # fmt: skip
    cache = Cache.open(root / "cache")
    stage = Prompts(prompts_of(columns))
    node = Node("itm", stage, ("train",), ROWS_PER_SHARD)
    before = peak_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    _, source = image_source({"train": pictures}, cache.memory)
    looked_up = time.perf_counter()
    table_plan = plan({"itm": node}, {"images": source}, cache)["itm"]
    ended = time.perf_counter()
    return {
        "rows": rows,
        "columns": columns,
        "records": len(list((root / "cache/tables").glob("*/commits/*.commit"))),
        "seconds": round(ended - started, 2),
        "seconds_digests_and_stats": round(looked_up - started, 2),
        "seconds_plan": round(ended - looked_up, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_rss_bytes": peak_bytes(),
        "peak_rss_bytes_before_planning": before,
        "counts": table_plan.counts,
        "reasons": {reason.text: reason.cells for reason in table_plan.reasons},
        "target_seconds": TARGET_SECONDS,
        "target_bytes": TARGET_BYTES,
    }


def peak_bytes() -> int:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Build, then measure in a process of its own, whose peak memory is planning's alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=600)
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
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{result['rows']:,} rows x {result['columns']} columns, {result['records']} records: planned in "
        f"{result['seconds']} s (paths, stats and digests {result['seconds_digests_and_stats']} s, cells "
        f"{result['seconds_plan']} s; CPU {result['cpu_seconds']} s), peak {result['peak_rss_bytes'] / 2**30:.2f} GiB; "
        f"target {TARGET_SECONDS:.0f} s, {TARGET_BYTES / 2**30:.0f} GiB"
    )


if __name__ == "__main__":
    main()
