"""Toy stages that a configuration can name, and setups of a few pictures: the pipeline without a teacher.

``Scores`` looks at the pictures, ``Signs`` reads the scores, column by column. Every cell that they compute is noted in
:data:`COMPUTED` and, across processes, in the file that the parameter ``log`` names.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from hoi_distill.pipeline.filling.run import RunSummary, choose_executor, drop_failures, fill
from hoi_distill.pipeline.graph import builder as graph
from hoi_distill.pipeline.planning.plan import TablePlan, plan
from hoi_distill.pipeline.workspace import Setup, prepare
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, TensorOutput, Values

COMPUTED: list[tuple[str, bytes, str]] = []
"""(stage, row id, column) of every cell computed in this process, in order."""
KILL_AFTER: list[int] = []
"""If not empty, how many more batches until a compute is interrupted as by Ctrl-C."""


def note(stage: str, batch: Batch, columns: Sequence[str], log: str) -> None:
    cells = [(stage, row.tobytes(), column) for row in batch.rows[: batch.count] for column in columns]
    COMPUTED.extend(cells)
    if log:
        with open(log, "a") as file:
            file.write("".join(json.dumps([name, row.hex(), column]) + "\n" for name, row, column in cells))
    if KILL_AFTER:
        KILL_AFTER[0] -= 1
        if KILL_AFTER[0] < 0:
            raise KeyboardInterrupt


class Scores(Stage):
    """What a teacher would say of a picture and a prompt: mean brightness plus the prompt's checksum."""

    name = "scores"
    output = ArrowOutput(pa.float32())

    def __init__(
        self, columns: Sequence[str], *, weights: str = "a", batch_size: int = 2, seconds: float = 0.0, log: str = ""
    ) -> None:
        self.columns, self.weights, self.batch_size = tuple(columns), weights, batch_size
        self.seconds, self.log = seconds, log

    def parameters(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        time.sleep(self.seconds)
        note(self.name, batch, columns, self.log)
        means = np.array([np.asarray(image, np.float32).mean() for image in batch.images], np.float32)
        return {column: pa.array(means + score_of(column), pa.float32()) for column in columns}


def score_of(column: str) -> np.float32:
    return np.float32(zlib.crc32(column.encode()) % 1000)


class Signs(Stage):
    """Whether a score is above 500, from the scores table alone; each column from the column of its name."""

    name = "signs"
    decodes = False
    output = ArrowOutput(pa.int8())
    inputs = ("scores",)

    def __init__(self, columns: Sequence[str], *, batch_size: int = 2, log: str = "") -> None:
        self.columns, self.batch_size, self.log = tuple(columns), batch_size, log

    def parameters(self) -> dict[str, Any]:
        return {}

    def needs(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {"scores": (column,)}

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        note(self.name, batch, columns, self.log)
        scores = inputs["scores"]
        return {
            column: pa.array([None if v is None else int(v > 500) for v in scores[column].to_pylist()], pa.int8())
            for column in columns
        }


class Chosen(Signs):
    """Answers only where the score is above 500: which cells a row wants depends on what stands above."""

    name = "chosen"

    def wants(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray:
        scores = inputs["scores"]
        return np.array([[v is not None and v > 500 for v in scores[column].to_pylist()] for column in self.columns]).T


class Sized(Signs):
    """How many boxes a picture's detections hold; reads the table ``detections``."""

    name = "sized"
    inputs = ("detections",)
    output = ArrowOutput(pa.int32())

    def __init__(self) -> None:
        super().__init__(("value",))

    def needs(self, column: str) -> None:
        return None

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        note(self.name, batch, columns, "")
        return {
            "value": pa.array([len(cell["boxes"]) for cell in inputs["detections"]["value"].to_pylist()], pa.int32())
        }


class Maps(Scores):
    """Feature maps [8, 16, 16] of a picture: 4 KiB a cell."""

    name = "maps"
    output = TensorOutput((8, 16, 16), "fp16")  # type: ignore[assignment]

    def __init__(self, *, batch_size: int = 8) -> None:
        super().__init__(("original",), batch_size=batch_size)

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        means = np.array([np.asarray(image, np.float32).mean() for image in batch.images], np.float32) / 256
        return {"original": np.broadcast_to(means[:, None, None, None], (len(means), 8, 16, 16))}


class Ring(Signs):
    """Reads the table that it is told to, for graphs that make no sense."""

    name = "ring"

    def __init__(self, columns: Sequence[str], reads: str = "scores") -> None:
        super().__init__(columns)
        self.inputs = (reads,)  # type: ignore[misc]


TOYS = {
    "toy_scores": "tests.pipeline.toys:Scores",
    "toy_signs": "tests.pipeline.toys:Signs",
    "toy_chosen": "tests.pipeline.toys:Chosen",
    "toy_sized": "tests.pipeline.toys:Sized",
    "toy_maps": "tests.pipeline.toys:Maps",
    "toy_ring": "tests.pipeline.toys:Ring",
}


def register() -> None:
    """Let configurations name the toys; for processes of their own. Tests use the fixture ``toys``."""
    graph.STAGES.update(TOYS)


def paint(path: Path, shade: int, side: int = 16) -> None:
    """A picture of one grey; equal shades are equal bytes."""
    Image.new("RGB", (side, side), (shade % 256, shade // 256 % 256, 7)).save(path)


class Album:
    """A folder of painted pictures, a configuration and a cache, all under ``root``."""

    def __init__(self, root: Path, pictures: int = 6, prompts: Sequence[str] = ("a", "b", "c"), **scores: Any) -> None:
        self.root, self.path = root, root / "album.yaml"
        self.folder = root / "pictures"
        self.folder.mkdir()
        for number in range(pictures):
            paint(self.folder / f"{number:03d}.png", number)
        self.config: dict[str, Any] = {
            "name": "album",
            "cache": str(root / "cache"),
            "runs": str(root / "runs"),
            "dataset": {"kind": "folder", "root": str(self.folder)},
            "workers": {"executor": "inline", "count": 1},
            "tables": {
                "scores": {"stage": "toy_scores", "columns": list(prompts), "shard_rows": 4, **scores},
                "signs": {"stage": "toy_signs", "columns": list(prompts), "shard_rows": 4},
            },
        }
        self.write()

    def write(self) -> Path:
        self.path.write_text(yaml.safe_dump(self.config, sort_keys=False))
        return self.path

    def ask(self, prompts: Iterable[str]) -> None:
        for table in self.config["tables"].values():
            table["columns"] = list(prompts)
        self.write()

    def setup(self, **options: Any) -> Setup:
        return prepare(self.path, **options)


def plan_of(setup: Setup) -> dict[str, TablePlan]:
    return plan(setup.nodes, setup.sources, setup.cache)


def run(setup: Setup, stop: threading.Event | None = None, retry_failed: bool = False) -> RunSummary:
    """Fill in this process."""
    if retry_failed:
        drop_failures(plan_of(setup), setup)
    with choose_executor("inline", "cpu", 1) as execute:
        return fill(setup, execute, stop or threading.Event())


def computed(setup: Setup) -> dict[str, int]:
    """Run, and count what was computed, by table; tables without any are left out. Reports and stages must agree."""
    before = len(COMPUTED)
    reported = {name: cells for name, cells in run(setup).cells.items() if cells}
    fresh = COMPUTED[before:]
    assert len(set(fresh)) == len(fresh), "a cell was computed twice in one run"
    counted = {
        name: sum(kind == setup.nodes[name].stage.name for kind, _, _ in fresh)
        for name in reported
        if setup.nodes[name].stage.name in ("scores", "signs")
    }
    assert all(reported[name] == number for name, number in counted.items())
    return reported


def flip_byte(path: Path, position: int | None = None) -> None:
    """Damage one byte of a file, in the middle by default, without changing its size."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(data)
