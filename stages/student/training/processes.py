"""Data parallelism: each process sees a slice of the global batch, and averaged gradients are those of the whole batch."""

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
    """The processes that share the global batch; by default this one alone. All of them have to make each call.

    Attributes:
        mean: from a small float tensor to its mean over the processes, which is the same on all.
        number: how many processes there are.
    """

    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
    number: int = 1

    @classmethod
    def of(cls, accelerator: Accelerator) -> Processes:
        """The processes of an accelerator."""
        return cls(lambda tensor: accelerator.reduce(tensor.to(accelerator.device), "mean"), accelerator.num_processes)

    def normaliser(self, count: Tensor, least: float = 1.0) -> Tensor:
        """What a sum over this process's images is divided by, so that the mean over processes is the global batch's.

        Args:
            count: this process's count, a scalar.
            least: smallest count of all processes together.

        Returns:
            The mean count, a float32 scalar.
        """
        return self.mean(count.detach().float()).clamp(min=least / self.number)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on one of the processes; the same answer on all."""
        return flag if self.number == 1 else bool(self.mean(torch.tensor(float(flag))) > 0)

    def average(self, values: dict[str, Tensor]) -> dict[str, float]:
        """The means of scalars over the processes, by name. The device is read once."""
        return dict(zip(values, self.mean(torch.stack(list(values.values()))).tolist(), strict=True))


ALONE = Processes()


def mean_of(values: Tensor, processes: Processes) -> Tensor:
    """The mean over the global batch, a scalar; 0 with a gradient of 0 where there are no values."""
    return values.sum() / processes.normaliser(values.new_full((), values.numel(), dtype=torch.float32))
