"""The sample stream against a bare ``numpy.memmap`` of the same bytes through the same loader settings.

1,500 feature maps of 1,024 x 24 x 24 float16 (1.8 GB in the temporary folder, removed at the end), page cache warm,
random order, batches of 32 stacked by one collate function. Measured in turn; the ratio is that of each turn.

    python -m bench.bench_stream [--json] [--maps N] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.sampling import Epoch, epoch_order
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef, stack

SHAPE = (1024, 24, 24)
BATCH = 32
ROWS_PER_SHARD = 64


class Memmap:
    """The limit: rows of one raw file."""

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.maps = np.memmap(path, np.float16, "r", shape=(count, *SHAPE))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, "features": {"original": self.maps[row]}}


def collate(samples: list[dict[str, Any]]) -> torch.Tensor:
    """A batch of feature maps."""
    return stack([sample["features"]["original"] for sample in samples])


def build(folder: Path, count: int) -> tuple[Memmap, SampleStream, dict[str, float]]:
    """The same feature maps as one raw file and as a table, and the seconds it takes to open the stream."""
    rows = as_rows([digest_bytes(b"%d" % i) for i in range(count)])
    table = Cache.open(folder / "cache").table(
        "features", {"stage": "features"}, {"format": "lmdb", "shape": list(SHAPE), "codec": "fp16"}, None
    )
    random = np.random.default_rng(0)
    with open(folder / "maps.raw", "wb") as file:
        for start in range(0, count, ROWS_PER_SHARD):
            part = rows[start : start + ROWS_PER_SHARD]
            values = random.standard_normal((len(part), *SHAPE), np.float32).astype(np.float16)
            file.write(values.tobytes())
            table.commit(CellBlock(part, ("original",), np.ones((len(part), 1), bool)), {"original": values})
    ref = TableRef(str(table.dir), table.fingerprint, CellSelection(rows, ("original",)))
    spec, seconds = StreamSpec(rows, {"features": ref}, "make teacher-cache"), {}
    for occasion in ("first", "again"):  # the first time reads every shard for its checksum
        started = time.perf_counter()
        stream = SampleStream(spec)
        seconds[occasion] = time.perf_counter() - started
    return Memmap(folder / "maps.raw", count), stream, seconds


def rate(loader: Any) -> float:
    """Samples per second over one epoch, workers' start included."""
    started, samples = time.perf_counter(), 0
    for batch in loader:
        samples += len(batch)
    return samples / (time.perf_counter() - started)


def measure(memmap: Memmap, stream: SampleStream, workers: int, rounds: int) -> dict[str, Any]:
    """Medians of interleaved epochs; the first pair warms the cache and checks that both give the same bytes."""

    def bare(epoch: int) -> Any:
        order = epoch_order(0, epoch, len(memmap)).tolist()
        batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        return DataLoader(memmap, batch_sampler=batches, num_workers=workers, collate_fn=collate)  # type: ignore[arg-type]

    def ours(epoch: int) -> Any:
        return stream.loader(BATCH, Epoch(0, epoch), num_workers=workers, collate=collate)

    for a, b in zip(bare(0), ours(0), strict=True):
        if not torch.equal(a, b):
            raise SystemExit("the stream's bytes differ from the file's")
    pairs = []
    for epoch in range(1, rounds + 1):
        first, second = (bare, ours) if epoch % 2 else (ours, bare)
        rates = {loader: rate(loader(epoch)) for loader in (first, second)}
        pairs.append((rates[bare], rates[ours]))
    return {
        "workers": workers,
        "memmap_samples_per_second": statistics.median(a for a, _ in pairs),
        "stream_samples_per_second": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
        "ratios": sorted(b / a for a, b in pairs),
    }


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--maps", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="hoi-distill-bench-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        memmap, stream, seconds = build(Path(folder), arguments.maps)
        results = [measure(memmap, stream, workers, arguments.rounds) for workers in (0, 2)]
    if arguments.json:
        print(json.dumps({"bench": "stream", "maps": arguments.maps, "seconds_to_open": seconds, "results": results}))
        return
    print(f"opening the stream: {seconds['first']:.2f} s the first time, {seconds['again']:.3f} s again")
    for result in results:
        print(
            f"{result['workers']} workers: memmap {result['memmap_samples_per_second']:.0f} samples/s, "
            f"stream {result['stream_samples_per_second']:.0f} samples/s, ratio {result['ratio']:.2f} "
            f"({result['ratios'][0]:.2f} to {result['ratios'][-1]:.2f})"
        )


if __name__ == "__main__":
    main()
