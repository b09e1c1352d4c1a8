"""Parts of a training that keep a state or watch a step. Each saves and restores itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.training.metrics import NonFiniteLoss

NAMED_IMAGES = 8
"""Images that an error names, at most."""
LEAST_SCALE = 1.0
"""Above this loss scale, fp16 gradients may overflow by chance."""


@dataclass(frozen=True)
class StepResult:
    """One step before the optimizer moves the weights.

    Attributes:
        number: the step's number, from 0.
        batch: this process's batch, on the device.
        loss: scalar, without gradient.
        terms: log values by name, scalars without gradient.
        norm: scalar, norm of the gradient before it was clipped.
    """

    number: int
    batch: Any
    loss: Tensor
    terms: dict[str, Tensor]
    norm: Tensor


class Component:
    """A part of the training loop. By default it keeps nothing and does nothing.

    Attributes:
        name: prefix of its tensors in the resume state.
    """

    name: ClassVar[str]

    def before_step(self, network: nn.Module, result: StepResult) -> None:
        """Look at gradients and loss before the optimizer moves the weights."""

    def after_step(self, network: nn.Module) -> None:
        """Look at the moved weights."""

    def log_values(self) -> dict[str, Tensor]:
        """Scalars to log beside the loss terms."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """What the resume state keeps, by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned. ``state`` is empty where a training starts."""


class Ema(Component):
    """An exponential moving average of a network's weights. With decay 0 there is none.

    Attributes:
        weights: the averages of the floating point entries of the network's state, by their name there.
    """

    name = "ema"

    def __init__(self, network: nn.Module, decay: float, device: torch.device) -> None:
        self.decay = decay
        entries = network.state_dict() if decay else {}
        self.weights = {
            name: value.detach().to(device, copy=True) for name, value in entries.items() if value.is_floating_point()
        }

    @torch.no_grad()
    @override
    def after_step(self, network: nn.Module) -> None:
        """Move the average towards the network's weights."""
        for name, value in network.state_dict().items() if self.decay else ():
            if name in self.weights:
                self.weights[name].lerp_(value, 1 - self.decay)

    @override
    def state_dict(self) -> dict[str, Tensor]:
        """The averages."""
        return self.weights

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages."""
        for name, value in state.items():
            self.weights[name].copy_(value)

    def copy_to(self, network: nn.Module) -> None:
        """Replace the network's weights by their averages."""
        network.load_state_dict(self.weights, strict=False)


class HasScaler(Protocol):
    """The part of an Accelerator that fp16 needs."""

    scaler: torch.amp.GradScaler | None


class LossScale(Component):
    """The loss scale of fp16. In another precision there is none."""

    name = "scaler"

    def __init__(self, accelerator: HasScaler) -> None:
        self.scaler = accelerator.scaler

    @override
    def state_dict(self) -> dict[str, Tensor]:
        """The scale and the number of steps since it changed."""
        if self.scaler is None:
            return {}
        state = self.scaler.state_dict()
        return {"scale": torch.tensor(state["scale"]), "steps": torch.tensor(state["_growth_tracker"])}

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the scale."""
        if self.scaler is not None and state:
            values = {"scale": state["scale"].item(), "_growth_tracker": int(state["steps"].item())}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **values})

    def may_overflow(self) -> bool:
        """Whether the scaler answers a gradient that is not finite by skipping the step and lowering its scale."""
        return self.scaler is not None and self.scaler.get_scale() > LEAST_SCALE


class FiniteCheck(Component):
    """Stops a training whose loss or gradient is not finite.

    Args:
        accelerator: knows the loss scale.
        describe: ``(network, batch) -> text`` that names the images in question.
        log_norm: whether the norm of the gradient is logged, as ``gradient_norm``.
    """

    name = "finite_check"

    def __init__(
        self, accelerator: HasScaler, describe: Callable[[nn.Module, Any], str], *, log_norm: bool = False
    ) -> None:
        self.scale, self.describe, self.log_norm = LossScale(accelerator), describe, log_norm
        self.norm: Tensor | None = None

    @override
    def before_step(self, network: nn.Module, result: StepResult) -> None:
        """Raises NonFiniteLoss, which names the step, the terms and the images."""
        self.norm = result.norm
        if torch.isfinite(result.loss + result.norm):
            return
        if torch.isfinite(result.loss) and self.scale.may_overflow():
            return
        values = {"loss": result.loss, **result.terms, "gradient norm": result.norm}
        words = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        raise NonFiniteLoss(f"step {result.number + 1}: {words}; {self.describe(network, result.batch)}")

    @override
    def log_values(self) -> dict[str, Tensor]:
        """The norm of the gradient, if it is to be logged."""
        return {"gradient_norm": self.norm} if self.log_norm and self.norm is not None else {}


def named_images(what: str, rows: Sequence[int], data: TrainingSet) -> str:
    """The rows and ids of some images, for an error; ``what`` says what they are."""
    first, more = list(rows[:NAMED_IMAGES]), len(rows) - NAMED_IMAGES
    names = [str(data.annotations.image_id[int(data.image[row])]) for row in first]
    return f"{what} rows {first}, image ids {names}" + (f" and {more} more" if more > 0 else "")
