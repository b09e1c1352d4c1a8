"""Parts of a training that keep a state or watch a step. Each saves and restores itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

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
        loss: scalar, without gradient.
        terms: log values by name, scalars without gradient.
        norm: scalar, norm of the gradient before it was clipped.
    """

    number: int
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

    def ended(self) -> bool:
        """Whether the training is to end before its last step."""
        return False

    def finish(self, network: nn.Module) -> None:
        """Look at the network once after the training's last step."""

    def log_values(self) -> dict[str, Tensor]:
        """Scalars to log beside the loss terms."""
        return {}

    def settle(self, network: nn.Module) -> None:
        """Look at what the last steps have left on the device. The loop calls it where it reads the device anyway: at
        steps that are logged or saved."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the resume state keeps, by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned. ``state`` is empty where a training starts."""


class Components(Component):
    """Several components as one, called in their order. Each one's tensors begin with its name in the resume state.

    Args:
        parts: the components.
    """

    name = "components"

    def __init__(self, *parts: Component) -> None:
        self.parts = parts

    @override
    def before_step(self, network: nn.Module, result: StepResult) -> None:
        for part in self.parts:
            part.before_step(network, result)

    @override
    def after_step(self, network: nn.Module) -> None:
        for part in self.parts:
            part.after_step(network)

    @override
    def settle(self, network: nn.Module) -> None:
        for part in self.parts:
            part.settle(network)

    @override
    def ended(self) -> bool:
        return any(part.ended() for part in self.parts)

    @override
    def finish(self, network: nn.Module) -> None:
        for part in self.parts:
            part.finish(network)

    @override
    def log_values(self) -> dict[str, Tensor]:
        return {name: value for part in self.parts for name, value in part.log_values().items()}

    @override
    def state_dict(self) -> dict[str, Tensor]:
        return {f"{part.name}.{name}": value for part in self.parts for name, value in part.state_dict().items()}

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for part in self.parts:
            prefix = f"{part.name}."
            own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            part.load_state_dict(own)


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

    def now(self, like: Tensor) -> Tensor:
        """The scale as a scalar on the device of ``like``, of this step also later; 0 where there is none."""
        one = like.new_ones((), dtype=torch.float32)
        return one * 0 if self.scaler is None else self.scaler.scale(one)


class FiniteCheck(Component):
    """Stops a training whose loss or gradient is not finite.

    Each step's scalars stay on the device until the loop reads it anyway. By then the weights may be broken too. The
    error names the first step that was, and its images.

    Args:
        accelerator: knows the loss scale.
        describe: ``(network, number of the step) -> text`` that names the images in question.
        log_norm: whether the norm of the gradient is logged, as ``gradient_norm``.
    """

    name = "finite_check"

    def __init__(
        self, accelerator: HasScaler, describe: Callable[[nn.Module, int], str], *, log_norm: bool = False
    ) -> None:
        self.scale, self.describe, self.log_norm = LossScale(accelerator), describe, log_norm
        self.unread: list[tuple[StepResult, Tensor]] = []
        self.norm: Tensor | None = None

    @override
    def before_step(self, network: nn.Module, result: StepResult) -> None:
        """Keep the step's scalars and the loss scale."""
        self.norm = result.norm
        self.unread.append((result, self.scale.now(result.loss)))

    @override
    def settle(self, network: nn.Module) -> None:
        """Raises NonFiniteLoss, which names the step, the terms and the images.

        A gradient that overflowed above the least loss scale of fp16 is none: the scaler has skipped the step.
        """
        scalars = [each.float() for result, scale in self.unread for each in (result.loss, result.norm, scale)]
        table = torch.stack(scalars).view(-1, 3).tolist() if scalars else []
        for (result, _), (loss, norm, scale) in zip(self.unread, table, strict=True):
            if not math.isfinite(loss + norm) and not (math.isfinite(loss) and scale > LEAST_SCALE):
                raise NonFiniteLoss(self._words(network, result))
        self.unread.clear()

    def _words(self, network: nn.Module, result: StepResult) -> str:
        values = {"loss": result.loss, **result.terms, "gradient norm": result.norm}
        words = ", ".join(f"{name} {value.item():.4g}" for name, value in values.items())
        for parameter in network.parameters():  # 0 times what is not finite is not finite: broken images still show
            parameter.detach().nan_to_num_(0, 0, 0)
        return f"step {result.number + 1}: {words}; {self.describe(network, result.number)}"

    @override
    def log_values(self) -> dict[str, Tensor]:
        """The norm of the gradient, if it is to be logged."""
        return {"gradient_norm": self.norm} if self.log_norm and self.norm is not None else {}


def named_images(what: str, rows: Sequence[int], data: TrainingSet) -> str:
    """The rows and ids of some images, for an error; ``what`` says what they are."""
    first, more = list(rows[:NAMED_IMAGES]), len(rows) - NAMED_IMAGES
    names = [str(data.annotations.image_id[int(data.image[row])]) for row in first]
    return f"{what} rows {first}, image ids {names}" + (f" and {more} more" if more > 0 else "")
