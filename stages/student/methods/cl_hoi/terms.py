"""Supervision by image-level labels: what a teacher's text says of whole images."""

from __future__ import annotations

import torch
from typing_extensions import override

from hoi_distill.stages.student.methods.cl_hoi.config import LossesConfig
from hoi_distill.stages.student.methods.cl_hoi.losses import (
    LabelBatch,
    mil_loss,
    phrase_loss,
    relatedness_loss,
    temperature_of,
)
from hoi_distill.stages.student.methods.cl_hoi.stream import ImageLabels, copied
from hoi_distill.stages.student.pairs.supervision.annotations import PairTargets, PairTerm
from hoi_distill.stages.student.pairs.terms import BatchImages, Predictions, Term, WeightedLoss


class ImageLabelTerm(Term):
    """Interaction distillation, the multiple-instance loss and self-taught relatedness, each where it has a weight.

    The multiple-instance loss needs nothing but logits of the network; interaction distillation needs its phrases; relatedness
    needs its interactiveness.

    Args:
        labels: the labels of all images.
        config: weights and shapes of the losses.
    """

    name = "image_labels"

    def __init__(self, labels: ImageLabels, config: LossesConfig) -> None:
        self.labels, self.config = labels, config

    @override
    def targets(self, images: BatchImages) -> LabelBatch:
        """The labels of a batch."""
        return self.labels.of(images.rows)

    @override
    def losses(self, predictions: Predictions, targets: LabelBatch, step: int) -> list[WeightedLoss]:
        """The losses that have a weight."""
        config, processes = self.config, predictions.processes
        output, regions, candidates = predictions.output, predictions.regions, predictions.candidates
        log_r = output.logits.new_zeros(len(regions.pairs)) if output.log_r is None else output.log_r
        logit, found = predictions.logit[-1].float(), []
        if config.contrastive:
            assert output.phrases is not None, "the network has no text space"
            score = regions.scores[regions.pairs].prod(1).clamp(min=1e-6)
            value = phrase_loss(
                output.phrases,
                candidates,
                targets,
                log_trust=log_r + score.log(),
                temperature=temperature_of(output.phrases.log_temperature),
                attention_temperature=config.attention_temperature,
                processes=processes,
            )
            found.append(WeightedLoss("contrastive", config.contrastive, value))
        if config.mil:
            shape = {"alpha": config.mil_alpha, "gamma": config.mil_gamma}
            value = mil_loss(logit, log_r, candidates, targets, **shape, processes=processes)
            found.append(WeightedLoss("mil", config.mil, value))
        if config.relatedness:
            value = relatedness_loss(logit, log_r, candidates, targets.kind, processes)
            found.append(WeightedLoss("relatedness", config.relatedness, value))
        return found


class CopiedLabelTerm(PairTerm):
    """Image-level labels, copied to every pair whose object allows the interaction (a control).

    Args:
        labels: the labels of all images.
        alpha: see :class:`~hoi_distill.stages.student.pairs.supervision.annotations.PairTerm`.
        gamma: likewise.
    """

    name = "copied_labels"

    def __init__(self, labels: ImageLabels, *, alpha: float, gamma: float) -> None:
        super().__init__(alpha, gamma)
        self.labels = labels

    @override
    def targets(self, images: BatchImages) -> PairTargets:
        """The labels of a batch's images as targets of their pairs."""
        every_image = torch.ones(len(images.rows), dtype=torch.bool)
        return PairTargets(copied(images.regions, self.labels.of(images.rows).kind), every_image)
