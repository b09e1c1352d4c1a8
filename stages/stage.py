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
"""Columns of the feature table; ``flip`` is the preprocessed image mirrored left to right."""


@dataclass(frozen=True)
class ArrowOutput:
    """Small or structured cells, kept in Arrow IPC files.

    Attributes:
        type: the Arrow type of one cell.
    """

    type: pa.DataType

    def describe(self) -> dict[str, Any]:
        """What the fingerprint says of it."""
        return {"format": "arrow", "type": str(self.type)}


@dataclass(frozen=True)
class TensorOutput:
    """Feature maps, kept in LMDB.

    Attributes:
        shape: of one cell.
        codec: how a cell is stored.
    """

    shape: tuple[int, ...]
    codec: Codec = "fp16"

    def describe(self) -> dict[str, Any]:
        """What the fingerprint says of it."""
        return {"format": "lmdb", "shape": list(self.shape), "codec": self.codec}


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage occupies."""

    cpus: float = 1.0
    gpus: float = 0.0


@dataclass
class Turn:
    """What a worker and a stage tell each other about one :meth:`Stage.compute`, beside rows and values.

    A stage that runs a model here needs none of it. It serves stages that ask somebody else, who may fail at one question of
    an image, costs money, and takes long.

    Attributes:
        wanted: ``bool [count, C]``: which cells of the asked columns somebody waits for. None: all. The others may be null.
        stopped: whether the run is to stop. A stage whose batch lasts long asks now and then, and returns what it has.
        heard: takes the number of cells that are answered so far. Who calls it does not count as hanging.
        share: which share of what a run may do (requests a minute, a budget) this worker has: 1 / workers.
        failures: ``{(row, column): reason}``: cells that have no answer, though their row can be processed. Rows are positions
            in the batch. They become failure cells; that is no fault of the input (:class:`InputFailure`).
        unasked: ``(row, column)`` of wanted cells that were not computed. They stay empty.
        counts: what a run adds up, by name: requests, tokens, a price.
        recorded: what the commit record keeps beside :meth:`Stage.provenance`: how a server calls its model.
        waited: seconds in which ``compute`` only waited for somebody else's answer.
        end: why no further cell can be computed. What is computed is committed, then the run stops with this line.
    """

    wanted: np.ndarray | None = None
    stopped: Callable[[], bool] = bool
    heard: Callable[[int], None] = lambda _: None
    share: float = 1.0
    failures: dict[tuple[int, str], str] = field(default_factory=dict)
    unasked: set[tuple[int, str]] = field(default_factory=set)
    counts: dict[str, float] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    waited: float = 0.0
    end: str = ""


@dataclass
class Batch:
    """The rows of one forward pass.

    Attributes:
        row_ids: ``V16 [B]`` digests of the images or texts. The batch is padded to the stage's ``batch_size``: its last
            row is repeated. So the shape of a forward never depends on which cells are empty.
        keys: the dataset's names of the B rows (image ids). They find the records that come with a row.
        count: how many rows are real; the others are padding.
        images: decoded RGB images where ``source == "images"`` and ``decodes``, else empty.
        ahead: what :meth:`Stage.prepare` made of each image before the batch was put together; None where it was not asked.
            Empty where it was asked of no image.
        texts: the texts where ``source == "texts"``, else empty.
        memo: what the stages of one pass share, see :meth:`once`.
        turn: of the stage that computes this batch now.
    """

    row_ids: np.ndarray
    keys: Sequence[str]
    count: int
    images: Sequence[Image.Image] = ()
    ahead: Sequence[Any] = ()
    texts: Sequence[str] = ()
    memo: dict[Any, Any] = field(default_factory=dict)
    turn: Turn = field(default_factory=Turn)

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
    """The kind of table, e.g. ``itm``. It is the first part of the folder's name."""
    version: ClassVar[int] = 1
    """Part of the fingerprint. Raise it by hand when the values change meaning."""
    source: ClassVar[Literal["images", "texts"]] = "images"
    decodes: ClassVar[bool] = True
    """Whether ``compute`` looks at the images. False for a stage that reads only its input tables."""

    is_served: ClassVar[bool] = False
    """Whether ``compute`` asks a server, which counts requests and may cost money."""

    columns: tuple[str, ...]
    """The questions put to the teacher. One column named ``value`` where there is nothing to ask."""
    output: ArrowOutput | TensorOutput
    inputs: tuple[str, ...] = ()
    """Names (in the configuration) of the upstream tables."""
    batch_size: int = 32
    vision_key: str | None = None
    """The digest of the vision tower and its preprocessing. Stages of equal keys run in one pass over the images."""
    resources: Resources = Resources()

    @property
    def pending(self) -> bool:
        """Whether the stage still waits for what its answers depend on. A pending stage has no fingerprint."""
        return False

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The JSON record that names the table, together with the stage's name, version and output.

        It holds the digest of the teacher, preprocessing, image backend and numerics. It never holds columns, paths, batch
        sizes or devices.
        """

    def provenance(self) -> dict[str, Any]:
        """What is worth recording beside the fingerprint but changes no value: paths, model names."""
        return {}

    def source_digests(self, keys: Sequence[str]) -> np.ndarray | None:  # noqa: ARG002 - a stage that overrides it reads it
        """Digests of the records outside the cache (a line of a detections file, an annotation) that each row depends on.

        They enter the input digests of the cells.

        Args:
            keys: the dataset's names of N rows.

        Returns:
            ``uint64 [N]``, or None where the stage reads no such records.
        """
        return None

    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]] | None:  # noqa: ARG002 - a stage that overrides it reads it
        """The upstream columns that one column is computed from.

        Returns:
            ``{table: (column, ...)}``; None means all columns of all inputs. If every column returns ``{}``, the inputs
            serve :meth:`select_cells` alone and no cell depends on them.
        """
        return None

    def selection_inputs(self, column: str) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002 - a stage that overrides it reads it
        """The upstream columns that :meth:`select_cells` reads to decide about one column, ``{table: (column, ...)}``."""
        return {}

    def select_cells(self, inputs: Mapping[str, Mapping[str, Values]]) -> np.ndarray | None:  # noqa: ARG002 - a stage that overrides it reads it
        """Which columns each row wants.

        Args:
            inputs: ``{table: {column: values of length B}}``, the upstream cells of B rows.

        Returns:
            ``bool [B, C]``; None means every column of every row.
        """
        return None

    def rehearse(self) -> None:  # noqa: B027 - most stages have nothing to look for
        """Look for what a run would stop at later, before anything is computed: a package or a variable that is missing.

        It is called where the command runs, on the stage before it is opened, if its table has an empty cell.

        Raises:
            UserError: it is missing.
        """

    @abstractmethod
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Load the models.

        Args:
            device: ``cpu`` or a torch device.
            shared: belongs to the worker. Stages keep loaded models here under their digest, so that stages of one tower
                load it once.
        """

    def prepare(self, image: Image.Image) -> Any:
        """What ``compute`` needs of one image and no model gives: an image processor's tensors. By default the image.

        A worker calls it ahead of ``compute``, in several threads at once, on the opened stage. Stages of equal
        ``vision_key`` prepare alike.

        Args:
            image: decoded, RGB.

        Returns:
            Anything but None, on the host.

        Raises:
            InputFailure: the image cannot be processed.
        """
        return image

    def prepared(self, batch: Batch) -> list[Any]:
        """What :meth:`prepare` makes of the B images of a batch; what was not made ahead is made now."""
        ahead = batch.ahead or [None] * batch.count
        made = [
            self.prepare(image) if each is None else each
            for image, each in zip(batch.images[: batch.count], ahead, strict=False)
        ]
        return made + made[-1:] * (len(batch.images) - len(made))

    @abstractmethod
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Answer ``columns`` for the B rows of the batch (padding included).

        Args:
            batch: the rows.
            columns: some of the stage's columns.
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
