"""The loss of image-level soft labels, in fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
