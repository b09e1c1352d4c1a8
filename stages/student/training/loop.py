"""The training loop of every method: resume, forward, loss, step, log, save.

A batch, a learning rate and the random numbers of a step are functions of the step's number and the seed. A killed run
that is started again continues from its last save and ends with the weights of an undisturbed run, bit for bit on a CPU
with the same number of threads.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import KwargsHandler
from torch import Tensor, nn
from torch.utils.data import Dataset
from typing_extensions import override

from hoi_distill.stages.student.data import Report
from hoi_distill.stages.student.method import Track, untracked
from hoi_distill.stages.student.student import Student
from hoi_distill.stages.student.training.components import Component, Components, LossScale, StepResult
from hoi_distill.stages.student.training.loading import batches_ahead, moved
from hoi_distill.stages.student.training.metrics import MetricsLog, NonFiniteLoss, StepProgress
from hoi_distill.stages.student.training.optimization import Schedule
from hoi_distill.stages.student.training.options import Precision
from hoi_distill.stages.student.training.processes import Processes
from hoi_distill.stages.student.training.resume import load_state, save_state

Network = TypeVar("Network", bound=nn.Module)
BatchT_co = TypeVar("BatchT_co", covariant=True)


class Step(NamedTuple):
    """One training step.

    Attributes:
        number: the step's number, from 0.
        logged: whether the loss terms of this step are written to the log.
    """

    number: int
    logged: bool = False


Loss = Callable[[nn.Module, Any, Step], tuple[Tensor, dict[str, Tensor]]]
"""``(model, batch, step) -> (loss, log values by name)``. All are scalar tensors: the loop reads them once, when it logs."""


class BatchSource(Dataset[BatchT_co]):
    """Batches by step, on the CPU: tensors, also in dataclasses, tuples, dicts and lists."""

    @abstractmethod
    def __len__(self) -> int:
        """Steps of the whole training."""

    @abstractmethod
    @override
    def __getitem__(self, step: int) -> BatchT_co:
        """This process's share of a step's batch."""

    @abstractmethod
    def epochs(self, steps: int) -> float:
        """Epochs that so many steps make."""


class LoopConfig(Protocol):
    """What the loop reads of a method's configuration."""

    @property
    def seed(self) -> int:
        """Seed of a step's random numbers, together with its number."""

    @property
    def clip_norm(self) -> float:
        """Largest norm of a step's gradient."""

    @property
    def log_every(self) -> int:
        """Steps between two lines of the log."""

    @property
    def save_every(self) -> int:
        """Steps between two saves of the resume state."""

    @property
    def tf32(self) -> bool:
        """Whether products of float32 matrices are by TF32."""


@dataclass(frozen=True)
class TrainingRun:
    """Where a training is kept and whom it tells.

    Attributes:
        folder: holds ``state/``, ``metrics.jsonl`` and ``tensorboard/``.
        name: digest of what decides the weights, see :func:`hoi_distill.stages.student.training.resume.run_name`.
        report: gets lines for people.
        stop: once it is set, the loop finishes and saves the current step and raises KeyboardInterrupt.
        loader_workers: processes that load batches; 0: a thread of this process does.
        track: gets what is logged, ``({name: value}, step)``, on the main process.
    """

    folder: Path
    name: str
    report: Report = print
    stop: threading.Event | None = None
    loader_workers: int = 0
    track: Track = untracked


@dataclass(frozen=True)
class Trainer(Generic[Network]):
    """Trains one network.

    Attributes:
        model: a new network of the configured seed.
        optimizer: over the model's parameters; each group's ``lr`` is its rate at factor 1.
        schedule: factor of the learning rates by step.
        components: parts with a state or a check of their own, in the order in which they are called.
        logged_group: position of the parameter group whose learning rate is logged.
    """

    model: Network
    optimizer: torch.optim.Optimizer
    batches: BatchSource[Any]
    loss: Loss
    schedule: Schedule
    config: LoopConfig
    run: TrainingRun
    accelerator: Accelerator
    components: Sequence[Component] = ()
    logged_group: int = 0

    def fit(self) -> Network:
        """Train to the last step, from the last save in ``run.folder/state`` if there is one.

        Returns:
            The trained network, in evaluation mode.

        Raises:
            NonFiniteLoss: the training has diverged, or a cached value is broken.
            UserError: the run folder holds the state of another run.
        """
        with float32_products(tf32=self.config.tf32):
            return self._fit()

    def _fit(self) -> Network:
        accelerator, run, config = self.accelerator, self.run, self.config
        processes = Processes.of(accelerator)
        report = run.report if accelerator.is_main_process else silent
        components = Components(LossScale(accelerator), *self.components)
        state = run.folder / "state" / "latest.safetensors"
        rates = [group["lr"] for group in self.optimizer.param_groups]
        done, kept = load_state(state, self.model, self.optimizer, run.name, report=report)
        model, optimizer = accelerator.prepare(self.model, self.optimizer)
        components.load_state_dict(kept)
        log = MetricsLog(run.folder / "metrics.jsonl", done, accelerator, report, run.track)
        steps = len(self.batches)
        on_gpu = accelerator.device.type == "cuda"
        left = range(done, done if components.ended() else steps)
        batches = batches_ahead(self.batches, left, workers=run.loader_workers, pin=on_gpu)
        progress = StepProgress(done, steps, report)
        model.train()
        for number, batch in enumerate(batches, done):
            last = number + 1 == steps
            step = Step(number, logged=(number + 1) % config.log_every == 0 or last)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.schedule(number)
            try:
                result = self.step(model, optimizer, components, batch, step)
            except NonFiniteLoss:
                components.settle(self.model)  # an earlier step may have broken the weights
                raise
            stopped, ended = self._stopped(step), components.ended()
            saved = (number + 1) % config.save_every == 0 or last or stopped or ended
            if step.logged or saved:
                components.settle(self.model)
            if step.logged:
                values = {"loss": result.loss, **result.terms, **components.log_values()}
                epoch, lr = round(self.batches.epochs(number + 1), 3), optimizer.param_groups[self.logged_group]["lr"]
                log.write({"step": number + 1, "epoch": epoch, **processes.average(values), "lr": lr})
            if saved and accelerator.is_main_process:
                save_state(state, self.model, optimizer.optimizer, number + 1, run.name, more=components.state_dict())
            progress(number + 1, result.loss)
            if ended:
                break
            if stopped and not last:
                accelerator.wait_for_everyone()  # the main process saves; a launcher ends all once one has ended
                raise KeyboardInterrupt
        components.finish(self.model)
        accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # it answers as when it is loaded, in float32
        return self.model.eval()

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, components: Component, batch: Any, step: Step
    ) -> StepResult:
        """One step. The host does not wait for the device.

        Args:
            model: the network as this process trains it.
            optimizer: of its parameters, with this step's learning rates.
            components: all components.
            batch: this process's share of the batch, on the CPU.
            step: which step it is.

        Raises:
            NonFiniteLoss: the network's answers cannot be matched with annotations.
        """
        torch.manual_seed(random_seed(self.config.seed, step.number, self.accelerator.process_index))
        result = self._backward(model, optimizer, moved(batch, self.accelerator.device), step)
        components.before_step(self.model, result)
        optimizer.step()
        components.after_step(self.model)
        return result

    def _backward(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, step: Step) -> StepResult:
        """The loss of a batch and its gradients, clipped."""
        loss, terms = self.loss(model, batch, step)
        ddp = self.accelerator.ddp_handler
        if self.accelerator.num_processes > 1 and not (ddp is not None and ddp.find_unused_parameters):
            # Gradients are exchanged once every parameter has one, also a parameter that no term uses.
            loss = loss + 0 * sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad)
        optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip_norm)
        detached = {name: value.detach() for name, value in terms.items()}
        return StepResult(step.number, loss.detach(), detached, norm.detach())

    def _stopped(self, step: Step) -> bool:
        """Whether this step is the last one for now. Several processes agree at logged steps: they have to wait for it."""
        asked, processes = self.run.stop is not None and self.run.stop.is_set(), Processes.of(self.accelerator)
        return processes.any(asked) if processes.number == 1 or step.logged else False


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """In the block, products of float32 matrices are by TF32, or exact; then they are again as the process had them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def new_accelerator(folder: Path, precision: Precision, *handlers: KwargsHandler) -> Accelerator:
    """Of this process among those of a launcher, with the configured precision, logging into the run's folder."""
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # a process may train one student after another, each in its precision
    return Accelerator(
        mixed_precision=precision, log_with="tensorboard", project_dir=folder, kwargs_handlers=list(handlers)
    )


def finish(student: Student, run_dir: Path, accelerator: Accelerator) -> None:
    """Save a trained student in ``run_dir/checkpoint``, once, and close the logs of all processes."""
    if accelerator.is_main_process:
        student.save_pretrained(run_dir / "checkpoint")
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()


def random_seed(*numbers: int) -> int:
    """The seed of a step, from its number, the run's seed and the process: no step depends on what another has drawn."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def silent(line: str) -> None:
    """A report that nobody reads."""
