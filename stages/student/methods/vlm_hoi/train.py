"""Train one MUREN student: stream, forward, loss, step, save.

    train(VlmHoiConfig(), TrainingSet(...), run_dir)

A run folder holds ``checkpoint/`` (what prediction needs), ``state/`` (what resuming needs), ``metrics.jsonl`` and
TensorBoard's ``tensorboard/``. Calling :func:`train` again on the folder of a killed run goes on from its last save and
ends with the weights of an undisturbed run, bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.method import NOTHING, Extras
from hoi_distill.stages.student.methods.vlm_hoi.config import BOOKKEEPING, VlmHoiConfig, network_config, starting_place
from hoi_distill.stages.student.methods.vlm_hoi.image_set import ImageBatch, StepBatches
from hoi_distill.stages.student.methods.vlm_hoi.initial_weights import LoadReport, initialise
from hoi_distill.stages.student.methods.vlm_hoi.losses import ItmTables, batch_loss
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren, MurenOutput
from hoi_distill.stages.student.methods.vlm_hoi.student import VlmHoiStudent
from hoi_distill.stages.student.methods.vlm_hoi.teacher_scores import ItmSupervision, itm_supervision
from hoi_distill.stages.student.training.components import Ema, FiniteCheck, named_images
from hoi_distill.stages.student.training.loop import Step, Trainer, TrainingRun, finish, new_accelerator
from hoi_distill.stages.student.training.metrics import NonFiniteLoss
from hoi_distill.stages.student.training.optimization import ParameterGroup, adamw
from hoi_distill.stages.student.training.processes import Processes
from hoi_distill.stages.student.training.resume import run_name
from hoi_distill.storage.errors import placed

DROP = 0.1
"""What the learning rates are multiplied by at ``drop_epoch``."""


def train(
    config: VlmHoiConfig,
    data: TrainingSet,
    run_dir: Path,
    extras: Extras = NOTHING,
) -> VlmHoiStudent:
    """Train to the end, from the last save if there is one, and save the student in ``run_dir/checkpoint``.

    Raises:
        NonFiniteLoss: training has diverged.
        UserError: the run folder holds another run's state, or there is nothing to train on.
    """
    # The stream.
    (run_dir / "state").mkdir(parents=True, exist_ok=True)
    # a backbone may have stages beyond the one that is read
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = new_accelerator(run_dir, config.precision, ddp)
    rank, world = accelerator.process_index, accelerator.num_processes
    with accelerator.main_process_first():
        supervision = itm_supervision(config, data, run_dir / "state", extras.shared_dir)
    batches = StepBatches(
        config,
        data,
        len(data.vocabulary.objects),
        labelled=supervision.labelled,
        unlabelled=supervision.unlabelled,
        rank=rank,
        world=world,
    )

    # The network at step 0.
    model, start = new_network(config, data.vocabulary)
    average = Ema(model, config.ema, accelerator.device)
    if accelerator.is_main_process:
        for line in (f"start: {start}", *supervision.lines):
            extras.report(line)

    # Forward, loss, step, save.
    trainer = Trainer(
        model,
        optimizer=adamw(parameter_groups(model, config), fused=config.fused_optimizer),
        batches=batches,
        loss=StepLoss(config, batches, supervision, accelerator),
        schedule=lambda step: DROP if batches.epochs(step) >= config.drop_epoch else 1.0,
        config=config,
        run=TrainingRun(
            run_dir,
            run_name(config, BOOKKEEPING, data),
            extras.report,
            extras.stop,
            config.loader_workers,
            extras.track,
        ),
        accelerator=accelerator,
        components=(
            FiniteCheck(accelerator, lambda _, number: describe_batch(data, batches[number]), log_norm=True),
            average,
        ),
        logged_group=-1,
    )
    network = trainer.fit()

    # Save.
    average.copy_to(network)
    student = VlmHoiStudent(
        network, data.vocabulary, config, extras.identities, {"from": config.start, **asdict(start)}
    )
    finish(student, run_dir, accelerator)
    return student


def new_network(config: VlmHoiConfig, vocabulary: Vocabulary) -> tuple[Muren, LoadReport]:
    """The network at step 0, and which of its weights come from the configured start.

    Raises:
        UserError: keys of ``model`` that make no network, or a start that does not fit it.
    """
    torch.manual_seed(config.seed)
    shape = network_config(config, vocabulary)
    with placed("student.model."):
        model = Muren(shape)
    with placed("student.start: "):
        start = initialise(
            model,
            None if config.start is None else starting_place(config.start),
            allow_random_decoder=config.allow_random_decoder,
            decoders_from_detr=config.decoders_from_detr,
        )
    return model, start


class StepLoss:
    """The loss of a step's batch.

    Args:
        config: the method's parameters.
        batches: know how many epochs a step comes after.
        supervision: what is distilled.
        accelerator: the processes that share a batch.
    """

    def __init__(
        self, config: VlmHoiConfig, batches: StepBatches, supervision: ItmSupervision, accelerator: Accelerator
    ) -> None:
        self.config, self.batches, self.processes = config, batches, Processes.of(accelerator)
        device = accelerator.device
        self.tables = ItmTables.of(supervision.labelled, device), ItmTables.of(supervision.unlabelled, device)

    def __call__(self, model: nn.Module, batch: ImageBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms by name. At a logged step the terms include the ratios of gradients.

        Raises:
            NonFiniteLoss: the network's answers are not finite.
        """
        output = MurenOutput(*(each.float() for each in model(batch.pixels, batch.mask)))
        epoch = self.batches.epochs(step.number)
        try:
            return batch_loss(
                output, batch, self.config, self.tables, epoch, processes=self.processes, ratios=step.logged
            )
        except FloatingPointError as error:  # answers that cannot be matched
            where = describe_batch(self.batches.data, batch)
            raise NonFiniteLoss(f"step {step.number + 1}: {error}; {where}") from None


def parameter_groups(model: Muren, config: VlmHoiConfig) -> list[ParameterGroup]:
    """The parameters that learn, those of the backbone at a rate of their own."""
    own = {id(parameter) for parameter in model.backbone.parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = config.weight_decay
    rest = {"params": [p for p in learning if id(p) not in own], "lr": config.learning_rate, "weight_decay": decay}
    backbone = {
        "params": [p for p in learning if id(p) in own], "lr": config.backbone_learning_rate, "weight_decay": decay,
    }  # fmt: skip
    return [group for group in (rest, backbone) if group["params"]]


def describe_batch(data: TrainingSet, batch: ImageBatch) -> str:
    """The images of a batch whose pixels are not finite; all of them if there are none."""
    broken = (~torch.isfinite(batch.pixels).flatten(1).all(1)).nonzero().flatten().tolist()
    rows = [int(batch.rows[place]) for place in broken or range(len(batch.rows))]
    return named_images("broken images" if broken else "images", rows, data)
