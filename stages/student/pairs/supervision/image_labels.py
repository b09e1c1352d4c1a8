"""Supervision by image-level labels: what a teacher's text, or an annotation, says of whole images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.data.label_kinds import IGNORED
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import kept, mapped, new_array
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.stages.student.pairs.supervision.annotations import PairTargets, PairTerm
from hoi_distill.stages.student.pairs.supervision.config import ImageLabelLossConfig
from hoi_distill.stages.student.pairs.supervision.image_label_losses import (
    ImageLabelBatch,
    mil_loss,
    phrase_loss,
    relatedness_loss,
    temperature_of,
)
from hoi_distill.stages.student.pairs.terms import BatchImages, Predictions, Term, WeightedLoss
from hoi_distill.stages.student.source import in_order


@dataclass(frozen=True)
class ImageLabelTable:
    """The image-level labels of N images, memory-mapped.

    Attributes:
        target: float32 ``[N, H]`` in 0 to 1, how surely an image shows an interaction.
        kind: int8 ``[N, H]``, see :mod:`hoi_distill.stages.data.label_kinds`.
        weight: float32 ``[N, H]`` of each label in a loss.
        known: bool ``[N]``, rows that have labels. In a batch those of other rows are ignored.
    """

    target: np.ndarray
    kind: np.ndarray
    weight: np.ndarray
    known: np.ndarray

    @classmethod
    def open_or_build(
        cls, folder: Path, count: int, classes: int, rows: Iterable[tuple[int, Mapping[str, np.ndarray]]]
    ) -> ImageLabelTable:
        """Open ``folder``, or build it.

        Args:
            folder: where the labels are kept.
            count: N.
            classes: H.
            rows: (row, cell). A cell lists ``hoi`` (int ``[K]``) with ``target``, ``kind`` and ``weight`` (``[K]`` each).
                An interaction that it does not list is an ordinary negative.
        """
        dtypes = {"target": np.float32, "kind": np.int8, "weight": np.float32}

        def read(place: Path) -> ImageLabelTable:
            made = {name: mapped(place / f"{name}.npy", dtype, (count, classes)) for name, dtype in dtypes.items()}
            return ImageLabelTable(**made, known=mapped(place / "known.npy", bool, (count,)))

        def build(draft: Path) -> None:
            draft.mkdir()
            made = {name: new_array(draft / f"{name}.npy", dtype, (count, classes)) for name, dtype in dtypes.items()}
            known = np.zeros(count, bool)
            for row, cell in rows:
                known[row], made["weight"][row] = True, 1
                for name, table in made.items():
                    table[row, np.asarray(cell["hoi"], np.int64)] = cell[name]
            np.save(draft / "known.npy", known)
            for table in made.values():
                table.flush()

        return kept(folder, read, build)

    def of(self, batch: BatchImages) -> ImageLabelBatch:
        """The labels of a batch's images."""
        kind = np.where(self.known[batch.rows, None], self.kind[batch.rows], np.int8(IGNORED))
        labels = (self.target[batch.rows], kind, self.weight[batch.rows])
        return ImageLabelBatch.of(
            *map(torch.from_numpy, labels), candidates=batch.candidates, pairs=len(batch.regions.pairs)
        )


def teacher_labels(folder: Path, data: TrainingSet) -> ImageLabelTable:
    """The teacher's labels, from the table ``labels``."""
    samples = in_order(data.source.open({"labels": ("value",)}))
    rows = ((sample["row"], sample["labels"]["value"]) for sample in samples)
    return ImageLabelTable.open_or_build(folder, len(data.source), len(data.vocabulary.hois), rows)


def annotated_labels(folder: Path, data: TrainingSet) -> ImageLabelTable:
    """The annotated interactions of each image (a control): nothing is ignored, and all labels have weight 1."""

    def cell(row: int) -> dict[str, np.ndarray]:
        present = data.present(row)
        return {"hoi": np.arange(len(present)), "target": present, "kind": present, "weight": np.ones(len(present))}

    rows = ((row, cell(row)) for row in range(len(data.source)))
    return ImageLabelTable.open_or_build(folder, len(data.source), len(data.vocabulary.hois), rows)


def copied(regions: Regions, kind: Tensor) -> Tensor:
    """Each image's labels as those of all its pairs. The caller reads only the interactions that a pair's object allows.

    Args:
        regions: the batch, with P pairs.
        kind: int8 ``[B, H]``, see :class:`ImageLabelBatch`.

    Returns:
        float32 ``[P, H]``; NaN where ignored.
    """
    known = kind.float().masked_fill(kind == IGNORED, torch.nan)
    return known[regions.pair_image]


class ImageLabelTerm(Term):
    """Interaction distillation, the multiple-instance loss and self-taught relatedness, each where it has a weight.

    The multiple-instance loss needs nothing but logits of the network. Interaction distillation needs its text space;
    relatedness needs its interactiveness.

    Args:
        labels: the labels of all images.
        config: weights and shapes of the losses.
        ramp: steps over which the weights grow from 0.
    """

    name = "image_labels"

    def __init__(self, labels: ImageLabelTable, config: ImageLabelLossConfig, ramp: int = 0) -> None:
        self.labels, self.config, self.ramp = labels, config, ramp

    @override
    def targets(self, batch: BatchImages) -> ImageLabelBatch:
        """The labels of a batch."""
        return self.labels.of(batch)

    @override
    def losses(self, predictions: Predictions, targets: ImageLabelBatch, step: int) -> list[WeightedLoss]:
        """The losses that have a weight."""
        config, processes = self.config, predictions.processes
        output, regions, candidates = predictions.output, predictions.regions, predictions.candidates
        log_r = output.logits.new_zeros(len(regions.pairs)) if output.log_r is None else output.log_r
        logit, found = predictions.logit[-1].float(), []
        if config.contrastive:
            assert output.text_space is not None, "the network has no text space"
            score = regions.scores[regions.pairs].prod(1).clamp(min=1e-6)
            value = phrase_loss(
                output.text_space,
                candidates,
                targets,
                log_trust=log_r + score.log(),
                temperature=temperature_of(output.text_space.log_temperature),
                attention_temperature=config.attention_temperature,
                processes=processes,
            )
            found.append(WeightedLoss("contrastive", config.contrastive, value))
        if config.mil:
            shape = {"alpha": config.mil_alpha, "gamma": config.mil_gamma}
            value = mil_loss(logit, log_r, candidates, targets, **shape, processes=processes)
            found.append(WeightedLoss("mil", config.mil, value))
        if config.relatedness:
            value = relatedness_loss(logit, log_r, candidates, targets, processes)
            found.append(WeightedLoss("relatedness", config.relatedness, value))
        grown = min(1.0, (step + 1) / max(self.ramp, 1))
        return [loss._replace(weight=grown * loss.weight) for loss in found]


class CopiedLabelTerm(PairTerm):
    """Image-level labels, copied to every pair whose object allows the interaction (a control).

    Args:
        labels: the labels of all images.
        alpha: see :class:`~hoi_distill.stages.student.pairs.supervision.annotations.PairTerm`.
        gamma: likewise.
    """

    name = "copied_labels"

    def __init__(self, labels: ImageLabelTable, *, alpha: float, gamma: float) -> None:
        super().__init__(alpha, gamma)
        self.labels = labels

    @override
    def targets(self, batch: BatchImages) -> PairTargets:
        """The labels of a batch's images as targets of their pairs."""
        every_image = torch.ones(len(batch.rows), dtype=torch.bool)
        kind = torch.from_numpy(self.labels.kind[batch.rows])
        return PairTargets.of(copied(batch.regions, kind), batch.candidates, every_image)
