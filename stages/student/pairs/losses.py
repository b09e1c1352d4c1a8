"""Losses of scored pairs, in fp32 and on the entries that count: pairs p and classes c with prior P > 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_distill.stages.student.pairs.batches import Batch
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.training.processes import Processes


def final_logit(logit: Tensor, prior: Tensor) -> Tensor:
    """The logit of the final detection probability ``P * sigmoid(O)``, stable at both ends.

    ``log P - logaddexp(log(1 - P), -O)``, which is ``log(P / (1 + exp(-O) - P))`` (LINK, section 3) without overflow.

    Args:
        logit: float ``[E]`` interaction logits O; prior: float ``[E]`` in (0, 1].

    Returns:
        float32 ``[E]``.
    """
    prior = prior.float()
    return prior.log() - torch.logaddexp(torch.log1p(-prior), -logit.float())


def focal_terms(logit: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 0.2) -> Tensor:
    """``|1 - y - alpha| * (|y - sigmoid(psi)| + 1e-6)^gamma * BCE(psi, y)`` for each entry (UPT's focal loss).

    Args:
        logit: float ``[E]`` final logits; target: float ``[E]`` in [0, 1].

    Returns:
        float32 ``[E]``. Divide their sum by the batch's number of positive entries, at least 1.
    """
    bce = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    error = (target - logit.sigmoid()).abs() + 1e-6
    return (1 - target - alpha).abs() * error**gamma * bce


def annotated_loss(
    final: Tensor, pair: Tensor, hoi: Tensor, batch: Batch, config: PairsConfig, processes: Processes
) -> Tensor:
    """The focal loss of annotated pairs, those of labelled pictures that are not ignored. A layer's is divided by the
    expected number of positives in the whole batch, over all ranks, at least 1; layers are averaged.

    Args:
        final: float ``[E]`` or ``[L, E]`` final logits of the entries (``pair``, ``hoi``), int64 ``[E]`` each.
    """
    target = batch.target[pair, hoi]
    counted = batch.labelled[batch.regions.pair_picture[pair]] & ~torch.isnan(target)
    final, target = final[..., counted], target[counted]
    terms = focal_terms(final, target.expand_as(final), config.focal_alpha, config.focal_gamma)
    layers = len(final) if final.ndim > 1 else 1
    return terms.sum() / (processes.share(target.sum()) * layers)
