"""Focal losses, elementwise on logits. The two papers' formulas differ in balance and in the targets that they take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def upt_focal_terms(logit: Tensor, target: Tensor, alpha: float = 0.5, gamma: float = 0.2) -> Tensor:
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


def hard_focal_terms(logits: Tensor, labels: Tensor, alpha: float = 0.5, gamma: float = 2.0) -> Tensor:
    """The focal loss of Lin et al. (2017), as MUREN uses it: ``alpha (1 - p)^gamma (-log p)`` where the label is 1,
    ``(1 - alpha) p^gamma (-log(1 - p))`` elsewhere.

    Args:
        logits: float, any shape.
        labels: of the same shape, 0 or 1.
        alpha: balance of positives and negatives.
        gamma: exponent of the focal factor.

    Returns:
        float, of the same shape.
    """
    sign = torch.where(labels == 1, 1.0, -1.0)
    share = torch.where(labels == 1, alpha, 1 - alpha)
    return -share * (-sign * logits).sigmoid() ** gamma * F.logsigmoid(sign * logits)
