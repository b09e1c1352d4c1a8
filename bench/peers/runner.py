"""Write the same rows in one format, or read them in a given order, and print what it cost.

This file imports nothing of this project. So it runs in an environment that holds one library and numpy.

    python runner.py FORMAT write SOURCE FOLDER
    python runner.py FORMAT read SOURCE FOLDER ORDER

``SOURCE`` is a ``.npy`` file ``[N, *shape]``, ``ORDER`` a ``.npy`` file ``int64 [M]`` of rows. A reader delivers arrays
``[BATCH, *shape]`` in the source's dtype, in memory of their own. ``write`` reads everything back once and compares the bytes.
``read`` evicts the folder's pages, opens it, makes a cold pass and then a warm one.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32
SHARD_BYTES = 64 << 20

Batches = Callable[[np.ndarray], Iterator[np.ndarray]]
"""``rows int64 [M] -> batches [<= BATCH, *shape]`` of these rows in this order."""


class Format(ABC):
    """One way to keep rows on disk.

    Attributes:
        random_access: False where the format has an order of its own, which the reader shuffles.
    """

    random_access = True

    @abstractmethod
    def write(self, source: np.ndarray, folder: Path) -> None:
        """Keep ``source [N, *shape]`` in ``folder``, an empty one."""

    @abstractmethod
    def open(self, source: np.ndarray, folder: Path) -> Batches:
        """Open what :meth:`write` has left. Of ``source`` only shape and dtype may be used."""


def batched(rows: np.ndarray, read: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    """Stack single rows."""
    for start in range(0, len(rows), BATCH):
        yield np.stack([read(row) for row in rows[start : start + BATCH].tolist()])


class Memmap(Format):
    """The limit: rows of one raw file, mapped with the kernel's own readahead."""

    def write(self, source: np.ndarray, folder: Path) -> None:
        np.save(folder / "rows.npy", source)

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        rows = np.load(folder / "rows.npy", mmap_mode="r")
        return lambda order: batched(order, rows.__getitem__)


class NpyFiles(Format):
    """One ``.npy`` file a row."""

    def write(self, source: np.ndarray, folder: Path) -> None:
        for row, value in enumerate(source):
            np.save(folder / f"{row:07d}.npy", value)

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        return lambda order: batched(order, lambda row: np.load(folder / f"{row:07d}.npy"))


class TorchFiles(Format):
    """One file of ``torch.save`` a row."""

    def write(self, source: np.ndarray, folder: Path) -> None:
        import torch

        for row, value in enumerate(source):
            torch.save(torch.from_numpy(np.array(value)), folder / f"{row:07d}.pt")

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        import torch

        return lambda order: batched(order, lambda row: torch.load(folder / f"{row:07d}.pt", weights_only=True).numpy())


class LmdbPickle(Format):
    """One LMDB file of pickled arrays, opened as the library's defaults have it."""

    def write(self, source: np.ndarray, folder: Path) -> None:
        import lmdb

        with lmdb.open(str(folder), map_size=2 * source.nbytes + (1 << 28)) as store:
            for start in range(0, len(source), BATCH):
                with store.begin(write=True) as transaction:
                    for row, value in enumerate(source[start : start + BATCH], start):
                        transaction.put(b"%07d" % row, pickle.dumps(np.array(value), protocol=5))

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        import lmdb

        transaction = lmdb.open(str(folder), readonly=True, lock=False).begin(buffers=True)
        return lambda order: batched(order, lambda row: pickle.loads(transaction.get(b"%07d" % row)))


class Mds(Format):
    """MosaicML Streaming's shards on the local disk."""

    def write(self, source: np.ndarray, folder: Path) -> None:
        declare_operators()
        from streaming import MDSWriter

        kind = f"ndarray:{source.dtype}:{','.join(map(str, source.shape[1:]))}"
        with MDSWriter(out=str(folder), columns={"value": kind}, size_limit=SHARD_BYTES) as writer:
            for value in source:
                writer.write({"value": np.array(value)})

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        declare_operators()
        from streaming import StreamingDataset

        dataset = StreamingDataset(local=str(folder), batch_size=BATCH)
        return lambda order: batched(order, lambda row: dataset[row]["value"])


def declare_operators() -> None:
    """Let torchvision be imported, which ``streaming`` does without a need for it here: the index's wheel knows its operators
    only beside a CUDA build of torch."""
    import torch

    if not DECLARED:
        DECLARED.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in ("nms", "qnms"):
            DECLARED[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


DECLARED: list[Any] = []
"""A declaration ends with its object."""


class LitData(Format):
    """LitData's chunks on the local disk."""

    def write(self, source: np.ndarray, folder: Path) -> None:
        from litdata.streaming import Cache

        cache = Cache(str(folder), chunk_bytes=SHARD_BYTES)
        for row, value in enumerate(source):
            cache[row] = {"value": np.array(value)}
        cache.done()
        cache.merge()

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        from litdata import StreamingDataset

        dataset = StreamingDataset(str(folder))
        return lambda order: batched(order, lambda row: dataset[row]["value"])


class WebDataset(Format):
    """Tar files of ``.npy`` entries, read in a row and shuffled in a buffer, as the library is meant to be used."""

    random_access = False

    def write(self, source: np.ndarray, folder: Path) -> None:
        from webdataset import ShardWriter

        with ShardWriter(str(folder / "%05d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
            for row, value in enumerate(source):
                file = io.BytesIO()
                np.save(file, value)
                writer.write({"__key__": f"{row:07d}", "value.npy": file.getvalue()})

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        import webdataset

        shards = sorted(str(path) for path in folder.glob("*.tar"))

        def batches(order: np.ndarray) -> Iterator[np.ndarray]:
            rows = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(4 * BATCH).decode()
            values: list[np.ndarray] = []
            for left, sample in zip(range(len(order) - 1, -1, -1), rows, strict=False):
                values.append(sample["value.npy"])
                if len(values) == BATCH or not left:
                    yield np.stack(values)
                    values = []

        return batches


class Lance(Format):
    """A Lance table with one column of fixed-size lists."""

    def write(self, source: np.ndarray, folder: Path) -> None:
        import lance

        lance.write_dataset(arrow_table(source), str(folder / "rows.lance"))

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        import lance

        dataset = lance.dataset(str(folder / "rows.lance"))

        def batches(order: np.ndarray) -> Iterator[np.ndarray]:
            for start in range(0, len(order), BATCH):
                column = dataset.take(order[start : start + BATCH], columns=["value"])["value"].combine_chunks()
                yield column.flatten().to_numpy().reshape(-1, *source.shape[1:])

        return batches


class HfDatasets(Format):
    """A Hugging Face dataset saved to disk, rows as fixed-size lists in numpy form."""

    def write(self, source: np.ndarray, folder: Path) -> None:
        from datasets import Dataset

        Dataset(arrow_table(source)).save_to_disk(str(folder / "rows"), max_shard_size=SHARD_BYTES)

    def open(self, source: np.ndarray, folder: Path) -> Batches:
        from datasets import load_from_disk

        dataset = load_from_disk(str(folder / "rows")).with_format("numpy", dtype=source.dtype)

        def batches(order: np.ndarray) -> Iterator[np.ndarray]:
            for start in range(0, len(order), BATCH):
                values = dataset[order[start : start + BATCH].tolist()]["value"]
                yield values.reshape(-1, *source.shape[1:])

        return batches


def arrow_table(source: np.ndarray) -> Any:
    """One column of fixed-size lists of float16, in batches."""
    import pyarrow

    size = source[0].size
    schema = pyarrow.schema({"value": pyarrow.list_(pyarrow.float16(), size)})
    flat = (pyarrow.array(source[start : start + BATCH].reshape(-1)) for start in range(0, len(source), BATCH))
    columns = (pyarrow.FixedSizeListArray.from_arrays(values, size) for values in flat)
    return pyarrow.Table.from_batches([pyarrow.record_batch([column], schema=schema) for column in columns], schema)


FORMATS: dict[str, Callable[[], Format]] = {
    "memmap": Memmap,
    "npy": NpyFiles,
    "torch_save": TorchFiles,
    "lmdb_pickle": LmdbPickle,
    "mds": Mds,
    "litdata": LitData,
    "webdataset": WebDataset,
    "lance": Lance,
    "hf_datasets": HfDatasets,
}


def write(form: Format, source: np.ndarray, folder: Path) -> dict[str, Any]:
    """Write the rows, and prove that they come back as they were. Returns the bytes on disk."""
    form.write(source, folder)
    evict(folder)
    order = np.random.default_rng(1).permutation(len(source))
    position, digests = 0, set()
    for batch in form.open(source, folder)(order):
        rows = order[position : position + len(batch)]
        if form.random_access and not np.array_equal(batch, source[rows]):
            raise SystemExit("what is read differs from what was written")
        digests.update(hash(value.tobytes()) for value in batch)
        position += len(batch)
    if position != len(source) or digests != {hash(value.tobytes()) for value in source}:
        raise SystemExit("not every row comes back as it was written")
    return {"bytes_on_disk": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())}


def read(form: Format, source: np.ndarray, folder: Path, order: np.ndarray) -> dict[str, Any]:
    """What it costs to open the folder, and then a cold pass and a warm pass over ``order``."""
    evict(folder)
    opened: list[Batches] = []
    costs = {"open": spent(lambda: opened.append(form.open(source, folder)))}

    def read_all() -> None:
        if (count := sum(len(batch) for batch in opened[0](order))) != len(order):
            raise SystemExit(f"{count} rows of {len(order)} came")

    return costs | {occasion: spent(read_all) for occasion in ("cold", "warm")}


def spent(work: Callable[[], None]) -> dict[str, float]:
    """CPU seconds (threads and ended children too), wall seconds and bytes read from the disk."""
    seconds, bytes_read, wall = cpu_seconds(), disk_bytes(), time.perf_counter()
    work()
    return {
        "cpu_seconds": cpu_seconds() - seconds,
        "wall_seconds": time.perf_counter() - wall,
        "bytes_read": disk_bytes() - bytes_read,
    }


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def disk_bytes() -> int:
    """What this process has made the kernel fetch from the disk, readahead included."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def evict(folder: Path) -> None:
    """Drop a folder's files from the page cache. No process may have them mapped."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main(arguments: Sequence[str], formats: dict[str, Callable[[], Format]]) -> None:
    """Do what the arguments say, and print one line of JSON."""
    name, action, source_path, folder, *order = arguments
    form, source = formats[name](), np.load(source_path, mmap_mode="r")
    if action == "write":
        result = write(form, source, Path(folder))
    else:
        result = read(form, source, Path(folder), np.load(order[0]))
    print(json.dumps(result), flush=True)
    os._exit(0)  # libraries with threads of their own may hang in their exit handlers


if __name__ == "__main__":
    main(sys.argv[1:], FORMATS)
