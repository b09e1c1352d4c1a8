"""Learning rates by step, and groups of parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Schedule = Callable[[int], float]
"""Factor of the learning rates at a step, steps counted from 0."""


@dataclass(frozen=True)
class WarmupCosine:
    """A linear warm-up, then a cosine down to 0.

    Attributes:
        steps: steps of the whole training.
        warmup: steps of the warm-up.
    """

    steps: int
    warmup: int

    def __call__(self, step: int) -> float:
        """The factor at ``step``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))


ParameterGroup = dict[str, Any]
"""Parameters of an optimizer with options of their own: ``params``, ``lr``, ``weight_decay``."""


def adamw(groups: Sequence[ParameterGroup], *, fused: bool) -> torch.optim.AdamW:
    """The optimizer of every student. Each group has its learning rate and decay."""
    return torch.optim.AdamW(list(groups), fused=True) if fused else torch.optim.AdamW(list(groups), foreach=True)


def parameter_groups(model: nn.Module, learning_rate: float, weight_decay: float) -> list[ParameterGroup]:
    """Two groups for an optimizer: matrices decay; biases, norms and scales do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": others, "lr": learning_rate, "weight_decay": 0.0},
    ]
