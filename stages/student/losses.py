"""Losses of scored pairs, in fp32 and on the entries that count: pairs p and classes c with prior P > 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def image_terms(logit: Tensor, group: Tensor, soft_label: Tensor) -> Tensor:
    """Cross-entropy between "some pair of the picture shows the class" and the teacher's probability of it.

    The picture's probability is the noisy-or ``S = 1 - prod(1 - s_p)`` of its pairs ``s_p = sigmoid(logit_p)``
    (multiple-instance learning, Zhang et al. 2005). Its gradient on ``logit_p`` is ``s_p - t * s_p / S``: just that of a
    pair-level cross-entropy against ``t * s_p / S``, the pair's posterior share of the teacher's probability. So the
    image-level loss *is* the consistent pair-level assignment, without a second term.

    Args:
        logit: float ``[E]`` interaction (or final) logits; group: int64 ``[E]``, which (picture, class) each entry belongs to;
        soft_label: float ``[G]`` in [0, 1], t of each (picture, class). Every group has at least one entry.

    Returns:
        float32 ``[G]``.
    """
    log_absent = logit.new_zeros(len(soft_label)).index_add(0, group, -F.softplus(logit))
    # log(1 - exp(x)), exact for any x < 0; x = 0 is met only where every sigmoid has underflowed.
    log_present = torch.log(-torch.expm1(log_absent.clamp(max=-torch.finfo(torch.float32).tiny)))
    return -(soft_label * log_present + (1 - soft_label) * log_absent)
