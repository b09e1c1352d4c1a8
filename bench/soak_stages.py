"""Small stages whose right answers follow from an image's mean and a column's name, and how a configuration names them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.pipeline.graph import registry
from hoi_distill.stages.keys import Columns
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, TensorOutput, Values

STAGES = {
    "soak_found": "bench.soak_stages:Found",
    "soak_maps": "bench.soak_stages:Maps",
    "soak_sums": "bench.soak_stages:Sums",
    "soak_doubled": "bench.soak_stages:Doubled",
    "soak_chosen": "bench.soak_stages:Chosen",
}
SHAPE = (2, 3, 3)
FOUND = pa.struct([("score", pa.float32()), ("boxes", pa.list_(pa.list_(pa.float32(), 4))), ("word", pa.string())])


def register() -> None:
    """Let configurations name them."""
    registry.STAGES.update(STAGES)


def seed(mean: float, column: str) -> int:
    """A number that follows from an image's mean and a column."""
    return zlib.crc32(f"{mean:.3f} {column}".encode())


def found(mean: float, column: str) -> dict[str, Any]:
    """What :class:`Found` answers, as Arrow's Python objects."""
    number = seed(mean, column)
    boxes = [[float(number % (5 + i)), float(i), 9.0, float(number % 31)] for i in range(number % 4)]
    return {"score": float(number % 1000) / 8, "boxes": boxes, "word": f"w{number}" * (number % 3)}


def map_of(mean: float, column: str) -> np.ndarray:
    """What :class:`Maps` answers: float16 ``[2, 3, 3]``."""
    return ((np.arange(18).reshape(SHAPE) * (1 + seed(mean, column) % 7)) % 61).astype(np.float16)


def chosen(cell: Mapping[str, Any]) -> bool:
    """Whether :class:`Chosen` is to answer, by what was found."""
    return cell["score"] > 60


class _Toy(Stage):
    batch_size = 2

    class Config(Stage.Config):
        columns: Columns

    def __init__(self, config: Config) -> None:
        self.columns = config.columns

    @override
    def parameters(self) -> dict[str, Any]:
        """What decides the values."""
        return {}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""


class Found(_Toy):
    """A struct a prompt, of the image itself."""

    name = "found"
    output = ArrowOutput(FOUND)

    class Config(_Toy.Config):
        weights: str = "a"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weights = config.weights

    @override
    def parameters(self) -> dict[str, Any]:
        """What decides the values."""
        return {"weights": self.weights}

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Answer for every image of the batch."""
        means = [mean_of(image) for image in batch.images]
        return {column: pa.array([found(mean, column) for mean in means], FOUND) for column in columns}


class Maps(_Toy):
    """A feature map a view."""

    name = "maps"
    output = TensorOutput(SHAPE, "fp16")

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Answer for every image of the batch."""
        means = [mean_of(image) for image in batch.images]
        return {column: np.stack([map_of(mean, column) for mean in means]) for column in columns}


class _Below(_Toy):
    decodes = False
    inputs = ("found",)

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]] | None:
        """The same column of the table above."""
        return {"found": (column,)}


class Doubled(_Below):
    """Twice the score of the same column."""

    name = "doubled"
    output = ArrowOutput(pa.float32())

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Answer for every image of the batch."""
        cells = {column: inputs["found"][column].to_pylist() for column in columns}
        return {
            column: pa.array([None if c is None else 2 * c["score"] for c in cells[column]], pa.float32())
            for column in columns
        }


class Chosen(_Below):
    """The word, but only where the score is high: which cells a row wants depends on what stands above."""

    name = "chosen"
    output = ArrowOutput(pa.string())

    @override
    def select_cells(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray:
        """The cells whose score is high, ``bool [B, C]``."""
        cells = [inputs["found"][column].to_pylist() for column in self.columns]
        return np.array([[c is not None and chosen(c) for c in column] for column in cells]).T

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Answer for every image of the batch."""
        return {
            column: pa.array([None if c is None else c["word"] for c in inputs["found"][column].to_pylist()])
            for column in columns
        }


class Sums(_Toy):
    """The sum of all maps of an image."""

    name = "sums"
    decodes = False
    inputs = ("maps",)
    output = ArrowOutput(pa.float32())

    class Config(_Toy.Config):
        columns: Columns = ("value",)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Answer for every image of the batch."""
        total = sum(np.asarray(maps, np.float32).reshape(len(maps), -1).sum(axis=1) for maps in inputs["maps"].values())
        return {"value": pa.array(np.asarray(total), pa.float32())}


def mean_of(image: Any) -> float:
    """The mean of all pixels."""
    return float(np.asarray(image, np.float32).mean())


def right_value(stage: str, mean: float, column: str, views: Sequence[str]) -> Any:
    """What the cell of an image of this mean holds, as a Python object or an array; views: the columns of the maps."""
    match stage:
        case "found":
            return found(mean, column)
        case "maps":
            return map_of(mean, column)
        case "doubled":
            return 2 * found(mean, column)["score"]
        case "chosen":
            return found(mean, column)["word"]
        case "sums":
            return float(sum(map_of(mean, view).astype(np.float32).sum() for view in views))
    raise ValueError(stage)
