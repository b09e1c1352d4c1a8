"""Losses of scored pairs, in fp32 and on candidates: pairs p and classes c with prior P > 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def final_logit(logit: Tensor, prior: Tensor) -> Tensor:
    """The logit of the final detection probability ``P * sigmoid(O)``, stable at both ends.

    ``log P - logaddexp(log(1 - P), -O)``, which is ``log(P / (1 + exp(-O) - P))`` (LINK, section 3) without overflow.

    Args:
        logit: float ``[..., N]`` interaction logits O.
        prior: float ``[N]`` in (0, 1].

    Returns:
        float32 ``[..., N]``.
    """
    prior = prior.float()
    return prior.log() - torch.logaddexp(torch.log1p(-prior), -logit.float())


def focal_terms(logit: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 0.2) -> Tensor:
    """UPT's focal loss, ``|1 - y - alpha| * (|y - sigmoid(psi)| + 1e-6)^gamma * BCE(psi, y)``, elementwise.

    Args:
        logit: float ``[..., N]`` final logits.
        target: float ``[..., N]`` in [0, 1].
        alpha: balance of positives and negatives.
        gamma: exponent of the focal factor.

    Returns:
        float32 ``[..., N]``. Divide their sum by the batch's number of positive candidates, at least 1.
    """
    bce = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    error = (target - logit.sigmoid()).abs() + 1e-6
    return (1 - target - alpha).abs() * error**gamma * bce
