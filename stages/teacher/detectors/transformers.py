"""Detectors of the DETR family from transformers: the best boxes of every image, thresholds left to the consumer.

A cell is that of :mod:`hoi_distill.stages.teacher.detectors.given`: boxes in pixels of the original image, labels in
COCO-80 order, best score first. Images are preprocessed one by one and go through the network with others of their
own preprocessed size only, so nothing is padded to a neighbour's size and an image's boxes do not depend on its batch
beyond rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.batching import BatchSize, PartSize, canonical, in_parts, measured_rows, part_size
from hoi_distill.stages.checkpoints import timm_state_dict as timm_backbone
from hoi_distill.stages.checkpoints.weight_files import weight_files
from hoi_distill.stages.data.coco import COCO_OBJECTS, OBJECT_INDEX
from hoi_distill.stages.keys import GpuShare
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.stage import ArrowOutput, Batch, Dtype, Resources, Stage, Values
from hoi_distill.stages.teacher.detectors.given import DETECTIONS, TOP
from hoi_distill.stages.teacher.preprocessing import ImageTensors, joined, preprocess
from hoi_distill.stages.teacher.weights import CheckpointKey, image_processor, load
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

Answer = TypeVar("Answer")

SCORES: dict[str, Literal["softmax", "sigmoid"]] = {
    "DetrForObjectDetection": "softmax",
    "DilatedDetr": "softmax",
    "ConditionalDetrForObjectDetection": "sigmoid",
    "DeformableDetrForObjectDetection": "sigmoid",
    "MixedSelectionDeformableDetr": "sigmoid",
    "RTDetrForObjectDetection": "sigmoid",
    "RTDetrV2ForObjectDetection": "sigmoid",
}
"""The classes that are taken. ``softmax``: over the classes and "no object", one label a query. ``sigmoid``: each class
by itself, every (query, class) a candidate."""
NOT_OBJECTS = ("n/a", "background", "__background__")
"""Class names that stand for nothing: COCO's official ids leave ten numbers unused."""
OTHER_NAMES = {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "pottedplant": "potted_plant",
    "diningtable": "dining_table", "tvmonitor": "tv", "television": "tv", "hair_dryer": "hair_drier",
}  # fmt: skip
"""Spellings of COCO's objects in published checkpoints."""


class Detector(Stage):
    """Boxes by a DETR, Conditional-DETR, Deformable-DETR (H-Deformable-DETR too) or RT-DETR (v1, v2) checkpoint, timm backbones
    included."""

    name = "detections"
    columns = ("value",)
    architectures: ClassVar[tuple[str, ...]] = tuple(SCORES)
    example: ClassVar[str] = "facebook/detr-resnet-50"

    class Config(Stage.Config):
        checkpoint: CheckpointKey
        """A folder, a hub id, or ``{id, revision}``."""
        states: bool = False
        """Also keep each box's decoder state (the decoder's last hidden state, float16), as a student may attend to it;
        the cell then has a field ``states``."""
        unknown_labels: Literal["refuse", "drop"] = "refuse"
        """What becomes of classes outside COCO's 80: refuse the checkpoint, or drop their boxes."""
        hico_tuned: bool = False
        """The weights were fine-tuned on HICO-DET's boxes. Recorded in the table's provenance, so that results can say
        so; the weights' digest alone decides which table it is."""
        dtype: Dtype = "float32"
        """Of weights and arithmetic; part of the fingerprint."""
        batch_size: BatchSize = 32
        """Images that are looked at together, those of one preprocessed size in one forward; or ``auto``: as many as
        the GPU's memory holds. Where memory runs out, the forward is halved and the run goes on."""
        gpus: GpuShare = 0.0
        """Share of a GPU that one worker occupies."""

    def __init__(self, config: Config) -> None:
        checkpoint, states = config.checkpoint, config.states
        if checkpoint.architecture not in SCORES:
            raise UserError(
                f"{checkpoint.folder}: {checkpoint.architecture} is no detector known here; there are {', '.join(SCORES)}"
            )
        if checkpoint.config.get("use_focal_loss") is False:
            raise UserError(f"{checkpoint.folder}: an RT-DETR trained with softmax scores cannot be read")
        checkpoint.require_preprocessing()
        self.labels, self.dropped = label_map(checkpoint.config, f"{checkpoint.folder}/config.json")
        if self.dropped and config.unknown_labels == "refuse":
            raise UserError(
                f"{checkpoint.folder}/config.json: id2label names no COCO objects: {', '.join(self.dropped[:8])}"
                f"{', ...' if len(self.dropped) > 8 else ''}; correct the names or set unknown_labels: drop"
            )
        self.translated = timm_backbone.replaced(
            checkpoint.config,
            f"{checkpoint.folder}/config.json",
            dilates=checkpoint.architecture == "DetrForObjectDetection",
        )
        self.checkpoint, self.dtype, self.hico_tuned, self.states = checkpoint, config.dtype, config.hico_tuned, states
        self.chosen_batch = config.batch_size
        self.batch_size, self.resources = canonical(config.batch_size), Resources(gpus=config.gpus)
        self.output = ArrowOutput(cell_type(checkpoint.number(checkpoint.config, "d_model", 256) if states else None))

    @override
    def parameters(self) -> dict[str, Any]:
        return {
            "detector": self.checkpoint.digest,
            "image_backend": "pil",
            "dtype": self.dtype,
            "top": TOP,
            "dropped_labels": list(self.dropped),
        }

    @override
    def provenance(self) -> dict[str, Any]:
        return {**self.checkpoint.provenance(), "hico_tuned": self.hico_tuned}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        key = ("detector", self.checkpoint.digest, self.dtype, device)
        if key not in shared:
            folder = self.checkpoint.here()
            with warnings.catch_warnings():  # what RT-DETR says of widths that are no power of 2 is about its speed
                warnings.filterwarnings("ignore", message="You'd better set embed_dim")
                model = load(self.checkpoint, folder, self.dtype, device, **self._translation(folder))
            shared[key] = model, image_processor(folder)
        self.model, self.processor = shared[key]
        self.rows = part_size(shared, key, self.chosen_batch)
        self.device = device

    @override
    def __getstate__(self) -> dict[str, Any]:
        """The plain parameters: what :meth:`open` loaded stays on its worker."""
        return {
            key: value for key, value in self.__dict__.items() if key not in ("model", "processor", "rows", "device")
        }

    @override
    def prepare(self, image: Image.Image) -> ImageTensors:
        return preprocess(self.processor, image, self.device)

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        import torch

        images = batch.images
        pixels = self.prepared(batch)  # the padding too: a forward's shape must not depend on what is missing
        found: list[tuple[np.ndarray, ...]] = [()] * len(images)
        with torch.inference_mode():
            for members in of_one_size(pixels):
                answers = self._in_parts([pixels[index] for index in members])
                for index, answer in zip(members, answers, strict=True):
                    found[index] = self._cell(images[index].size, *answer)
        return {"value": cells(found, [image.size for image in images], self.output.type)}  # type: ignore[union-attr]

    def _translation(self, folder: Path) -> dict[str, Any]:
        """What a checkpoint around one of timm's backbones is loaded with; nothing for all others."""
        if self.translated is None:
            return {}
        from transformers import CONFIG_MAPPING

        config = CONFIG_MAPPING[self.translated["model_type"]].from_dict(self.translated)
        translation = {"config": config, "state_dict": timm_backbone.read(weight_files(folder).files)}
        if not timm_backbone.dilated(self.checkpoint.config):
            return translation
        from hoi_distill.stages.checkpoints.dilated import DilatedDetr

        return {**translation, "make": DilatedDetr}

    def _in_parts(self, pixels: Sequence[ImageTensors]) -> list[tuple[np.ndarray, ...]]:
        """:meth:`_detect`'s answer for each of these images of one size, in forwards that memory holds."""

        def forward(positions: np.ndarray) -> list[tuple[np.ndarray, ...]]:
            return list(zip(*self._detect([pixels[position] for position in positions]), strict=True))

        return group_in_parts(forward, len(pixels), self.rows, self.device)

    def _detect(self, pixels: Sequence[ImageTensors]) -> tuple[np.ndarray, ...]:
        """:meth:`best` of images of one size, as arrays."""
        arrays = tuple(part.cpu().numpy() for part in self.best(joined(pixels, self.device, self.model.dtype)))
        if not all(np.isfinite(part).all() for part in arrays):
            raise FloatingPointError(f"table {self.name}: the detector's answers are not finite at dtype {self.dtype}")
        return arrays

    def best(self, pixels: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The :data:`TOP` best boxes of each of B images, on the device.

        Args:
            pixels: the model's arguments, of images of one size.

        Returns:
            Scores float ``[B, K]``, COCO-80 labels int64 ``[B, K]``, boxes float ``[B, K, 4]`` (cxcywh fractions) and, where
            states are kept, float16 ``[B, K, D]``; best first.
        """
        import torch

        out = self.model(**pixels)
        known = torch.tensor(list(self.labels), device=self.device)
        names = torch.tensor(list(self.labels.values()), device=self.device)
        logits = out.logits.float()
        if SCORES[self.checkpoint.architecture] == "softmax":
            scores, best = logits.softmax(-1)[..., known].max(-1)
            labels = names[best]
            query = torch.arange(scores.shape[1], device=self.device).expand_as(scores)
        else:
            scores = logits.sigmoid()[..., known].flatten(1)
            labels = names.repeat(logits.shape[1]).expand_as(scores)
            query = torch.arange(scores.shape[1], device=self.device).div(len(known), rounding_mode="floor")
            query = query.expand_as(scores)
        scores, order = (part[:, :TOP] for part in scores.sort(dim=1, descending=True, stable=True))
        labels, query = labels.gather(1, order), query.gather(1, order)
        kept = [scores, labels, out.pred_boxes.float().gather(1, query[..., None].expand(-1, -1, 4))]
        if self.states:
            states = out.last_hidden_state
            kept.append(states.gather(1, query[..., None].expand(-1, -1, states.shape[2])).half())
        return tuple(kept)

    def _cell(
        self, size: tuple[int, int], scores: np.ndarray, labels: np.ndarray, boxes: np.ndarray, *states: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """One image of ``size`` (width, height): boxes in its pixels; those that lie outside it are left out."""
        xyxy = box_ops.clip(box_ops.cxcywh_to_xyxy(boxes) * np.tile(np.array(size, np.float32), 2), *size)
        inside = box_ops.area(xyxy) > 0
        return tuple(part[inside] for part in (xyxy, scores, labels, *states))


def of_one_size(pixels: Sequence[ImageTensors]) -> list[list[int]]:
    """Positions of the images that share a preprocessed size, size by size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, each in enumerate(pixels):
        groups.setdefault(tuple(each["pixel_values"].shape), []).append(index)
    return list(groups.values())


def group_in_parts(
    forward: Callable[[np.ndarray], list[Answer]], count: int, size: PartSize, device: str
) -> list[Answer]:
    """:func:`hoi_distill.stages.batching.in_parts` for images of one size, of which there may be fewer than
    ``size.row_count``."""
    if size.row_count is None:
        size.row_count = measured_rows(forward, device)
    tried = PartSize(most := min(size.row_count, count))
    parts = in_parts(forward, count, tried, device)
    if tried.row_count != most:
        size.row_count = tried.row_count
    return list(chain.from_iterable(parts))


def label_map(
    config: Mapping[str, Any], where: str, objects: Sequence[str] = COCO_OBJECTS
) -> tuple[dict[int, int], tuple[str, ...]]:
    """``{class of the detector: index}``, by the names in ``id2label``, and the names that are no such objects.

    Args:
        config: has ``id2label``.
        where: its file, for messages.
        objects: O names; default: COCO's 80.

    Raises:
        UserError: no class is one of them, or two classes are the same one.
    """
    known = OBJECT_INDEX if objects == COCO_OBJECTS else {name: index for index, name in enumerate(objects)}
    found: dict[int, int] = {}
    unknown: list[str] = []
    classes = config.get("id2label") or {}
    if not isinstance(classes, dict) or not all(str(key).isdigit() for key in classes):
        raise UserError(f"{where}: id2label gives no names to class numbers; fetch it again")
    for key, name in classes.items():
        plain = str(name).strip().lower().replace(" ", "_")
        index = known.get(plain, known.get(OTHER_NAMES.get(plain, plain)))
        if index is not None:
            if index in found.values():
                raise UserError(f"{where}: id2label names '{name}' twice; each object needs one class")
            found[int(key)] = index
        elif plain not in NOT_OBJECTS:
            unknown.append(str(name))
    if not found:
        whose = "COCO's 80" if objects == COCO_OBJECTS else "the vocabulary's"
        raise UserError(f"{where}: id2label names none of {whose} objects; write the classes' names into it")
    return dict(sorted(found.items())), tuple(sorted(unknown))


def cell_type(states: int | None) -> pa.DataType:
    """:data:`DETECTIONS`, with a list of float16 vectors of ``states`` channels where states are kept."""
    if states is None:
        return DETECTIONS
    return pa.struct([*DETECTIONS, pa.field("states", pa.list_(pa.list_(pa.float16(), states)))])


def cells(found: Sequence[Sequence[np.ndarray]], sizes: Sequence[tuple[int, int]], form: pa.DataType) -> pa.Array:
    """Cells of an Arrow type, one an image.

    Args:
        found: For each image boxes ``[K, 4]``, scores ``[K]``, labels ``[K]`` and, if the type has them, states
            ``[K, D]``.
        sizes: (width, height) of each image.
        form: The type, see :func:`cell_type`.
    """
    offsets = pa.array(np.cumsum([0, *(len(each[0]) for each in found)]), pa.int32())
    dtypes = (np.float32, np.float32, np.int16, np.float16)
    columns = []
    for dtype, *parts in zip(dtypes, *found, strict=False):
        joined = np.concatenate(parts).astype(dtype)
        flat = pa.array(joined.reshape(-1))
        columns.append(flat if joined.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, joined.shape[1]))
    lists = [pa.ListArray.from_arrays(offsets, column) for column in columns]
    sides = [pa.array([size[axis] for size in sizes], pa.int32()) for axis in (0, 1)]
    return pa.StructArray.from_arrays([*lists[:3], *sides, *lists[3:]], fields=list(form))
