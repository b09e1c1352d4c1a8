"""What a stage is: a small declarative object that says what it computes, from what, and what its answers depend on.

A stage knows nothing of Ray, shards, resume or paths of the cache. The planner asks it *which* cells exist and what they
depend on; a worker calls :meth:`Stage.open` once and :meth:`Stage.compute` once per batch. A stage is pickled on its way
to a worker, so it holds plain parameters until it is opened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hoi_distill.stages.keys import StageConfig, View

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

Values = Any
"""The cells of one column for the rows of a batch: a ``pa.Array`` of the stage's Arrow type (length B), or for tensor
outputs a float array ``[B, *shape]`` (numpy or torch, any float dtype)."""
Dtype = Literal["float32", "bfloat16", "float16"]
"""Of a model's weights and arithmetic."""
Codec = Literal["fp16", "bf16", "int8"]
"""How a tensor cell is stored, see :mod:`hoi_distill.storage.shards.codecs`."""
VIEWS: tuple[View, ...] = ("original", "flip")
"""Columns of the feature table; ``flip`` is the preprocessed picture mirrored left to right."""


@dataclass(frozen=True)
class ArrowOutput:
    """Small or structured cells, kept in Arrow IPC files. ``type`` is the Arrow type of one cell."""

    type: pa.DataType

    def describe(self) -> dict[str, Any]:
        return {"format": "arrow", "type": str(self.type)}


@dataclass(frozen=True)
class TensorOutput:
    """Feature maps, kept in LMDB. ``shape`` is one cell's shape; ``codec`` how it is stored."""

    shape: tuple[int, ...]
    codec: Codec = "fp16"

    def describe(self) -> dict[str, Any]:
        return {"format": "lmdb", "shape": list(self.shape), "codec": self.codec}


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage occupies."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass
class Batch:
    """The rows of one forward pass.

    Attributes:
        rows: ``V16 [B]`` content digests. The batch is padded to the stage's ``batch_size`` by repeating its last row, so
            that a forward's shape never depends on which cells happen to be empty; ``count`` rows are real.
        keys: the dataset's names of these rows (image ids), for looking up records that accompany a row.
        images: decoded RGB pictures (``source == "images"`` and ``decodes``), else empty.
        texts: the texts themselves (``source == "texts"``), else empty.
        memo: lets stages of one pass share work, see :meth:`once`.
    """

    rows: np.ndarray
    keys: Sequence[str]
    count: int
    images: Sequence[Image.Image] = ()
    texts: Sequence[str] = ()
    memo: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()`` the first time ``key`` is asked for in this batch, the same object from then on (one vision pass)."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


class Stage(ABC):
    """One kind of output for every row of a source.

    Class attributes say what never changes; instance attributes what the configuration chose. The constructor takes the
    keys of the configuration, an instance of :attr:`Config`; it may also ask for the dataset's ``Vocabulary`` and
    ``Annotations``, which it is given by the type of the argument.
    """

    class Config(StageConfig):
        """The keys of a table of this stage; a subclass adds its own."""

    name: ClassVar[str]
    """The kind of table, e.g. ``itm``; the first part of its folder's name."""
    version: ClassVar[int] = 1
    """Raised by hand when the values change meaning; part of the fingerprint."""
    source: ClassVar[Literal["images", "texts"]] = "images"
    decodes: ClassVar[bool] = True
    """Whether ``compute`` looks at the pictures. A stage that reads only its input tables says False."""

    columns: tuple[str, ...]
    """The questions put to the teacher; one column named ``value`` where there is nothing to ask."""
    output: ArrowOutput | TensorOutput
    inputs: tuple[str, ...] = ()
    """Names (in the configuration) of the upstream tables."""
    batch_size: int = 32
    shares: str | None = None
    """Stages of equal ``shares`` run in one pass over the pictures: the digest of the vision tower and preprocessing."""
    resources: Resources = Resources()

    @property
    def unbound(self) -> bool:
        """Whether the stage does not know yet what its answers depend on, so that it has no fingerprint."""
        return False

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The JSON record that, with name, version and output, is the table's fingerprint: teacher digest,
        preprocessing and image backend, numerics. Never columns, paths, batch sizes or devices."""

    def provenance(self) -> dict[str, Any]:
        """What is worth recording beside the fingerprint but changes no value: paths, model names."""
        return {}

    def needs(self, column: str) -> Mapping[str, tuple[str, ...]] | None:
        """For one column: the upstream columns it is computed from, ``{table: (column, ...)}``; None means all. Where every
        column answers ``{}``, the inputs are there for :meth:`wants` alone and no cell depends on them."""
        return None

    def external(self, keys: Sequence[str]) -> np.ndarray | None:
        """``uint64 [N]`` digests of the outside records (a line of a detections file, an annotation) that each row is
        computed from, or None. They enter the cells' input digests."""
        return None

    def chosen_by(self, column: str) -> Mapping[str, tuple[str, ...]]:
        """The upstream columns by which :meth:`wants` judges one column, ``{table: (column, ...)}``."""
        return {}

    def wants(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray | None:
        """``bool [B, C]``: which columns each row wants, judged by its upstream values; None means all."""
        return None

    @abstractmethod
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Load what is needed. ``shared`` belongs to the worker: stages keep loaded models there under their digest,
        so that stages of one tower load it once."""

    @abstractmethod
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Answer ``columns`` for the B rows of the batch (padding included).

        Args:
            inputs: ``{table: {column: values of length B}}``, the upstream cells of the batch's rows.

        Returns:
            ``{column: values of length B}``.

        Raises:
            InputFailure: when a row cannot be processed; the worker splits the batch until it has found which.
        """


def fingerprint_record(stage: Stage) -> dict[str, Any]:
    """The canonical record that names a table. Equal records are the same table, whatever the configuration calls it."""
    return {
        "stage": stage.name,
        "version": stage.version,
        "source": stage.source,
        "output": stage.output.describe(),
        **{f"parameters.{key}": value for key, value in sorted(stage.parameters().items())},
    }
