"""Supervision by pair teachers: what their tables hold, how a batch reads them, and the term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.pairs.instances import ImageInstances
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.config import KdConfig
from hoi_distill.stages.student.pairs.supervision.dense_distillation_losses import (
    Answered,
    TeacherOutputs,
    distillation_losses,
)
from hoi_distill.stages.student.pairs.terms import BatchImages, PairOutput, Predictions, Term, WeightedLoss
from hoi_distill.storage.errors import UserError


class PairTeacherCell(TypedDict):
    """A cell of a pair teacher's ``link_pairs`` table: an image with K instances, P ordered pairs and N candidates.

    Attributes:
        boxes: float32 ``[K, 4]`` xyxy pixels of the original image, never mirrored, of the instances that entered pairs.
        labels: int16 ``[K]`` object classes.
        humans: how many of the instances, the first ones, are people.
        entries: float16 ``[N]`` interaction logits O of the candidates, in the order of
            :func:`hoi_distill.stages.student.pairs.regions.candidates_of`.
        unary: float16 ``[Le * K * D]`` unary queries after every encoder layer.
        unary_layers: Le.
        unary_width: D.
        pairs: float16 ``[Ld * P * E]`` pair queries after every decoder layer.
        pairs_layers: Ld.
        pairs_width: E.
    """

    boxes: np.ndarray
    labels: np.ndarray
    humans: int
    entries: np.ndarray
    unary: np.ndarray
    unary_layers: int
    unary_width: int
    pairs: np.ndarray
    pairs_layers: int
    pairs_width: int


@dataclass(frozen=True)
class DenseTargets:
    """The outputs of several teachers on a batch.

    Attributes:
        teachers: each teacher's outputs.
        answered: what each teacher has answered.
    """

    teachers: list[TeacherOutputs]
    answered: list[Answered]


class DenseDistillation(Term):
    """The outputs of pair teachers on every candidate, at the levels of logits, queries and maps (LINK, section 3).

    The logit level needs nothing but logits of the network. The query and map levels need its tokens and its latent map.
    No teacher's table is read where no weight asks for it.

    Args:
        config: what is distilled, from which tables.
        data: the training set.
        valid: bool ``[objects, H]``, the interactions that an object allows, with the unseen ones.
    """

    name = "kd"

    def __init__(self, config: KdConfig, data: TrainingSet, valid: Tensor) -> None:
        self.config, self.data, self.valid = config, data, valid
        self.view_rows = None if config.unlabelled else data.labelled
        self.seen, self.view_tables = torch.from_numpy(data.seen), config.tables
        pairs, maps = config.pairs if config.reads_pairs else (), config.maps if config.reads_maps else ()
        self.teachers = list(zip_longest(pairs, maps))

    @override
    def targets(self, batch: BatchImages) -> DenseTargets:
        """Each teacher's outputs, which some images may lack."""
        cells = batch.cells
        if self.view_rows is not None:  # another term may read those of more images
            distilled = self.view_rows[batch.rows].tolist()
            cells = [cell if asked else dict.fromkeys(cell) for cell, asked in zip(cells, distilled, strict=True)]
        names = [str(self.data.annotations.image_id[image]) for image in self.data.image[batch.rows].tolist()]
        teachers = [
            read_teacher_outputs(
                None if pairs is None else [cell[pairs] for cell in cells],
                None if maps is None else [cell[maps] for cell in cells],
                batch, self.valid, self.seen, names=names, tables=(str(pairs), "detections"),
            )
            for pairs, maps in self.teachers
        ]  # fmt: skip
        return DenseTargets(
            teachers, [Answered.of(each.has, batch.regions, batch.candidates, self.seen) for each in teachers]
        )

    @override
    def losses(self, predictions: Predictions, targets: DenseTargets, step: int) -> list[WeightedLoss]:
        """One loss for each level that has a weight."""
        found = distillation_losses(
            predictions.output,
            targets.teachers,
            targets.answered,
            predictions.candidates,
            config=self.config,
            processes=predictions.processes,
        )
        share = self.config.weighting == "share"
        return [
            WeightedLoss(f"kd_{name}", getattr(self.config, name), value, compared(predictions.output, name), share)
            for name, value in found.items()
        ]


def compared(output: PairOutput, level: str) -> tuple[Tensor, ...]:
    """The parts of a network's output that a level of distillation (``logit``, ``query``, ``map``) compares."""
    parts = {"logit": (output.logits,), "query": (output.unary, output.pairs), "map": (output.latent,)}[level]
    return tuple(part for part in parts if part is not None)


def read_teacher_outputs(
    pairs: Sequence[PairTeacherCell | None] | None,
    maps: Sequence[np.ndarray | None] | None,
    batch: BatchImages,
    valid: Tensor,
    seen: Tensor,
    *,
    names: Sequence[str],
    tables: tuple[str, str],
) -> TeacherOutputs:
    """One teacher's outputs on a batch of B images.

    Args:
        pairs: cells of the teacher's ``link_pairs`` table, None for an image without one; None: not distilled.
        maps: cells of its ``link_maps`` table, float ``[D, h, w]``, likewise.
        batch: the images.
        valid: bool ``[objects, H]``, the interactions that an object allows, with the unseen ones.
        seen: bool ``[H]``; candidates of other interactions are left out, as in ``candidates_of(regions, valid & seen)``.
        names: names of the images, for messages.
        tables: names of the ``link_pairs`` and the detections table, for messages.

    Raises:
        UserError: the teacher's instances are other boxes or in another order, or it knows other interactions.
    """
    images, regions = batch.instances, batch.regions
    has = np.ones(len(images), bool)
    for cells in (pairs, maps):
        if cells is not None:
            has &= [cell is not None for cell in cells]
    outputs = TeacherOutputs(torch.from_numpy(has))
    if pairs is not None:
        known = [cell if answered else None for cell, answered in zip(pairs, has.tolist(), strict=True)]
        candidates = candidates_of(regions, valid)
        counts = torch.bincount(candidates.image, minlength=len(images)).tolist()
        for cell, image, count, name in zip(known, images, counts, names, strict=True):
            if cell is not None:
                _refuse_other(cell, image, count, name, tables)
        logits = [
            np.zeros(n, np.float16) if cell is None else cell["entries"] for cell, n in zip(known, counts, strict=True)
        ]
        outputs.logits = torch.from_numpy(np.concatenate(logits))[seen[candidates.hoi]]
        outputs.unary = _queries(
            [None if c is None else (c["unary"], c["unary_layers"], c["unary_width"]) for c in known],
            [len(image.labels) for image in images],
        )
        outputs.pairs = _queries(
            [None if c is None else (c["pairs"], c["pairs_layers"], c["pairs_width"]) for c in known],
            [len(image.pairs) for image in images],
        )
    if maps is not None:
        like = next((value for value in maps if value is not None), np.zeros((1, 1, 1), np.float16))
        blank = np.zeros_like(like)
        outputs.latent = torch.from_numpy(np.stack([blank if value is None else value for value in maps]))
    return outputs


def _refuse_other(
    cell: PairTeacherCell, image: ImageInstances, candidate_count: int, name: str, tables: tuple[str, str]
) -> None:
    """Raises UserError unless a teacher's cell is of just these instances in just this order."""
    same = cell["humans"] == image.humans and np.array_equal(cell["labels"], image.labels)
    if not (same and np.array_equal(cell["boxes"], image.boxes)):
        raise UserError(
            f"image {name}: the boxes in table {tables[0]} are not those that the student takes from table {tables[1]}, or "
            "stand in another order; give teacher and student the same detections, score_threshold, min_instances, "
            "max_instances and nms_iou"
        )
    if len(cell["entries"]) != candidate_count:
        raise UserError(
            f"image {name}: table {tables[0]} holds {len(cell['entries'])} logits where the boxes of table {tables[1]} "
            f"allow {candidate_count}; give teacher and student the same vocabulary and any_object"
        )


def _queries(flat: Sequence[tuple[np.ndarray, int, int] | None], counts: Sequence[int]) -> Tensor:
    """The queries of B images as float16 ``[L, tokens, D]``; zeros where there is no cell.

    Args:
        flat: each image's values ``[L * tokens * D]``, L and D.
        counts: each image's tokens.
    """
    layers, width = next((each[1:] for each in flat if each is not None), (1, 1))
    parts = [
        np.zeros((layers, count, width), np.float16) if each is None else each[0].reshape(layers, count, width)
        for each, count in zip(flat, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts, 1))
