"""The instances, pairs and annotated interactions of each image.

They are computed once for each image and kept in flat memory-mapped files. A training step only slices them, and memory does
not grow with the dataset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.ops.instances import HUMAN, associate, filter_detections, ordered_pairs
from hoi_distill.stages.student.data import NO_ANNOTATIONS
from hoi_distill.stages.student.files import kept
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.storage.digests import content_name_of

NO_POSITIVES = np.empty((0, 2), np.int32)
FLAT = {
    "boxes": ("<f4", 4), "scores": ("<f4", 0), "labels": ("<i2", 0), "positives": ("<i4", 2), "ignored": ("<i4", 2)
}  # fmt: skip
"""Files of a :class:`ImageTable`: dtype and row length of each, concatenated over images."""
COUNTED = {"boxes": 0, "scores": 0, "labels": 0, "positives": 1, "ignored": 2}
"""Which of the index's counts (instances, positives, ignored) is that of a file's rows."""


@dataclass(frozen=True)
class ImageInstances:
    """The instances of one image that enter pairs.

    Attributes:
        width: of the image, in pixels.
        height: of the image, in pixels.
        humans: how many instances, the first ones, are people.
        boxes: float32 ``[K, 4]`` xyxy pixels.
        scores: float32 ``[K]``.
        labels: int16 ``[K]`` object classes, COCO-80.
        positives: int32 ``[Q, 2]`` (pair, interaction), pairs counted as in :func:`ordered_pairs`.
        ignored: int32 ``[R, 2]`` (pair, interaction) that are neither positive nor negative.
    """

    width: int
    height: int
    humans: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    positives: np.ndarray
    ignored: np.ndarray = field(default_factory=NO_POSITIVES.copy)

    @property
    def pairs(self) -> np.ndarray:
        """int64 ``[P, 2]`` positions of human and object among the instances."""
        return ordered_pairs(self.humans, len(self.labels))


class DetectionsCell(TypedDict):
    """A cell of a detections table: D boxes of an image.

    Attributes:
        boxes: float ``[D, 4]`` xyxy pixels.
        scores: float ``[D]``.
        labels: int ``[D]`` object classes, COCO-80.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """

    boxes: npt.ArrayLike
    scores: npt.ArrayLike
    labels: npt.ArrayLike
    width: int
    height: int


def image_of(detections: DetectionsCell, config: PairsConfig) -> ImageInstances:
    """The instances of one image that enter pairs, without annotations."""
    boxes = np.asarray(detections["boxes"], np.float32).reshape(-1, 4)
    scores = np.asarray(detections["scores"], np.float32)
    labels = np.asarray(detections["labels"], np.int16)
    width, height = int(detections["width"]), int(detections["height"])
    boxes = box_ops.clip(boxes, width, height)
    kept = filter_detections(
        boxes,
        scores,
        labels,
        score_threshold=config.score_threshold,
        at_least=config.min_instances,
        at_most=config.max_instances,
        nms_iou=config.nms_iou,
    )
    labels = labels[kept]
    return ImageInstances(width, height, int((labels == HUMAN).sum()), boxes[kept], scores[kept], labels, NO_POSITIVES)


def with_annotations(
    image: ImageInstances,
    human: np.ndarray,
    object_: np.ndarray,
    hoi: np.ndarray,
    *,
    iou: float,
    dropped: tuple[np.ndarray, np.ndarray, np.ndarray] = NO_ANNOTATIONS,
) -> ImageInstances:
    """The image with its annotated pairs (float ``[G, 4]`` boxes, int ``[G]`` interactions) associated to its own.
    What would be a positive by the ``dropped`` ones alone (boxes and interactions likewise) is ignored."""
    i, j = image.pairs.T
    positives, ignored = (
        associate(image.boxes[i], image.boxes[j], *annotated, iou=iou).astype(np.int32)
        for annotated in ((human, object_, hoi), dropped)
    )
    known = (ignored[:, None] == positives).all(2).any(1)
    return replace(image, positives=positives, ignored=ignored[~known])


def jittered(image: ImageInstances, share: float, draw: np.random.Generator) -> ImageInstances:
    """The image with every edge of every box moved by a normal number times ``share`` of the box's side, inside the
    image; without annotations, which are to be associated anew."""
    corners = image.boxes.reshape(-1, 2, 2)
    moved = corners + draw.normal(0, share, corners.shape) * (corners[:, 1:] - corners[:, :1])
    boxes = np.sort(moved, 1).reshape(-1, 4).astype(np.float32)
    return replace(
        image, boxes=box_ops.clip(boxes, image.width, image.height), positives=NO_POSITIVES, ignored=NO_POSITIVES
    )


def gather(images: Sequence[ImageInstances], maps: Tensor, mirrored: np.ndarray | None = None) -> Regions:
    """Several images and their maps ``[B, C, h, w]`` as one batch; ``mirrored`` (bool ``[B]``): flip boxes."""
    counts = np.array([len(image.labels) for image in images], np.int64)
    starts = np.cumsum(counts) - counts
    boxes = [image.boxes for image in images]
    if mirrored is not None:
        boxes = [
            box_ops.flip(image.boxes, image.width) if flip else image.boxes
            for image, flip in zip(images, mirrored, strict=True)
        ]
    return Regions(
        maps=maps,
        size=torch.tensor([(image.width, image.height) for image in images], dtype=torch.float32),
        image=torch.from_numpy(np.repeat(np.arange(len(images)), counts)),
        boxes=torch.from_numpy(np.concatenate(boxes)),
        labels=torch.from_numpy(np.concatenate([image.labels for image in images]).astype(np.int64)),
        scores=torch.from_numpy(np.concatenate([image.scores for image in images])),
        pairs=torch.from_numpy(
            np.concatenate([image.pairs + start for image, start in zip(images, starts, strict=True)])
        ),
    )


def targets(images: Sequence[ImageInstances], interactions: int) -> Tensor:
    """float32 ``[P, H]``: 1 where a pair of the batch is annotated with a class; NaN where that is to be ignored."""
    counts = np.array([len(image.pairs) for image in images], np.int64)
    dense = torch.zeros(int(counts.sum()), interactions)
    for image, start in zip(images, np.cumsum(counts) - counts, strict=True):
        for rows, value in ((image.positives, 1.0), (image.ignored, torch.nan)):
            pair, hoi = torch.from_numpy(rows.astype(np.int64)).T
            dense[pair + int(start), hoi] = value
    return dense


def index_of(image: ImageInstances) -> tuple[int, ...]:
    """(width, height, humans, instances, positives, ignored) of an image."""
    counts = len(image.labels), len(image.positives), len(image.ignored)
    return image.width, image.height, image.humans, *counts


class ImageTable:
    """The images of a training set, in memory or in a folder of flat files that are memory-mapped.

    Args:
        index: int32 ``[N, 6]`` (width, height, humans, instances, positives, ignored); zeros for an image without
            detections.
        flat: the arrays of all images by name, one image's after another's.

    Raises:
        ValueError: an array has not as many rows as the index says.
    """

    def __init__(self, index: np.ndarray, flat: Mapping[str, np.ndarray]) -> None:
        self.index, self._flat = index, flat
        ends = np.cumsum(index[:, 3:6], 0, dtype=np.int64)
        self._starts = np.concatenate((np.zeros((1, 3), np.int64), ends))
        for name, values in flat.items():
            if len(values) != self._starts[-1, COUNTED[name]]:
                raise ValueError(f"{name} has {len(values)} rows")

    @classmethod
    def open(cls, folder: Path) -> ImageTable:
        """The table of a folder."""
        flat = {}
        for name, (dtype, length) in FLAT.items():
            empty = (folder / name).stat().st_size == 0
            values = np.empty(0, dtype) if empty else np.memmap(folder / name, dtype, "r")
            flat[name] = values.reshape(-1, length) if length else values
        return cls(np.load(folder / "index.npy", mmap_mode="r"), flat)

    @classmethod
    def of(cls, count: int, images: Iterable[tuple[int, ImageInstances]]) -> ImageTable:
        """A table in memory of ``count`` images, from (row, image) in rising order of rows; rows may be missing."""
        index, parts = np.zeros((count, 6), np.int32), list(images)
        for row, image in parts:
            index[row] = index_of(image)
        flat = {}
        for name, (dtype, length) in FLAT.items():
            empty = np.empty((0, length) if length else 0, dtype)
            flat[name] = np.concatenate([empty, *(getattr(image, name).astype(dtype) for _, image in parts)])
        return cls(index, flat)

    @classmethod
    def open_or_build(cls, folder: Path, count: int, images: Iterable[tuple[int, ImageInstances]]) -> ImageTable:
        """Open ``folder``, or build it from (row, image) in rising order of rows; rows may be missing. One that lacks a
        file, as those of older versions do, is built anew."""

        def read(place: Path) -> ImageTable:
            table = cls.open(place)
            if len(table) != count:
                raise ValueError(f"{len(table)} images instead of {count}")
            return table

        def build(draft: Path) -> None:
            draft.mkdir()
            index = np.zeros((count, 6), np.int32)
            with contextlib.ExitStack() as stack:
                files = {name: stack.enter_context(open(draft / name, "wb")) for name in FLAT}
                for row, image in images:
                    index[row] = index_of(image)
                    for name, (dtype, _) in FLAT.items():
                        files[name].write(getattr(image, name).astype(dtype).tobytes())
            np.save(draft / "index.npy", index)

        return kept(folder, read, build)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> ImageInstances:
        width, height, humans = (int(value) for value in self.index[row, :3])
        own, positive, ignored = (slice(*ends) for ends in zip(self._starts[row], self._starts[row + 1], strict=True))
        return ImageInstances(
            width,
            height,
            humans,
            np.array(self._flat["boxes"][own]),
            np.array(self._flat["scores"][own]),
            np.array(self._flat["labels"][own]),
            np.array(self._flat["positives"][positive]),
            np.array(self._flat["ignored"][ignored]),
        )

    def digest(self) -> str:
        """Names the boxes and labels of all images."""
        arrays = (np.ascontiguousarray(self.index[:, :4]), self._flat["boxes"], self._flat["labels"])
        return content_name_of((array.tobytes() for array in arrays), 6)

    def usable(self) -> np.ndarray:
        """bool ``[N]``: whether the image has a pair."""
        return (self.index[:, 2] >= 1) & (self.index[:, 3] >= 2)

    def shown_objects(self, objects: int) -> np.ndarray:
        """bool ``[N, objects]``: which classes are the object of some pair (a person is, from two people on)."""
        shown = np.zeros((len(self), objects), bool)
        row = np.repeat(np.arange(len(self)), self.index[:, 3])
        shown[row, self._flat["labels"]] = True
        shown[:, HUMAN] = self.index[:, 2] >= 2
        return shown & self.usable()[:, None]
