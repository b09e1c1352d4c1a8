"""A trained LINK network as a pair teacher, whose outputs the stages of :mod:`~.teacher_stages` keep.

A phase-1 teacher is a LINK student trained on the annotations alone. It takes detections and feature maps through the
student's own code path. :mod:`hoi_distill.stages.student.pairs.supervision.dense_distillation` reads its outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hoi_distill.stages.student.methods.link.student import LinkStudent
from hoi_distill.stages.student.pairs.instances import DetectionsCell, gather, picture_of
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.dense_distillation import PairTeacherCell
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.stages.student.methods.link.network import Link
    from hoi_distill.stages.student.pairs.config import PairsConfig

NO_DETECTIONS = DetectionsCell(boxes=(), scores=(), labels=(), width=1, height=1)


@dataclass(frozen=True)
class Answer:
    """A teacher's outputs for one image.

    Attributes:
        cell: the logits of its candidates and its queries.
        latent: float32 ``[D, h, w]`` latent map.
    """

    cell: PairTeacherCell
    latent: np.ndarray


class PairTeacher:
    """A trained LINK network in evaluation mode.

    Args:
        model: the network.
        config: how an image's instances are chosen.
        valid: bool ``[objects, H]``, the interactions that an object allows.
        device: where the network works.
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
        self, detections: Sequence[DetectionsCell | None], maps: np.ndarray | Tensor, mirrored: bool
    ) -> list[Answer]:
        """The outputs for B images.

        Args:
            detections: cells of a detections table; None is an image without any.
            maps: float ``[B, C, h, w]``.
            mirrored: whether the maps are of mirrored images.

        Raises:
            FloatingPointError: an output is not finite in float16.
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
        latents = output.latent.float().cpu().numpy()
        return [
            Answer(
                PairTeacherCell(
                    boxes=picture.boxes,
                    labels=picture.labels,
                    humans=picture.humans,
                    entries=logits[place].reshape(-1),
                    unary=unary[place].reshape(-1),
                    unary_layers=output.unary.shape[0],
                    unary_width=output.unary.shape[2],
                    pairs=pairs[place].reshape(-1),
                    pairs_layers=output.pairs.shape[0],
                    pairs_width=output.pairs.shape[2],
                ),
                latents[place],
            )
            for place, picture in enumerate(pictures)
        ]


def _split(values: Tensor, picture: Tensor, count: int) -> list[np.ndarray]:
    """``[L, T, ...]`` as float16, cut by ``picture`` (int64 ``[T]``, rising) into the tokens of ``count`` pictures."""
    halves = values.half().cpu().numpy()
    if not np.isfinite(halves).all():
        raise FloatingPointError("a pair teacher's answer is not finite in float16")
    return np.split(halves, torch.bincount(picture, minlength=count).cumsum(0)[:-1].tolist(), 1)
