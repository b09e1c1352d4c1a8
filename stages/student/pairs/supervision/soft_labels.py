"""Supervision by soft labels of whole images: a teacher's probability that an image shows an interaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.student.pairs.terms import BatchImages, Predictions, Term, WeightedLoss


@dataclass(frozen=True)
class SoftLabelTerm(Term):
    """Soft labels of whole images, on the noisy-or of an image's pairs, see :func:`image_terms`.

    Attributes:
        soft: from rows of the training set (int64 ``[B]``) to float32 ``[B, H]`` probabilities; NaN where nothing is
            distilled.
        weight: weight of the loss after the ramp.
        ramp: steps over which the weight grows from 0.
        of: the noisy-or is over ``sigmoid(O)`` (``interaction``) or over final probabilities.
    """

    name: ClassVar[str] = "itm"

    soft: Callable[[np.ndarray], np.ndarray]
    weight: float
    ramp: int = 0
    of: Literal["interaction", "final"] = "interaction"

    @override
    def targets(self, images: BatchImages) -> Tensor:
        """float32 ``[B, H]``."""
        return torch.from_numpy(self.soft(images.rows))

    @override
    def losses(self, predictions: Predictions, targets: Tensor, step: int) -> list[WeightedLoss]:
        """The loss, divided by the expected number of interactions that the images of the global batch show, at least 1."""
        candidates = predictions.candidates
        asked = ~torch.isnan(targets[candidates.image, candidates.hoi])
        asked_for = candidates.where(asked)
        group, member = torch.unique(asked_for.image * targets.shape[1] + asked_for.hoi, return_inverse=True)
        soft = targets.flatten()[group]
        logit = predictions.final[-1] if self.of == "final" else predictions.logit[-1].float()
        value = image_terms(logit[asked], member, soft).sum() / predictions.processes.share(soft.sum())
        return [WeightedLoss(self.name, self.weight * min(1.0, (step + 1) / max(self.ramp, 1)), value)]


def image_terms(logit: Tensor, group: Tensor, soft_label: Tensor) -> Tensor:
    """Cross-entropy between "some pair of the picture shows the class" and the teacher's probability of it.

    The picture's probability is the noisy-or ``S = 1 - prod(1 - s_p)`` of its pairs ``s_p = sigmoid(logit_p)``
    (multiple-instance learning, Zhang et al. 2005). Its gradient on ``logit_p`` is ``s_p - t * s_p / S``: just that of a
    pair-level cross-entropy against ``t * s_p / S``, the pair's posterior share of the teacher's probability. So the
    image-level loss *is* the consistent pair-level assignment, without a second term.

    Args:
        logit: float ``[N]`` interaction (or final) logits of candidates.
        group: int64 ``[N]``, the (picture, class) that each candidate belongs to. Every group has a candidate.
        soft_label: float ``[G]`` in [0, 1], t of each (picture, class).

    Returns:
        float32 ``[G]``.
    """
    log_absent = logit.new_zeros(len(soft_label)).index_add(0, group, -F.softplus(logit))
    # log(1 - exp(x)), exact for any x < 0; x = 0 is met only where every sigmoid has underflowed.
    log_present = torch.log(-torch.expm1(log_absent.clamp(max=-torch.finfo(torch.float32).tiny)))
    return -(soft_label * log_present + (1 - soft_label) * log_absent)
