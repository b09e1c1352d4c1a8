"""Outputs of a phase-1 pair teacher, a LINK network that was trained on the annotations.

Two stages keep the outputs of :class:`hoi_distill.stages.student.methods.link.pair_teacher.PairTeacher`, from which students are
distilled: :class:`LinkPairs` the logits of its pairs and its queries, :class:`LinkMaps` its latent maps. They read cached
detections and feature maps, never an image, and share one forward pass. It is computed in float32; an image's outputs do not
depend on its neighbours beyond rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.batching import BatchSize, canonical, in_parts, part_size
from hoi_distill.stages.keys import GpuShare, PairTeacherKey, Views
from hoi_distill.stages.stage import VIEWS, ArrowOutput, Batch, Codec, Resources, Stage, TensorOutput, Values
from hoi_distill.storage.digests import fingerprint
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.address import Place
from hoi_distill.storage.shards.cells import cells
from hoi_distill.storage.shared_folder import on_this_machine

if TYPE_CHECKING:
    from hoi_distill.stages.student.methods.link.pair_teacher import Answer

HALVES = pa.list_(pa.float16())
PAIRS = pa.struct(
    [
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("labels", pa.list_(pa.int16())),
        ("humans", pa.int32()),
        ("entries", HALVES),
        ("unary", HALVES),
        ("unary_layers", pa.int32()),
        ("unary_width", pa.int32()),
        ("pairs", HALVES),
        ("pairs_layers", pa.int32()),
        ("pairs_width", pa.int32()),
    ]
)
"""A cell of :class:`LinkPairs`: a
:class:`~hoi_distill.stages.student.pairs.supervision.dense_distillation.PairTeacherCell`."""


@dataclass(frozen=True)
class TrainedTeacher:
    """A phase-1 teacher of the configuration.

    Attributes:
        name: the configuration's name for it.
        detections: the table of boxes that it reads.
        features: the table of feature maps that it reads.
        width: channels of its latent map.
        grid: (h, w) of the feature maps.
        training: the fingerprint of its training; None while that is not known.
        checkpoint: the folder of the trained student, which may lie in an object store; None while that is not known.
    """

    name: str
    detections: str
    features: str
    width: int
    grid: tuple[int, int]
    training: str | None = None
    checkpoint: Place | None = None


class LinkStage(Stage):
    """What both tables of a pair teacher have in common. Columns are views of the image."""

    decodes = False
    agreed: ClassVar[tuple[str, ...]] = ()
    """Keys of the student's section that the teacher and whoever reads the table must have alike."""

    class Config(Stage.Config):
        teacher: PairTeacherKey
        """A network of ``pair_teachers:``."""
        columns: Views = VIEWS
        """Views of the image; the teacher's feature table needs the same."""
        batch_size: BatchSize = 32
        """Images per forward, or ``auto``: as many as the GPU's memory holds."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        self.teacher: TrainedTeacher = config.teacher
        self.columns = config.columns
        self.inputs = (self.teacher.detections, self.teacher.features)
        self.chosen_batch, self.batch_size = config.batch_size, canonical(config.batch_size)
        self.resources = Resources(gpus=config.gpus)
        self.vision_key = self._pass()

    def _pass(self) -> str:
        who = self.teacher.training or f"untrained {self.teacher.name}"
        return fingerprint({"pair_teacher": who, "reads": self.inputs})

    @property
    @override
    def pending(self) -> bool:
        return self.teacher.training is None

    def resolved(self, training: str, checkpoint: Place) -> Stage:
        """This stage of a teacher whose training has a fingerprint by now, and a place."""
        stage = copy.copy(self)
        stage.teacher = replace(self.teacher, training=training, checkpoint=checkpoint)
        stage.vision_key = stage._pass()
        return stage

    @override
    def parameters(self) -> dict[str, Any]:
        return {"teacher": self.teacher.training, "dtype": "float32"}

    @override
    def provenance(self) -> dict[str, Any]:
        return {"pair_teacher": self.teacher.name, "checkpoint": str(self.teacher.checkpoint)}

    @override
    def dependencies(self, column: str) -> Mapping[str, tuple[str, ...]]:
        return {self.teacher.detections: ("value",), self.teacher.features: (column,)}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("network", "device", "rows")}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        from hoi_distill.stages.student.methods.link.pair_teacher import PairTeacher

        if self.teacher.checkpoint is None:
            raise UserError(f"table {self.name}: its teacher {self.teacher.name} is not trained yet")
        key = ("pair teacher", self.teacher.training, device)
        if key not in shared:
            shared[key] = PairTeacher.load(on_this_machine(self.teacher.checkpoint), device)
        self.network, self.device = shared[key], device
        self.rows = part_size(shared, key, self.chosen_batch)

    def answers(self, batch: Batch, view: str, inputs: Mapping[str, Mapping[str, Values]]) -> list[Answer]:
        """The teacher's answers to the batch's rows, padding included; once where both tables want the same rows."""
        detections = inputs[self.teacher.detections]["value"]
        maps = np.asarray(inputs[self.teacher.features][view])
        found = cells(detections)

        def forward(positions: np.ndarray) -> list[Answer]:
            boxes = [found(position) for position in positions.tolist()]
            return self.network.answer(boxes, maps[positions], view == "flip")

        def ask() -> list[Answer]:
            answers = list(chain.from_iterable(in_parts(forward, batch.count, self.rows, self.device)))
            return answers + answers[-1:] * (len(batch.row_ids) - len(answers))

        # A row that only the other table wants has no cells here, so the rows with cells are part of the key.
        masks = detections.is_valid().to_numpy(zero_copy_only=False), maps.reshape(len(maps), -1).any(1)
        present = b"".join(np.packbits(part).tobytes() for part in masks)
        return batch.once(("pair teacher", self.vision_key, view, present), ask)


class LinkPairs(LinkStage):
    """A pair teacher's outputs on every candidate: interaction logits, and the queries of instances and pairs."""

    name = "link_pairs"
    output = ArrowOutput(PAIRS)
    agreed = ("score_threshold", "min_instances", "max_instances", "nms_iou", "any_object")

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        return {view: arrow([answer.cell for answer in self.answers(batch, view, inputs)]) for view in columns}


class LinkMaps(LinkStage):
    """Latent maps of a pair teacher, ``[D, h, w]``: what its linking decoder attends to."""

    name = "link_maps"

    class Config(LinkStage.Config):
        codec: Codec = "fp16"
        """How maps are stored."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.output = TensorOutput((self.teacher.width, *self.teacher.grid), config.codec)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        return {view: np.stack([answer.latent for answer in self.answers(batch, view, inputs)]) for view in columns}


def arrow(answers: Sequence[Mapping[str, Any]]) -> pa.Array:
    """Cells of :data:`PAIRS`."""
    columns = []
    for field in PAIRS:
        values = [cell[field.name] for cell in answers]
        if not pa.types.is_list(field.type):
            columns.append(pa.array(values, field.type))
            continue
        items = pa.array(np.concatenate(values).reshape(-1))
        if pa.types.is_fixed_size_list(field.type.value_type):
            items = pa.FixedSizeListArray.from_arrays(items, field.type.value_type.list_size)
        offsets = pa.array(np.cumsum([0, *map(len, values)]), pa.int32())
        columns.append(pa.ListArray.from_arrays(offsets, items))
    return pa.StructArray.from_arrays(columns, fields=list(PAIRS))
