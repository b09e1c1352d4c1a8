"""Processes that share the work of one: each has a part of every batch, and averaged gradients are those of the whole one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Processes:
    """Those that share the global batch; by default this one alone. Every process has to come to each call of each method.

    Attributes:
        mean: a small float tensor's mean over them, the same on all.
        number: how many there are.
    """

    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    number: int = 1

    @classmethod
    def of(cls, accelerator: Accelerator) -> Processes:
        return cls(lambda tensor: accelerator.reduce(tensor.to(accelerator.device), "mean"), accelerator.num_processes)

    def share(self, count: Tensor, least: float = 1.0) -> Tensor:
        """What a sum over this process's pictures is divided by: the mean count, and at least ``least`` of all together.

        A term's sum divided by it is, averaged over the processes as gradients are, the term of the whole batch.
        """
        return self.mean(count.detach().float()).clamp(min=least / self.number)

    def any(self, flag: bool) -> bool:
        """Whether it is so on one of them, the same answer on all."""
        return flag if self.number == 1 else bool(self.mean(torch.tensor(float(flag))) > 0)

    def average(self, values: dict[str, float]) -> dict[str, float]:
        """The mean values by name; of terms divided by :meth:`share`, those of the whole batch."""
        if self.number == 1:
            return values
        return dict(zip(values, self.mean(torch.tensor(list(values.values()))).tolist(), strict=True))


ALONE = Processes()


def mean_of(values: Tensor, processes: Processes) -> Tensor:
    """The mean over the whole batch: a scalar, 0 (with a gradient of 0) of nothing."""
    return values.sum() / processes.share(values.new_tensor(float(values.numel())))
