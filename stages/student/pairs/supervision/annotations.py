"""Supervision by annotated pairs, at every decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.student.pairs.instances import targets
from hoi_distill.stages.student.pairs.regions import Candidates, positions_of
from hoi_distill.stages.student.pairs.terms import BatchImages, Predictions, Term, WeightedLoss
from hoi_distill.stages.student.training.focal import upt_focal_terms
from hoi_distill.stages.student.training.processes import Processes


@dataclass
class PairTargets:
    """Targets of the pairs of B images.

    Attributes:
        target: float ``[P, H]``: 1 where a pair shows an interaction, 0 where it does not, NaN where that does not count.
        counted: int64 ``[M]``, rising, positions of the candidates that count.
    """

    target: Tensor
    counted: Tensor

    @classmethod
    def of(cls, target: Tensor, candidates: Candidates, labelled: Tensor) -> PairTargets:
        """Those of a batch on the CPU.

        Args:
            target: see above.
            candidates: the batch's candidates.
            labelled: bool ``[B]``, the images whose pairs count.
        """
        known = ~torch.isnan(target[candidates.pair, candidates.hoi])
        return cls(target, positions_of(labelled[candidates.image] & known))


class PairTerm(Term):
    """The focal loss of UPT (Zhang et al. 2022) on targets of single pairs. A subclass says what the targets are.

    Args:
        alpha: balance of positives and negatives.
        gamma: exponent of the focal factor.
    """

    def __init__(self, alpha: float, gamma: float) -> None:
        self.alpha, self.gamma = alpha, gamma

    @override
    def losses(self, predictions: Predictions, targets: PairTargets, step: int) -> list[WeightedLoss]:
        """The loss of the candidates that count, averaged over decoder layers."""
        value = pair_loss(
            predictions.final,
            predictions.candidates,
            targets,
            alpha=self.alpha,
            gamma=self.gamma,
            processes=predictions.processes,
        )
        return [WeightedLoss("pairs", 1.0, value)]


class AnnotationTerm(PairTerm):
    """Annotated pairs of labelled images.

    Args:
        labelled: bool ``[N]`` by row of the training set.
        interactions: H.
        alpha: see :class:`PairTerm`.
        gamma: see :class:`PairTerm`.
    """

    name = "annotations"

    def __init__(self, labelled: np.ndarray, interactions: int, *, alpha: float, gamma: float) -> None:
        super().__init__(alpha, gamma)
        self.labelled, self.interactions = labelled, interactions

    @override
    def targets(self, batch: BatchImages) -> PairTargets:
        """The annotations that the pairs of a batch were associated with."""
        labelled = torch.from_numpy(self.labelled[batch.rows])
        return PairTargets.of(targets(batch.instances, self.interactions), batch.candidates, labelled)


def pair_loss(
    final: Tensor, candidates: Candidates, targets: PairTargets, *, alpha: float, gamma: float, processes: Processes
) -> Tensor:
    """The focal loss of the candidates that count: each layer's is divided by the number of positives in the global batch,
    at least 1; layers are averaged.

    Args:
        final: float32 ``[L, N]`` final logits.
        candidates: the N candidates.
        targets: targets of their pairs.
        alpha: see :func:`hoi_distill.stages.student.training.focal.upt_focal_terms`.
        gamma: likewise.
        processes: the processes that share the global batch.

    Returns:
        A float32 scalar.
    """
    counted = candidates.where(targets.counted)
    final, target = final.index_select(1, targets.counted), targets.target[counted.pair, counted.hoi]
    terms = upt_focal_terms(final, target.expand_as(final), alpha, gamma)
    return terms.sum() / (processes.normaliser(target.sum()) * len(final))
