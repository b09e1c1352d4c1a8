"""The one interface between pair teachers and students: a trained LINK network answers, a student in training reads.

A phase-1 teacher is a LINK student trained on the annotations alone. :class:`PairTeacher` puts detections and feature maps
through just the student's code path; the stages of :mod:`hoi_distill.stages.student.methods.link.teacher_stages` keep
its answers, and :func:`read_taught` puts a batch of them beside the student's own regions.

The cell of a picture with K instances, P ordered pairs and N candidates (pair, class) with prior P > 0 has

* ``boxes`` float32 ``[K, 4]`` (xyxy pixels of the original picture, never mirrored), ``labels`` int16 ``[K]``, ``humans``:
  the instances that entered pairs, in order;
* ``entries`` float16 ``[N]``: interaction logits O, in the order of
  :func:`hoi_distill.stages.student.pairs.regions.candidates_of`;
* ``unary`` float16 ``[Le * K * D]``, ``pairs`` float16 ``[Ld * P * E]``: the queries after every layer, flattened, with
  ``unary_layers`` Le, ``unary_width`` D, ``pairs_layers`` Ld, ``pairs_width`` E.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hoi_distill.stages.student.methods.link.distillation import Taught
from hoi_distill.stages.student.methods.link.student import LinkStudent
from hoi_distill.stages.student.pairs.instances import Picture, gather, picture_of
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.terms import BatchImages
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.student.methods.link.network import Link
    from hoi_distill.stages.student.pairs.config import PairsConfig

NO_DETECTIONS: dict[str, Any] = {"boxes": (), "scores": (), "labels": (), "width": 1, "height": 1}


@dataclass(frozen=True)
class Answer:
    """What a teacher says of one picture: its ``cell`` (see the module) and latent map, float32 ``[D, h, w]``."""

    cell: dict[str, Any]
    latent: np.ndarray


class PairTeacher:
    """A trained LINK network in evaluation mode.

    Args:
        config: by which a picture's instances are chosen.
        valid: bool ``[objects, H]``, the classes that an object allows.
    """

    def __init__(self, model: Link, config: PairsConfig, valid: Tensor, device: str = "cpu") -> None:
        self.model, self.config, self.device = model.to(device).eval(), config, torch.device(device)
        self.valid = valid.to(device)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> PairTeacher:
        """Raises UserError where ``folder`` is no whole checkpoint of a LINK student."""
        student = load_student(folder)
        if not isinstance(student, LinkStudent):
            raise UserError(f"{folder}: a student of method {student.method}; a pair teacher is one of method link")
        return cls(student.model, student.config, student.valid(), device)

    @torch.inference_mode()
    def answer(
        self, detections: Sequence[Mapping[str, Any] | None], maps: np.ndarray | Tensor, mirrored: bool
    ) -> list[Answer]:
        """Look at B pictures.

        Args:
            detections: cells of a detections table; None is a picture without any.
            maps: float ``[B, C, h, w]``.
            mirrored: whether they are of mirrored pictures.

        Raises:
            FloatingPointError: an answer is not finite in float16.
        """
        pictures = [picture_of(NO_DETECTIONS if cell is None else cell, self.config) for cell in detections]
        regions = gather(pictures, torch.as_tensor(maps), np.full(len(pictures), mirrored)).to(self.device)
        output = self.model(regions)
        assert output.unary is not None
        assert output.pairs is not None
        assert output.latent is not None
        candidates, count = candidates_of(regions, self.valid), len(pictures)
        logits = _split(output.logits[-1][None, candidates.pair, candidates.hoi], candidates.image, count)
        unary = _split(output.unary, regions.picture, count)
        pairs = _split(output.pairs, regions.pair_picture, count)
        shapes = {
            f"{name}_{what}": values.shape[axis]
            for name, values in (("unary", output.unary), ("pairs", output.pairs))
            for what, axis in (("layers", 0), ("width", 2))
        }
        latents = output.latent.float().cpu().numpy()
        answers = []
        for place, picture in enumerate(pictures):
            seen = {"boxes": picture.boxes, "labels": picture.labels, "humans": picture.humans}
            said = {"entries": logits[place], "unary": unary[place], "pairs": pairs[place]}
            flat = {name: value.reshape(-1) for name, value in said.items()}
            answers.append(Answer({**seen, **flat, **shapes}, latents[place]))
        return answers


def read_taught(
    pairs: Sequence[Mapping[str, Any] | None] | None,
    maps: Sequence[np.ndarray | None] | None,
    images: BatchImages,
    valid: Tensor,
    seen: Tensor,
    *,
    names: Sequence[str],
    tables: tuple[str, str],
) -> Taught:
    """One teacher's answers on a batch of B pictures, as :func:`hoi_distill.stages.student.methods.link.distillation.kd_terms`
    takes them.

    Args:
        pairs: cells of the teacher's ``link_pairs`` table, None where it has none; None: not distilled.
        maps: cells of its ``link_maps`` table, float ``[D, h, w]``, likewise.
        images: the batch.
        valid: bool ``[objects, H]``, the classes that an object allows, unseen ones among them.
        seen: bool ``[H]``; candidates of other classes are left out, as in ``candidates_of(regions, valid & seen)``.
        names: names of the pictures, for messages.
        tables: names of the ``link_pairs`` and the detections table, for messages.

    Raises:
        UserError: the teacher looked at other boxes, or at the same in another order, or knows other classes.
    """
    pictures, regions = images.pictures, images.regions
    has = np.ones(len(pictures), bool)
    for cells in (pairs, maps):
        if cells is not None:
            has &= [cell is not None for cell in cells]
    taught = Taught(torch.from_numpy(has))
    if pairs is not None:
        said = [cell if there else None for cell, there in zip(pairs, has.tolist(), strict=True)]
        candidates = candidates_of(regions, valid)
        counts = torch.bincount(candidates.image, minlength=len(pictures)).tolist()
        for cell, picture, count, name in zip(said, pictures, counts, names, strict=True):
            if cell is not None:
                _refuse_other(cell, picture, count, name, tables)
        logits = [
            np.zeros(n, np.float16) if cell is None else cell["entries"] for cell, n in zip(said, counts, strict=True)
        ]
        taught.entry_logits = torch.from_numpy(np.concatenate(logits))[seen[candidates.hoi]]
        taught.unary = _joined(said, "unary", [len(picture.labels) for picture in pictures])
        taught.pairs = _joined(said, "pairs", [len(picture.pairs) for picture in pictures])
    if maps is not None:
        known = next((value for value in maps if value is not None), np.zeros((1, 1, 1), np.float16))
        blank = np.zeros_like(known)
        taught.latent = torch.from_numpy(np.stack([blank if value is None else value for value in maps]))
    return taught


def _refuse_other(
    cell: Mapping[str, Any], picture: Picture, entry_count: int, name: str, tables: tuple[str, str]
) -> None:
    """Assert that a teacher's cell is of just these instances in just this order."""
    same = cell["humans"] == picture.humans and np.array_equal(cell["labels"], picture.labels)
    if not (same and np.array_equal(cell["boxes"], picture.boxes)):
        raise UserError(
            f"picture {name}: the boxes in table {tables[0]} are not those that the student takes from table {tables[1]}, or "
            "stand in another order; give teacher and student the same detections, score_threshold, min_instances, "
            "max_instances and nms_iou"
        )
    if len(cell["entries"]) != entry_count:
        raise UserError(
            f"picture {name}: table {tables[0]} holds {len(cell['entries'])} logits where the boxes of table {tables[1]} "
            f"allow {entry_count}; give teacher and student the same vocabulary and any_object"
        )


def _split(values: Tensor, picture: Tensor, count: int) -> list[np.ndarray]:
    """``[L, T, ...]`` as float16, cut by ``picture`` (int64 ``[T]``, rising) into the tokens of ``count`` pictures."""
    halves = values.half().cpu().numpy()
    if not np.isfinite(halves).all():
        raise FloatingPointError("a pair teacher's answer is not finite in float16")
    return np.split(halves, torch.bincount(picture, minlength=count).cumsum(0)[:-1].tolist(), 1)


def _joined(cells: Sequence[Mapping[str, Any] | None], name: str, counts: Sequence[int]) -> Tensor:
    """The queries of B pictures with ``counts`` tokens each as float16 ``[L, tokens, D]``; zeros where there is no cell."""
    shapes = ((cell[f"{name}_layers"], cell[f"{name}_width"]) for cell in cells if cell is not None)
    layers, width = next(shapes, (1, 1))
    parts = [
        np.zeros((layers, count, width), np.float16) if cell is None else cell[name].reshape(layers, count, width)
        for cell, count in zip(cells, counts, strict=True)
    ]
    return torch.from_numpy(np.concatenate(parts, 1))
