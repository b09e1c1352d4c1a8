"""Supervision by pair teachers: dense distillation as a term."""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.methods.link.distillation import KdConfig, Taught, kd_terms
from hoi_distill.stages.student.methods.link.teaching import read_taught
from hoi_distill.stages.student.pairs.terms import BatchImages, Predictions, Term, WeightedLoss


class DenseDistillation(Term):
    """What pair teachers answered on every candidate, at the levels of logits, queries and maps (LINK, section 3).

    The logit level needs nothing but logits of the network; the query and map levels need its tokens and its latent map.
    No teacher's table is read where no weight asks for it.

    Args:
        config: what is distilled, from which tables.
        data: the training set.
        valid: bool ``[objects, H]``, the interactions that an object allows, unseen ones among them.
    """

    name = "kd"

    def __init__(self, config: KdConfig, data: TrainingSet, valid: Tensor) -> None:
        self.config, self.data, self.valid = config, data, valid
        self.seen, self.view_tables = torch.from_numpy(data.seen), config.tables
        pairs, maps = config.pairs if config.reads_pairs else (), config.maps if config.reads_maps else ()
        self.teachers = list(zip_longest(pairs, maps))

    @override
    def targets(self, images: BatchImages) -> list[Taught]:
        """Each teacher's answers, of which an image may lack some."""
        names = [str(self.data.annotations.image_id[image]) for image in self.data.image[images.rows].tolist()]
        return [
            read_taught(
                None if pairs is None else [cell[pairs] for cell in images.cells],
                None if maps is None else [cell[maps] for cell in images.cells],
                images, self.valid, self.seen, names=names, tables=(str(pairs), "detections"),
            )
            for pairs, maps in self.teachers
        ]  # fmt: skip

    @override
    def losses(self, predictions: Predictions, targets: list[Taught], step: int) -> list[WeightedLoss]:
        """One loss for each level that has a weight."""
        candidates = predictions.candidates
        found = kd_terms(
            predictions.output,
            targets,
            predictions.regions,
            candidates,
            seen=self.seen.to(candidates.hoi.device),
            config=self.config,
            processes=predictions.processes,
        )
        return [WeightedLoss(f"kd_{name}", getattr(self.config, name), value) for name, value in found.items()]
