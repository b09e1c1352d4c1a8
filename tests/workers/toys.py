"""Toy stages, pictures and tasks for the tests of workers, in a module that Ray workers can import."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, TensorOutput, Values, fingerprint_record
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import InputFailure
from hoi_distill.workers.task import Part, TableSpec, Task, Upstream


@dataclass
class Faults:
    """What goes wrong, by row digest (hex). ``log`` is a file to which each compute appends a line."""

    log: str = ""
    fails: tuple[str, ...] = ()
    kills: tuple[str, ...] = ()
    kills_once: str = ""
    raises: str = ""
    seconds: float = 0.0
    hangs: tuple[str, ...] = ()
    hangs_once: str = ""

    def meet(self, stage: str, batch: Batch, columns: Sequence[str]) -> None:
        rows = [row.tobytes().hex() for row in batch.rows]
        if self.log:
            line = {"stage": stage, "rows": rows, "count": batch.count, "columns": list(columns)}
            line |= {"pid": os.getpid(), "raylet": os.environ.get("RAY_RAYLET_PID")}
            with open(self.log, "a") as file:
                file.write(json.dumps(line) + "\n")
        time.sleep(self.seconds)
        if set(rows) & set(self.kills):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kills_once and not Path(self.kills_once).exists():
            Path(self.kills_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if set(rows) & set(self.hangs) or (self.hangs_once and not Path(self.hangs_once).exists()):
            Path(self.hangs_once or os.devnull).touch()
            time.sleep(3600)
        if self.raises:
            raise MemoryError(self.raises)
        if set(rows) & set(self.fails):
            raise InputFailure("the toy cannot\nlook at this")


def encode(batch: Batch) -> np.ndarray:
    """The shared "tower": ``float32 [B, 3]``, mean colour; counts itself in the memo's batch."""

    def pixels() -> np.ndarray:
        Encoded.passes.append(len(batch.rows))
        return np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in batch.images])

    return batch.once("tower", pixels)


class Encoded:
    """Vision passes of this process: the batch length of each."""

    passes: ClassVar[list[int]] = []


class Colour(Stage):
    """Mean of a colour channel, one column per channel."""

    name = "colour"
    output = ArrowOutput(pa.float32())
    shares = "tower"

    def __init__(self, batch_size: int = 4, version: int = 1, **faults: Any) -> None:
        self.columns = ("red", "green", "blue")
        self.batch_size, self.toy_version, self.faults = batch_size, version, Faults(**faults)
        self.opened = 0

    def parameters(self) -> dict[str, Any]:
        return {"toy": self.toy_version}

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        self.opened += 1
        shared["tower"] = device

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        self.faults.meet(self.name, batch, columns)
        means = encode(batch)
        return {column: pa.array(means[:, self.columns.index(column)], pa.float32()) for column in columns}


class Map(Colour):
    """The mean colour as a [3, 2, 2] feature map; views original and flip."""

    name = "map"
    output = TensorOutput((3, 2, 2), "fp16")  # type: ignore[assignment]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.columns = ("original", "flip")

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        self.faults.meet(self.name, batch, columns)
        maps = np.broadcast_to(encode(batch)[:, :, None, None], (len(batch.rows), 3, 2, 2)) / 255
        return {column: maps if column == "original" else -maps for column in columns}


class Double(Stage):
    """Twice a colour, from the colour table alone: column ``twice red`` needs only ``red``, ``sum`` needs all three."""

    name = "double"
    decodes = False
    output = ArrowOutput(pa.float32())
    inputs = ("colour",)
    batch_size = 4

    def __init__(self) -> None:
        self.columns = ("twice red", "sum")

    def parameters(self) -> dict[str, Any]:
        return {}

    def needs(self, column: str) -> Mapping[str, tuple[str, ...]] | None:
        return {"colour": ("red",)} if column == "twice red" else None

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        pass

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        assert not batch.images
        colour = {name: values.to_numpy(zero_copy_only=False) for name, values in inputs["colour"].items()}
        answers = {"twice red": lambda: 2 * colour["red"], "sum": lambda: sum(colour.values())}
        return {column: pa.array(answers[column](), pa.float32()) for column in columns}


class Length(Stage):
    """The number of letters of a text."""

    name = "length"
    source = "texts"
    output = ArrowOutput(pa.int32())
    columns = ("value",)
    batch_size = 4

    def parameters(self) -> dict[str, Any]:
        return {}

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        pass

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        return {"value": pa.array([len(text) for text in batch.texts], pa.int32())}


class Large(Length):
    """128 KiB of every text."""

    name = "large"
    output = TensorOutput((64, 32, 32), "fp16")  # type: ignore[assignment]

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        return {"value": np.ones((len(batch.texts), 64, 32, 32), dtype=np.float16)}


def text_task(stage: Stage, cache: Path, texts: Sequence[str]) -> Task:
    """One task of a text stage: every column for every text."""
    rows = as_rows([digest_bytes(text.encode()) for text in texts])
    spec = TableSpec(str(cache), stage.name, fingerprint_record(stage), stage.output)
    needed = np.ones((len(texts), len(stage.columns)), dtype=bool)
    uris = [f"text:{text}" for text in texts]
    return Task(texts[0], rows, uris, texts, (Part(stage.name, stage, spec, stage.columns, needed),))


@dataclass
class Album:
    """Pictures on disk and a cache: ``colours`` float [N, 3] is what the tower should see."""

    folder: Path
    cache: str
    uris: list[str]
    rows: np.ndarray
    colours: np.ndarray

    def digest(self, index: int) -> str:
        return self.rows[index].tobytes().hex()

    def spec(self, stage: Stage) -> TableSpec:
        return TableSpec(self.cache, stage.name, fingerprint_record(stage), stage.output)

    def part(self, stage: Stage, needed: np.ndarray | None = None, **options: Any) -> Part:
        if needed is None:
            needed = np.ones((len(self.rows), len(stage.columns)), dtype=bool)
        return Part(stage.name, stage, self.spec(stage), tuple(stage.columns), needed, **options)

    def upstream(self, stage: Stage) -> dict[str, Upstream]:
        return {stage.name: Upstream(self.spec(stage), tuple(stage.columns))}

    def tasks(self, *parts: Part, size: int = 8) -> list[Task]:
        whole = Task("", self.rows, self.uris, [Path(uri).stem for uri in self.uris], parts)
        return [
            whole.take(slice(start, start + size), f"task {number}")
            for number, start in enumerate(range(0, len(self.rows), size))
        ]

    def read(self, stage: Stage) -> dict[str, np.ndarray]:
        """Every column of the stage's table, ``[N, ...]``; an error if a cell is empty."""
        values = self.spec(stage).open().read(self.rows, tuple(stage.columns))
        return {
            name: column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else np.asarray(column)
            for name, column in values.items()
        }

    def failures(self, stage: Stage) -> dict[tuple[int, int], str]:
        return self.spec(stage).open().failures(self.rows, tuple(stage.columns))

    def empty(self, stage: Stage) -> np.ndarray:
        """``bool [N, C]``: neither a value nor a failure."""
        state = self.spec(stage).open().state(self.rows, tuple(stage.columns), None)
        return state.empty(slice(0, len(self.rows)))


def album(folder: Path, count: int = 20) -> Album:
    """``count`` one-coloured 8x8 pictures and an empty cache."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    colours = np.random.default_rng(0).integers(0, 256, (count, 3))
    uris, digests = [], []
    for index, colour in enumerate(colours):
        path = pictures / f"{index:03d}.png"
        Image.new("RGB", (8, 8), tuple(colour.tolist())).save(path)
        uris.append(str(path))
        digests.append(digest_bytes(path.read_bytes()))
    return Album(folder, str(folder / "cache"), uris, as_rows(digests).copy(), colours.astype(np.float32))


def replaced(made: Album, index: int, data: bytes) -> None:
    """Give a picture other bytes, known to the album."""
    Path(made.uris[index]).write_bytes(data)
    made.rows[index] = as_rows([digest_bytes(data)])[0]
