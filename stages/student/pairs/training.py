"""Training a network of pairs: what all such methods give to the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.pairs.batches import PairBatch, Share
from hoi_distill.stages.student.pairs.config import BOOKKEEPING, ConfigT
from hoi_distill.stages.student.pairs.terms import PairOutput, Predictions, Term, WeightedLoss
from hoi_distill.stages.student.student import VALIDATION_RECORD, HeldOut, Student
from hoi_distill.stages.student.training.components import FiniteCheck, named_images
from hoi_distill.stages.student.training.gradients import gradient_squares, norm_ratio
from hoi_distill.stages.student.training.loading import moved
from hoi_distill.stages.student.training.loop import (
    BatchSource,
    Loss,
    Step,
    Trainer,
    TrainingRun,
    new_accelerator,
    silent,
)
from hoi_distill.stages.student.training.optimization import ParameterGroup, WarmupCosine, adamw, parameter_groups
from hoi_distill.stages.student.training.processes import ALONE, Processes
from hoi_distill.stages.student.training.resume import run_name
from hoi_distill.stages.student.training.validation import Validation

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class TermLoss:
    """The loss of a network of pairs: the weighted sum of its terms.

    Attributes:
        terms: the supervision terms.
        processes: the processes that share a batch.
        output_of: from what the network returns to its :class:`~hoi_distill.stages.student.pairs.terms.PairOutput`.
    """

    terms: Sequence[Term]
    processes: Processes = ALONE
    output_of: Callable[[Any], PairOutput] = lambda output: output

    def __call__(self, model: nn.Module, batch: PairBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the unweighted losses as ``loss/<name>``.

        Of losses that are compared with the others, ``gradient_ratio/<name>`` is the share of the others' gradient that the
        weighted loss has; of those whose weight is a share, ``weight/<name>`` is the factor that the share amounts to.
        """
        output = self.output_of(model(batch.regions))
        predictions = Predictions(output, batch.regions, batch.candidates, self.processes)
        # Text embeddings have a gradient (of 0) in every step, also where no term uses them.
        total = output.logits.new_zeros(()) if output.text_space is None else output.text_space.pairs.sum() * 0
        values: dict[str, Tensor] = {}
        losses = [
            loss for term in self.terms for loss in term.losses(predictions, batch.targets[term.name], step.number)
        ]
        ratios = self._ratios(losses, step)
        for loss in losses:
            weight: Tensor | float = loss.weight
            if (ratio := ratios.get(loss.name)) is not None:
                if loss.share:
                    weight = values[f"weight/{loss.name}"] = torch.where(ratio > 0, loss.weight / ratio, 0.0)
                values[f"gradient_ratio/{loss.name}"] = torch.where(weight * ratio >= 0, weight * ratio, 0.0)
            total = total + weight * loss.value
            values[f"loss/{loss.name}"] = loss.value
        return total, values

    def _ratios(self, losses: Sequence[WeightedLoss], step: Step) -> dict[str, Tensor]:
        """By name: how the gradient of an unweighted loss compares with that of the losses that are compared with nothing."""
        compared = [loss for loss in losses if loss.at and (loss.share or step.logged)]
        if not compared:
            return {}
        main = torch.stack([loss.weight * loss.value for loss in losses if not loss.at]).sum()
        places = [place for loss in compared for place in loss.at]
        below = gradient_squares(main, places).split([len(loss.at) for loss in compared])  # all in one backward pass
        squares = [
            torch.stack((gradient_squares(loss.value, loss.at).sum(), own.sum()))
            for loss, own in zip(compared, below, strict=True)
        ]
        above, own = self.processes.mean(torch.stack(squares)).unbind(1)
        return dict(zip([loss.name for loss in compared], norm_ratio(above, own).unbind(), strict=True))

    def logits_of(self, output: Any) -> Tensor:
        """Interaction logits, float ``[P, H]``, of what the network returns."""
        return self.output_of(output).logits[-1]


@dataclass(frozen=True)
class PairTraining(Generic[ConfigT]):
    """A training of pairs whose run folder and processes are ready.

    Attributes:
        config: the method's parameters.
        data: the training set.
        run: where the training is kept.
        accelerator: this process among those of a launcher.
        held_out: images by which the best network is chosen.
    """

    config: ConfigT
    data: TrainingSet
    run: TrainingRun
    accelerator: Accelerator
    held_out: HeldOut | None = None

    @classmethod
    def open(
        cls,
        config: ConfigT,
        data: TrainingSet,
        folder: Path,
        extras: Extras,
    ) -> PairTraining[ConfigT]:
        """Make the run folder and join the launcher's processes.

        Args:
            config: the method's parameters.
            data: the training set.
            folder: the run folder.
            extras: its ``report`` gets lines for people; its ``stop`` ends the training early.
        """
        (folder / "state").mkdir(parents=True, exist_ok=True)
        accelerator = new_accelerator(folder, config.precision)
        run = TrainingRun(
            folder,
            run_name(config, BOOKKEEPING, data),
            extras.report,
            extras.stop,
            config.loader_workers,
            extras.track,
        )
        return cls(config, data, run, accelerator, extras.held_out)

    @property
    def share(self) -> Share:
        """This process's share of every batch."""
        return Share(self.accelerator.process_index, self.accelerator.num_processes)

    @property
    def processes(self) -> Processes:
        """The processes that share a batch."""
        return Processes.of(self.accelerator)

    def fit(
        self,
        model: Network,
        batches: BatchSource[Any],
        loss: Loss,
        *,
        logits_of: Callable[[Any], Tensor],
        groups: Sequence[ParameterGroup] | None = None,
        student_of: Callable[[Network], Student] | None = None,
    ) -> Network:
        """Train ``model`` to the last step, see :meth:`hoi_distill.stages.student.training.loop.Trainer.fit`.

        Args:
            model: a new network of ``config.seed``.
            batches: the batches by step.
            loss: the loss of a batch.
            logits_of: from the network's output to interaction logits, float ``[P, H]``; for error messages.
            groups: parameter groups, each with its learning rate; default: all parameters at the configured rate.
            student_of: from the network to its student, where held-out images may choose the best one.

        Raises:
            NonFiniteLoss: the training has diverged, or a cached value is broken.
            UserError: the run folder holds the state of another run.
        """
        config = self.config
        groups = groups or parameter_groups(model, config.learning_rate, config.weight_decay)

        def describe(network: nn.Module, number: int) -> str:
            batch = moved(batches[number], self.accelerator.device)
            with torch.no_grad():
                return describe_batch(batch, logits_of(network(batch.regions)), self.data)

        validation = self._validation(student_of)
        network = Trainer(
            model,
            optimizer=adamw(groups, fused=config.fused_optimizer),
            batches=batches,
            loss=loss,
            schedule=WarmupCosine(config.steps, config.warmup_steps),
            config=config,
            run=self.run,
            accelerator=self.accelerator,
            components=(FiniteCheck(self.accelerator, describe), *([] if validation is None else [validation])),
        ).fit()
        if validation is not None and self.accelerator.is_main_process:
            validation.write_record(self.run.folder / VALIDATION_RECORD)
        return network

    def _validation(self, student_of: Callable[[Any], Student] | None) -> Validation | None:
        if self.held_out is None or student_of is None:
            return None
        accelerator, run = self.accelerator, self.run
        return Validation(
            self.held_out,
            self.config.steps,
            student_of,
            folder=run.folder / "state" / f"held-out-{accelerator.process_index}",
            device=accelerator.device,
            processes=self.processes,
            report=run.report if accelerator.is_main_process else silent,
        )


def describe_batch(batch: PairBatch, logits: Tensor, data: TrainingSet) -> str:
    """The images whose feature maps or else logits (float ``[P, H]``) are not finite; all of the batch if there are none."""
    regions = batch.regions
    broken = (~torch.isfinite(regions.maps.flatten(1)).all(1)).nonzero().flatten().tolist()
    diverged = torch.unique(regions.pair_image[~torch.isfinite(logits).all(1)]).tolist()
    places = broken or diverged or range(len(batch.rows))
    what = "feature maps that are not finite in" if broken else "images"
    return named_images(what, [int(batch.rows[place]) for place in places], data)
