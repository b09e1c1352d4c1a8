"""The batch of every training step, a pure function of the step: images, their annotated pairs, the teacher's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.methods.vlm_hoi.augment import View, training_view
from hoi_distill.stages.student.methods.vlm_hoi.config import TransformConfig, VlmHoiConfig
from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import ItmScores, ItmTargets
from hoi_distill.stages.student.methods.vlm_hoi.matching import Targets
from hoi_distill.stages.student.training.loop import BatchSource
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.sampling import epoch_order


@dataclass
class ImageBatch:
    """One step's images: B of them, the first ``len(targets)`` with labels.

    Attributes:
        rows: int64 ``[B]`` rows of the training set.
        pixels: float32 ``[B, 3, H, W]``, normalised, 0 beyond each image.
        mask: bool ``[B, H, W]``, True inside.
        targets: the labelled images' pairs.
        labelled: the teacher's scores of the labelled images, where they are distilled.
        unlabelled: its scores of the other images, where they are distilled.
    """

    rows: Tensor
    pixels: Tensor
    mask: Tensor
    targets: list[Targets]
    labelled: ItmScores | None
    unlabelled: ItmScores | None


@dataclass(frozen=True)
class Pairs:
    """The annotated pairs of one image, one row for each distinct (human box, object box).

    Attributes:
        human: float32 ``[T, 4]`` xyxy pixels.
        object_: float32 ``[T, 4]`` xyxy pixels, all 0 where the object is not visible.
        objects: int64 ``[T]``, -1 where not visible.
        verbs: float32 ``[T, V]``, 0 or 1.
    """

    human: npt.NDArray[np.float32]
    object_: npt.NDArray[np.float32]
    objects: npt.NDArray[np.int64]
    verbs: npt.NDArray[np.float32]


def pairs_of(data: TrainingSet, row: int, merge_iou: float = 1.0) -> Pairs:
    """Annotated triplets of a row as pairs with several verbs. Pairs of one object class whose human and object boxes each
    overlap by at least ``merge_iou`` are one; the first's boxes stay."""
    records = data.annotations
    own = records.pairs(int(data.image[row]))
    human, object_ = records.human_box[own], records.object_box[own]
    objects = records.object[own].astype(np.int64)
    same = (objects[:, None] == objects) & (_overlap(human) >= merge_iou)
    same &= (_overlap(object_) >= merge_iou) | (objects < 0)
    first = np.arange(len(objects))
    for place in range(len(first)):  # a pair joins the first one like it that has not itself joined another
        alike = np.flatnonzero(same[place, :place] & (first[:place] == np.arange(place)))
        first[place] = alike[0] if len(alike) else place
    kept, group = np.unique(first, return_inverse=True)
    verbs = np.zeros((len(kept), len(data.vocabulary.verbs)), np.float32)
    verbs[group, records.verb[own]] = 1
    return Pairs(human[kept], object_[kept], objects[kept], verbs)


def _overlap(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """``[P, P]`` IoU, 1 for equal boxes even of no area."""
    equal = (boxes[:, None] == boxes).all(-1)
    return np.where(equal, 1, box_ops.iou_matrix(boxes, boxes))


def targets_of(pairs: Pairs, view: View, missing: int) -> Targets:
    """The pairs that are still to be seen in a view: those of which both boxes keep some area.

    Args:
        pairs: the pairs of an image.
        view: the view of it.
        missing: the class of an object that is not visible.
    """
    human, object_ = view.of_boxes(pairs.human), view.of_boxes(pairs.object_)
    nowhere = pairs.objects < 0
    object_[nowhere] = 0
    kept = (box_ops.area(human) > 0) & (nowhere | (box_ops.area(object_) > 0))
    thing = box_ops.xyxy_to_cxcywh(object_[kept])
    return Targets(
        torch.from_numpy(box_ops.xyxy_to_cxcywh(human[kept])),
        torch.from_numpy(thing),
        torch.from_numpy(np.where(nowhere, missing, pairs.objects)[kept]),
        torch.from_numpy(pairs.verbs[kept]),
    )


def in_frame(images: Sequence[np.ndarray], width: int, height: int, config: TransformConfig) -> tuple[Tensor, Tensor]:
    """uint8 ``[h, w, 3]`` each, normalised in the top left corner of a common frame: float32 ``[B, 3, height, width]``
    and bool ``[B, height, width]``."""
    pixels = torch.zeros(len(images), 3, height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.bool)
    mean, std = (torch.tensor(each)[:, None, None] for each in (config.mean, config.std))
    for place, image in enumerate(images):
        h, w = image.shape[:2]
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        pixels[place, :, :h, :w] = (values - mean) / std
        mask[place, :h, :w] = True
    return pixels, mask


class StepBatches(BatchSource[ImageBatch]):
    """``batches[step]`` is the whole batch of that step (of one rank): labelled images, then the others.

    Args:
        config: the method's parameters.
        data: the training set.
        missing: the class of an object that is not visible.
        labelled: the teacher's scores of labelled images, None where they are not distilled.
        unlabelled: the same of the other images.
        rank: number of the process, from 0.
        world: how many processes share a batch.

    Raises:
        UserError: no labelled image has a pair, or the images themselves are not there.
    """

    def __init__(
        self,
        config: VlmHoiConfig,
        data: TrainingSet,
        missing: int,
        *,
        labelled: ItmTargets | None,
        unlabelled: ItmTargets | None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if data.read is None:
            raise UserError("vlm_hoi: needs the images themselves")
        if world > config.labelled_per_step:
            raise UserError(f"student.labelled_per_step: {config.labelled_per_step} is fewer than {world} processes")
        self.config, self.data, self.missing, self.read = config, data, missing, data.read
        self.labelled, self.unlabelled, self.rank, self.world = labelled, unlabelled, rank, world
        annotated = np.diff(data.annotations.pair_offsets)[data.image] > 0
        self.labelled_pool = np.flatnonzero(data.labelled & annotated)
        self.unlabelled_pool = np.flatnonzero(~data.labelled) if unlabelled is not None else np.empty(0, np.int64)
        if not len(self.labelled_pool):
            raise UserError("nothing to train on: no labelled image has an annotated pair")

    @property
    def steps(self) -> int:
        """Of the whole training: the epochs, a begun step counts."""
        return int(np.ceil(self.config.epochs * len(self.labelled_pool) / self.config.labelled_per_step))

    @override
    def __len__(self) -> int:
        return self.steps

    @override
    def epochs(self, steps: int) -> float:
        """How often so many steps go through the labelled images."""
        return steps * self.config.labelled_per_step / len(self.labelled_pool)

    def drawn(self, step: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(row, epoch) of the labelled and of the other images of a step, of all ranks."""
        config = self.config
        return (
            take(self.labelled_pool, step, config.labelled_per_step, 2 * config.seed),
            take(self.unlabelled_pool, step, config.unlabelled_per_step, 2 * config.seed + 1),
        )

    def view(self, row: int, epoch: int) -> View:
        """Raises UserError for an image whose size is not known."""
        records, image = self.data.annotations, int(self.data.image[row])
        width, height = int(records.width[image]), int(records.height[image])
        if not width or not height:
            raise UserError(f"{records.image_id[image]}: its size is not known; is the file readable?")
        return training_view(self.config.pictures, width, height, seed=self.config.seed, epoch=epoch, row=row)

    @override
    def __getitem__(self, step: int) -> ImageBatch:
        drawn = self.drawn(step)
        views = [[(row, self.view(row, epoch)) for row, epoch in part] for part in drawn]
        sizes = np.array([view.size for part in views for _, view in part])
        # of all ranks' images: what an image is padded to has a trace in its map
        width, height = sizes.max(0).tolist()
        labelled, others = (part[self.rank :: self.world] for part in views)
        pixels, mask = in_frame(
            [view.of_image(self.read(row)) for row, view in labelled + others], width, height, self.config.pictures
        )
        merge = self.config.pictures.merge_iou
        rows = np.array([row for row, _ in labelled + others], np.int64)
        first = len(labelled)
        return ImageBatch(
            torch.from_numpy(rows),
            pixels,
            mask,
            [targets_of(pairs_of(self.data, row, merge), view, self.missing) for row, view in labelled],
            None if self.labelled is None else self.labelled(rows[:first]),
            None if self.unlabelled is None else self.unlabelled(rows[first:]),
        )


def take(pool: np.ndarray, step: int, size: int, seed: int) -> list[tuple[int, int]]:
    """``size`` members of ``pool`` for a step, each with the epoch that it is drawn in. The pool is gone through in epochs,
    each in its own order; a batch may reach over the end of one into the next. Empty for an empty pool."""
    if not len(pool):
        return []
    position = np.arange(step * size, (step + 1) * size)
    orders = {epoch: epoch_order(seed, epoch, len(pool)) for epoch in np.unique(position // len(pool)).tolist()}
    return [(int(pool[orders[at // len(pool)][at % len(pool)]]), at // len(pool)) for at in position.tolist()]
