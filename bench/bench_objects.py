"""The cache in an object store beside one on disk, and planning there at size; the store is SeaweedFS on this machine.

Filling: maps of two views by a teacher of BLIP-base's size with random weights, by the worker's whole path. Committing: blocks
of such maps alone. Warm: rows are read in random order from this machine's copies,
and from a ``numpy.memmap`` of the same values. First epoch: a machine that has no copies reads all rows in random order, and
verifies them. Beside it 8 threads download the same objects to files with obstore and nothing else. Both over the loopback,
where the CPUs bound them, and over a slow link, which does it then. Planning: a table of many rows, whose payloads are
nominal; requests are counted by a proxy. Rounds of both sides alternate.

    python -m bench.bench_objects [--json] [--images N] [--rows N] [--planned N ...] [--only PART ...]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.process_memory import peak_bytes
from bench.s3_proxy import Fate, Request, proxy
from bench.s3_server import BUCKET, environment, s3_server
from bench.slow_link import slow_link
from bench.synthetic_table import fill_synthetically, synthetic_rows
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.files.address import ObjectPath
from hoi_distill.storage.files.object_store import OBJECTS
from hoi_distill.storage.sampling import epoch_order
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef
from hoi_distill.storage.table import Table

SHAPE, VIEWS, BLOCK = (768, 24, 24), ("original", "flip"), 32
PARTS = ("filling", "reading", "planning")
TAUGHT_AT_ONCE = 8  # images of a task
ROUNDS = 3
LINK = 25e6  # bytes a second
SHARD_ROWS, PROMPTS = 2048, 10
OUTPUT = {"format": "lmdb", "shape": list(SHAPE), "codec": "fp16"}
LOGITS = pa.list_(pa.float16(), 2)


def measure(images: int, rows: int, planned: Sequence[int], only: Sequence[str]) -> dict[str, Any]:
    """All figures, or some parts.

    Args:
        images: how many a teacher looks at.
        rows: how many rows are committed and read.
        planned: how many a plan counts, each in turn.
        only: of :data:`PARTS`.
    """
    with tempfile.TemporaryDirectory(prefix="hoi-distill-objects-") as name:
        folder = Path(name)
        (folder / "server").mkdir()
        with s3_server(folder / "server") as endpoint:
            os.environ.update(environment(endpoint, folder / "copies"))
            result: dict[str, Any] = {}
            if "filling" in only:
                result |= filling(folder, images)
            if "reading" in only:
                result |= {"rows": rows, "bytes": rows * len(VIEWS) * int(np.prod(SHAPE)) * 2}
                result |= committing(folder, rows)
                result |= reading(folder, rows, endpoint)
            if "planning" in only:
                result["planning"] = {f"{count:,}": planning(folder, count, endpoint) for count in planned}
            return result


def filling(folder: Path, images: int) -> dict[str, Any]:
    """CPU seconds of a worker that computes and commits on disk and in the store, the same images in turn."""
    import torch

    from bench import bench_teacher_overhead as teacher
    from hoi_distill.stages.teacher.weights import Checkpoint

    torch.set_num_threads(1)
    teacher.save_teacher(folder / "teacher", ("a photo of a person",))
    (folder / "images").mkdir()
    paths = teacher.save_images(folder / "images", images)
    checkpoint = Checkpoint.find(folder / "teacher")
    stage = teacher.Features(teacher.Features.Config(checkpoint=checkpoint, columns=VIEWS, batch_size=4))
    stage.open("cpu", teacher.LOADED)
    roots = {"disk": str(folder / "taught"), "objects": f"s3://{BUCKET}/taught"}
    took: dict[str, list[float]] = {place: [] for place in roots}
    for start in range(0, images, TAUGHT_AT_ONCE):
        part = paths[start : start + TAUGHT_AT_ONCE]
        for place, root in roots.items():
            took[place].append(teacher.cpu_seconds(lambda: teacher.fill_cache(part, [stage], root)))  # noqa: B023 - at once
    ratios = [objects / disk for disk, objects in zip(took["disk"], took["objects"], strict=True)]
    return {
        "fill": {
            "images": images,
            "cpu_seconds": {place: round(sum(seconds), 2) for place, seconds in took.items()},
            "over_disk": round(sum(took["objects"]) / sum(took["disk"]), 3),
            "over_disk_of_tasks": [round(ratio, 3) for ratio in ratios],
        }
    }


def table_at(root: str | Path, name: str = "features") -> Table:
    """A table of maps, new or not."""
    return Cache.open(root).table(name, {"stage": name}, OUTPUT, None)


def committing(folder: Path, rows: int) -> dict[str, Any]:
    """CPU seconds of commits on disk and in the store, the same blocks in turn."""
    values = np.random.default_rng(0).random((BLOCK, *SHAPE), np.float32).astype(np.float16)
    ids, took = synthetic_rows(rows), {"disk": 0.0, "objects": 0.0}
    tables = {"disk": table_at(folder / "cache"), "objects": table_at(f"s3://{BUCKET}/cache")}
    for start in range(0, rows, BLOCK):
        part = ids[start : start + BLOCK]
        block = CellBlock(part, VIEWS, np.ones((len(part), len(VIEWS)), bool))
        for place, table in tables.items():
            begun = time.process_time()
            table.commit(block, dict.fromkeys(VIEWS, values[: len(part)]))
            took[place] += time.process_time() - begun
    return {
        "commit_cpu_seconds": {place: round(seconds, 2) for place, seconds in took.items()},
        "commit_more_ms_an_image": round(1000 * (took["objects"] - took["disk"]) / rows, 2),
    }


def reading(folder: Path, rows: int, endpoint: str) -> dict[str, Any]:
    """CPU seconds of a warm epoch, and seconds of a first one."""
    stream = open_stream(rows)
    plain = np.lib.format.open_memmap(folder / "plain.npy", "w+", np.float16, (rows, len(VIEWS), *SHAPE))
    for row in range(rows):
        plain[row] = list(stream[row]["features"].values())
    plain.flush()
    mapped, order = np.load(folder / "plain.npy", mmap_mode="r"), epoch_order(0, 0, rows).tolist()

    def by_stream() -> float:
        return cpu(lambda: [touch(value) for row in order for value in stream[row]["features"].values()])

    def by_map() -> float:
        return cpu(lambda: [touch(mapped[row, view]) for row in order for view in range(len(VIEWS))])

    by_stream(), by_map()
    warm = [(by_stream(), by_map()) for _ in range(ROUNDS)]
    first = first_epochs(folder, rows, endpoint)
    with slow_link(endpoint, LINK) as between:
        linked = first_epochs(folder, rows, between)
    return {
        "warm_cpu_seconds": {
            "stream": round(statistics.median(ours for ours, _ in warm), 3),
            "memmap": round(statistics.median(theirs for _, theirs in warm), 3),
        },
        "warm_of_memmap": round(statistics.median(theirs / ours for ours, theirs in warm), 3),
        "first_epoch": first,
        "first_epoch_over_link": {"bytes_a_second": LINK, **linked},
    }


def open_stream(rows: int) -> SampleStream:
    """All rows of the table in the store."""
    ids, table = synthetic_rows(rows), table_at(f"s3://{BUCKET}/cache")
    ref = TableRef(str(table.dir), table.fingerprint, CellSelection(ids, VIEWS))
    return SampleStream(StreamSpec(ids, {"features": ref}, "fill"))


def touch(value: np.ndarray) -> np.ndarray:
    """Copy a map, as a batch does."""
    return value.copy()


def cpu(action: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def first_epochs(folder: Path, rows: int, endpoint: str) -> dict[str, Any]:
    """Seconds of an epoch of a machine without copies, and of a bare download, in processes of their own."""
    took = [first_epoch(folder, rows, endpoint, number) for number in range(ROUNDS)]
    return {
        "seconds": {side: round(statistics.median(each[side] for each in took), 2) for side in ("stream", "download")},
        "of_download": round(statistics.median(each["download"] / each["stream"] for each in took), 3),
    }


def first_epoch(folder: Path, rows: int, endpoint: str, number: int) -> dict[str, float]:
    """Seconds of one round."""
    took = {}
    for side in ("stream", "download"):
        own = os.environ | environment(endpoint, folder / f"{side}-{number}")
        command = [sys.executable, "-m", "bench.bench_objects", f"--{side}", "--rows", str(rows)]
        took[side] = float(subprocess.run(command, env=own, check=True, stdout=subprocess.PIPE).stdout)
        shutil.rmtree(folder / f"{side}-{number}")
    return took


def read_first(rows: int) -> float:
    """Seconds in which a new machine reads all rows, in batches of 16."""
    stream, order = open_stream(rows), epoch_order(0, 0, rows).tolist()
    begun = time.monotonic()
    for start in range(0, len(order), 16):
        stream.fetch_ahead(order[start + 16 : start + 272])
        for sample in stream.__getitems__(order[start : start + 16]):
            for value in sample["features"].values():
                touch(value)
    return time.monotonic() - begun


def download() -> float:
    """Seconds in which 8 threads write the same payloads to a disk."""
    import obstore
    from obstore.store import from_url

    place = ObjectPath(str(table_at(f"s3://{BUCKET}/cache").dir / "shards"))
    names, store = sorted(OBJECTS.names(place)), from_url(place.bucket, client_options={"allow_http": True})
    folder = Path(os.environ["HOI_DISTILL_DISK"])
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str) -> None:
        with open(folder / name, "wb", buffering=0) as file:
            for part in obstore.get(store, (place / name).key).stream(
                min_chunk_size=1 << 16
            ):  # the quickest of those tried
                file.write(part)

    begun = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, names))
    return time.monotonic() - begun


def planning(folder: Path, rows: int, endpoint: str) -> dict[str, Any]:
    """Requests, CPU seconds and memory of counting a table's cells, on a machine that has no copy and on one that has all."""
    output, ids = {"format": "arrow", "type": str(LOGITS)}, synthetic_rows(rows)
    columns = tuple(f"prompt {number}" for number in range(PROMPTS))
    disk = Cache.open(folder / f"nominal-{rows}").table("itm", {"stage": "itm"}, output, LOGITS)
    records = fill_synthetically(disk, ids, columns, SHARD_ROWS, hole=0.01)
    away = Cache.open(f"s3://{BUCKET}/nominal-{rows}").table("itm", {"stage": "itm"}, output, LOGITS)
    files = [file for inner in ("commits", "shards") for file in (Path(str(disk.dir)) / inner).iterdir()]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda file: OBJECTS.replace(away.dir / file.parent.name / file.name, file.read_bytes()), files))
    found: dict[str, Any] = {}
    asked: Counter[str] = Counter()

    def act(request: Request) -> Fate:
        asked["list" if "list-type" in request.path else request.method] += 1
        return "pass"

    with proxy(endpoint, act) as between:
        for kind in ("first", "next"):
            asked.clear()
            own = os.environ | environment(between, folder / f"planner-{rows}")
            command = [sys.executable, "-m", "bench.bench_objects", "--plan", "--rows", str(rows)]
            answer = json.loads(subprocess.run(command, env=own, check=True, stdout=subprocess.PIPE).stdout)
            found[kind] = answer | {
                "rows": rows,
                "records": records,
                "requests": sum(asked.values()),
                "lists": asked["list"],
            }
    return found


def plan(rows: int) -> dict[str, Any]:
    """Count the cells of the nominal table, as a plan does."""
    columns = tuple(f"prompt {number}" for number in range(PROMPTS))
    begun = time.process_time()
    table = Cache.open(f"s3://{BUCKET}/nominal-{rows}").table(
        "itm", {"stage": "itm"}, {"format": "arrow", "type": str(LOGITS)}, LOGITS
    )
    filled = int(table.state(CellSelection(synthetic_rows(rows), columns)).filled.sum())
    return {
        "filled": filled,
        "cpu_seconds": round(time.process_time() - begun, 2),
        "peak_rss_bytes": peak_bytes(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--rows", type=int, default=320, help="rows that are committed and read")
    parser.add_argument("--images", type=int, default=32, help="images that a teacher of BLIP-base's size looks at")
    parser.add_argument(
        "--planned", type=int, nargs="+", default=[2_000_000, 10_000_000], help="rows that a plan counts"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of the measurement")
    for part in ("stream", "download", "plan"):
        parser.add_argument(f"--{part}", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stream or given.download:
        print(read_first(given.rows) if given.stream else download())
    elif given.plan:
        print(json.dumps(plan(given.rows)))
    else:
        result = measure(given.images, given.rows, given.planned, given.only)
        print(json.dumps(result) if given.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
