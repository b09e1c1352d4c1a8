"""Losses of scored pairs, in fp32 and on candidates: pairs p and classes c with prior P > 0."""

from __future__ import annotations

import torch
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
