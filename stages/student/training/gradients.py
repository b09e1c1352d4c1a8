"""How hard a loss pulls: the norm of its gradient at tensors of the graph, compared with another loss's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gradient_squares(loss: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Squared norms of a loss's gradients at K tensors, float32 ``[K]``. The graph is kept for the backward pass.

    Args:
        loss: a scalar.
        tensors: where the gradients are taken, e.g. the logits: then nothing below the losses is run.

    Returns:
        0 where the loss does not depend on a tensor.
    """
    none = loss.new_zeros((), dtype=torch.float32)
    if not loss.requires_grad:
        return none.expand(len(tensors))
    found = torch.autograd.grad(loss, list(tensors), retain_graph=True, allow_unused=True)
    return torch.stack([none if gradient is None else gradient.float().square().sum() for gradient in found])


def gradient_ratio(term: Tensor, reference: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """How hard ``term`` pulls compared with ``reference``: the ratio of their gradients' norms, float32 ``[]``.

    Args:
        term: a weighted scalar.
        reference: another one of the same graph.
        tensors: where they are compared.

    Returns:
        0 where the term has no gradient there, infinite where only the reference has none.
    """
    return norm_ratio(gradient_squares(term, tensors).sum(), gradient_squares(reference, tensors).sum())


def norm_ratio(above: Tensor, below: Tensor) -> Tensor:
    """The ratio of two norms from their squares, elementwise; 0 where the first is 0."""
    return torch.where(above == 0, 0.0, (above / below).sqrt())
