"""Which student of a training is kept: the best one on held-out images. And when a training ends: once it gets no better."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.student.data import Report
from hoi_distill.stages.student.student import HeldOut, Student
from hoi_distill.stages.student.training.components import Component
from hoi_distill.stages.student.training.processes import ALONE, Processes
from hoi_distill.storage.files.atomic import write_atomically

CHECKS = 20
"""How often a training is judged where its configuration does not say."""
BEST = "best."


class Validation(Component):
    """Judges the network on held-out images now and then, keeps the best weights, and ends a training that gets no better.

    All processes judge the same weights by the same images. They take the mean of what each found, because GPUs may differ in
    the last bits.

    Args:
        held_out: the images, and how the training is judged by them.
        steps: of the whole training.
        student_of: from the network to its student.
        folder: gets what predictions are made of, and is this process's own.
        device: where the network is.
        report: gets a line after each check.
    """

    name = "validation"

    def __init__(
        self,
        held_out: HeldOut,
        steps: int,
        student_of: Callable[[nn.Module], Student],
        *,
        folder: Path,
        device: torch.device,
        report: Report,
        processes: Processes = ALONE,
    ) -> None:
        self.held_out, self.steps, self.student_of = held_out, steps, student_of
        self.folder, self.device, self.report, self.processes = folder, device, report, processes
        self.every = held_out.every or max(1, steps // CHECKS)
        self.done, self.stale = 0, 0
        self.maps: list[tuple[int, float]] = []
        self.weights: dict[str, Tensor] = {}

    @property
    def best(self) -> tuple[int, float]:
        """The step of the best student so far and its mAP in percent; of equal ones the first."""
        return max(self.maps, key=lambda check: check[1])

    @override
    def after_step(self, network: nn.Module) -> None:
        """Judge the network if it is time to, and after the last step."""
        self.done += 1
        if self.done % self.every and self.done != self.steps:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.held_out.score(self.student_of(network), self.folder, str(self.device))
        value = float(self.processes.mean(torch.tensor(own, dtype=torch.float64, device=self.device)))
        better = not self.maps or value > self.best[1]
        self.maps.append((self.done, value))
        self.stale = 0 if better else self.stale + 1
        if better:
            self.weights = {name: each.detach().clone() for name, each in network.state_dict().items()}
        said = "the best so far" if better else f"the best is {self.best[1]:.2f}, of step {self.best[0]}"
        self.report(
            f"step {self.done}/{self.steps}  mAP on {self.held_out.images:,} held-out images: {value:.2f} ({said})"
        )
        network.train()

    @override
    def ended(self) -> bool:
        """Whether it has been no better for ``held_out.patience`` checks."""
        return 0 < self.held_out.patience <= self.stale

    @override
    def log_values(self) -> dict[str, Tensor]:
        """The mAP of the last check, in percent."""
        return {"validation/mAP": torch.tensor(self.maps[-1][1], device=self.device)} if self.maps else {}

    @override
    def state_dict(self) -> dict[str, Tensor]:
        """The best weights, and every check so far."""
        checks = torch.tensor(self.maps, dtype=torch.float64).reshape(-1, 2)
        kept = {f"{BEST}{name}": value for name, value in self.weights.items()}
        return {"checks": checks, "done": torch.tensor([self.done, self.stale]), **kept}

    @override
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore them."""
        if not state:
            return
        self.done, self.stale = (int(value) for value in state["done"].tolist())
        self.maps = [(int(step), value) for step, value in state["checks"].tolist()]
        own = {name.removeprefix(BEST): value for name, value in state.items() if name.startswith(BEST)}
        self.weights = {name: value.to(self.device) for name, value in own.items()}

    @override
    def finish(self, network: nn.Module) -> None:
        """Give the network its best weights, and say so."""
        network.load_state_dict(self.weights)
        step, value = self.best
        early = f", which ended after step {self.done}" if self.done < self.steps else ""
        self.report(
            f"kept the student of step {step} of {self.steps}{early}: mAP {value:.2f} on {self.held_out.images:,} held-out images"
        )

    def write_record(self, path: Path) -> None:
        """Write which student was kept, and every check."""
        step, value = self.best
        record = {"images": self.held_out.images, "kept_step": step, "map": value, "last_step": self.done}
        checks = [{"step": at, "map": each} for at, each in self.maps]
        write_atomically(path, json.dumps({**record, "checks": checks}, indent=1) + "\n")
