"""The instances, pairs and annotated interactions of each image.

They are computed once for each image and kept in flat memory-mapped files. A training step only slices them, and memory does
not grow with the dataset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.student.data import NO_ANNOTATIONS
from hoi_distill.stages.student.files import kept
from hoi_distill.stages.student.pairs.candidates import HUMAN, associate, filter_detections, ordered_pairs
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.storage.digests import content_name_of

NO_POSITIVES = np.empty((0, 2), np.int32)
FLAT = {
    "boxes": ("<f4", 4), "scores": ("<f4", 0), "labels": ("<i2", 0), "positives": ("<i4", 2), "ignored": ("<i4", 2)
}  # fmt: skip
"""Files of a :class:`PictureTable`: dtype and row length of each, concatenated over pictures."""
COUNTED = {"boxes": 0, "scores": 0, "labels": 0, "positives": 1, "ignored": 2}
"""Which of the index's counts (instances, positives, ignored) is that of a file's rows."""


@dataclass(frozen=True)
class Picture:
    """The instances of one picture that enter pairs.

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


def picture_of(detections: DetectionsCell, config: PairsConfig) -> Picture:
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
    return Picture(width, height, int((labels == HUMAN).sum()), boxes[kept], scores[kept], labels, NO_POSITIVES)


def with_annotations(
    picture: Picture,
    human: np.ndarray,
    object_: np.ndarray,
    hoi: np.ndarray,
    *,
    iou: float,
    dropped: tuple[np.ndarray, np.ndarray, np.ndarray] = NO_ANNOTATIONS,
) -> Picture:
    """The picture with its annotated pairs (float ``[G, 4]`` boxes, int ``[G]`` interactions) associated to its own.
    What would be a positive by the ``dropped`` ones alone (boxes and interactions likewise) is ignored."""
    i, j = picture.pairs.T
    positives, ignored = (
        associate(picture.boxes[i], picture.boxes[j], *annotated, iou=iou).astype(np.int32)
        for annotated in ((human, object_, hoi), dropped)
    )
    known = (ignored[:, None] == positives).all(2).any(1)
    return replace(picture, positives=positives, ignored=ignored[~known])


def jittered(picture: Picture, share: float, draw: np.random.Generator) -> Picture:
    """The picture with every edge of every box moved by a normal number times ``share`` of the box's side, inside the
    picture; without annotations, which are to be associated anew."""
    corners = picture.boxes.reshape(-1, 2, 2)
    moved = corners + draw.normal(0, share, corners.shape) * (corners[:, 1:] - corners[:, :1])
    boxes = np.sort(moved, 1).reshape(-1, 4).astype(np.float32)
    return replace(
        picture, boxes=box_ops.clip(boxes, picture.width, picture.height), positives=NO_POSITIVES, ignored=NO_POSITIVES
    )


def gather(pictures: Sequence[Picture], maps: Tensor, mirrored: np.ndarray | None = None) -> Regions:
    """Several pictures and their maps ``[B, C, h, w]`` as one batch; ``mirrored`` (bool ``[B]``): flip boxes."""
    counts = np.array([len(picture.labels) for picture in pictures], np.int64)
    starts = np.cumsum(counts) - counts
    boxes = [picture.boxes for picture in pictures]
    if mirrored is not None:
        boxes = [
            box_ops.flip(picture.boxes, picture.width) if flip else picture.boxes
            for picture, flip in zip(pictures, mirrored, strict=True)
        ]
    return Regions(
        maps=maps,
        size=torch.tensor([(picture.width, picture.height) for picture in pictures], dtype=torch.float32),
        picture=torch.from_numpy(np.repeat(np.arange(len(pictures)), counts)),
        boxes=torch.from_numpy(np.concatenate(boxes)),
        labels=torch.from_numpy(np.concatenate([picture.labels for picture in pictures]).astype(np.int64)),
        scores=torch.from_numpy(np.concatenate([picture.scores for picture in pictures])),
        pairs=torch.from_numpy(
            np.concatenate([picture.pairs + start for picture, start in zip(pictures, starts, strict=True)])
        ),
    )


def targets(pictures: Sequence[Picture], interactions: int) -> Tensor:
    """float32 ``[P, H]``: 1 where a pair of the batch is annotated with a class; NaN where that is to be ignored."""
    counts = np.array([len(picture.pairs) for picture in pictures], np.int64)
    dense = torch.zeros(int(counts.sum()), interactions)
    for picture, start in zip(pictures, np.cumsum(counts) - counts, strict=True):
        for rows, value in ((picture.positives, 1.0), (picture.ignored, torch.nan)):
            pair, hoi = torch.from_numpy(rows.astype(np.int64)).T
            dense[pair + int(start), hoi] = value
    return dense


class PictureTable:
    """The pictures of a training set in a folder of flat files, memory-mapped.

    Attributes:
        index: int32 ``[N, 6]`` (width, height, humans, instances, positives, ignored); zeros for a picture without
            detections.
    """

    def __init__(self, folder: Path) -> None:
        self.index = np.load(folder / "index.npy", mmap_mode="r")
        ends = np.cumsum(self.index[:, 3:6], 0, dtype=np.int64)
        self._starts = np.concatenate((np.zeros((1, 3), np.int64), ends))
        self._flat = {}
        for name, (dtype, length) in FLAT.items():
            empty = (folder / name).stat().st_size == 0
            flat = np.empty(0, dtype) if empty else np.memmap(folder / name, dtype, "r")
            self._flat[name] = flat.reshape(-1, length) if length else flat
            if len(self._flat[name]) != self._starts[-1, COUNTED[name]]:
                raise ValueError(f"{name} has {len(self._flat[name])} rows")

    @classmethod
    def open_or_build(cls, folder: Path, count: int, pictures: Iterable[tuple[int, Picture]]) -> PictureTable:
        """Open ``folder``, or build it from (row, picture) in rising order of rows; rows may be missing. One that lacks a
        file, as those of older versions do, is built anew."""

        def read(place: Path) -> PictureTable:
            table = cls(place)
            if len(table) != count:
                raise ValueError(f"{len(table)} pictures instead of {count}")
            return table

        def build(draft: Path) -> None:
            draft.mkdir()
            index = np.zeros((count, 6), np.int32)
            with contextlib.ExitStack() as stack:
                files = {name: stack.enter_context(open(draft / name, "wb")) for name in FLAT}
                for row, picture in pictures:
                    counts = len(picture.labels), len(picture.positives), len(picture.ignored)
                    index[row] = picture.width, picture.height, picture.humans, *counts
                    for name, (dtype, _) in FLAT.items():
                        files[name].write(getattr(picture, name).astype(dtype).tobytes())
            np.save(draft / "index.npy", index)

        return kept(folder, read, build)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Picture:
        width, height, humans = (int(value) for value in self.index[row, :3])
        own, positive, ignored = (slice(*ends) for ends in zip(self._starts[row], self._starts[row + 1], strict=True))
        return Picture(
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
