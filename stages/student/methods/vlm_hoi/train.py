"""Train one MUREN student: stream, forward, loss, step, save.

    train(VlmHoiConfig(), TrainingSet(...), run_dir)

A run folder holds ``checkpoint/`` (what prediction needs), ``state/`` (what resuming needs), ``metrics.jsonl`` and
TensorBoard's ``tensorboard/``. Calling :func:`train` again on the folder of a killed run goes on from its last save and
ends with the weights of an undisturbed run, bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.data import Report, TrainingSet
from hoi_distill.stages.student.method import NOTHING, Extras, parameters_of
from hoi_distill.stages.student.methods.vlm_hoi.config import BOOKKEEPING, VlmHoiConfig, network_config, starting_place
from hoi_distill.stages.student.methods.vlm_hoi.initial_weights import Report as StartReport
from hoi_distill.stages.student.methods.vlm_hoi.initial_weights import initialise
from hoi_distill.stages.student.methods.vlm_hoi.losses import ItmTables, batch_loss
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren, MurenOutput
from hoi_distill.stages.student.methods.vlm_hoi.picture_set import Batch, StepBatches
from hoi_distill.stages.student.methods.vlm_hoi.student import VlmHoiStudent
from hoi_distill.stages.student.methods.vlm_hoi.teacher_scores import teaching
from hoi_distill.stages.student.training.loop import finish, random_seed
from hoi_distill.stages.student.training.metrics import MetricsLog, NonFiniteLoss, Progress
from hoi_distill.stages.student.training.processes import Processes
from hoi_distill.stages.student.training.resume import load_state, save_state
from hoi_distill.storage.digests import content_name
from hoi_distill.storage.errors import placed

DROP = 0.1
"""What the learning rates are multiplied by at ``drop_epoch``."""
LEAST_SCALE = 1.0
"""Below this loss scale fp16 has not overflowed by chance."""


def train(
    config: VlmHoiConfig,
    data: TrainingSet,
    run_dir: Path,
    extras: Extras = NOTHING,
    *,
    report: Report = print,
) -> VlmHoiStudent:
    """Train to the end, from the last save if there is one, and save the student in ``run_dir/checkpoint``.

    Raises:
        NonFiniteLoss: training has diverged.
        UserError: the run folder holds another run's state, or there is nothing to train on.
    """
    # The stream.
    (run_dir / "state").mkdir(parents=True, exist_ok=True)
    accelerator = new_accelerator(config, run_dir)
    rank, world = accelerator.process_index, accelerator.num_processes
    processes = Processes.of(accelerator)
    with accelerator.main_process_first():
        taught = teaching(config, data, run_dir / "state")
    batches = StepBatches(config, data, len(data.vocabulary.objects), taught.labelled, taught.unlabelled, rank, world)
    tables = ItmTables.of(taught.labelled, accelerator.device), ItmTables.of(taught.unlabelled, accelerator.device)

    # The network, as it was left.
    model, start = new_network(config, data.vocabulary)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=config.weight_decay, foreach=True)
    average = MovingAverage(model, config.ema)
    run, state = run_name(config, data), run_dir / "state" / "latest.safetensors"
    more = dict(average.weights)
    say: Report = report if accelerator.is_main_process else lambda line: None
    done = load_state(state, model, optimizer, run, more, say)
    model, optimizer = accelerator.prepare(model, optimizer)
    network = accelerator.unwrap_model(model)
    average.restore(network, more)
    restore_scaler(accelerator, more)
    log = MetricsLog(run_dir / "metrics.jsonl", done, accelerator, say)
    for line in (f"start: {start}", *taught.said):
        say(line)

    # Forward, loss, step, save.
    steps = batches.steps
    loader: DataLoader[Batch] = DataLoader(
        batches, batch_size=None, sampler=range(done, steps), num_workers=config.loader_workers
    )
    progress = Progress(done, steps, say)
    model.train()
    for step, batch in enumerate(loader, done):
        batch = batch.to(accelerator.device)
        torch.manual_seed(random_seed(config.seed, step, rank))
        epoch = batches.epoch(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * (DROP if epoch >= config.drop_epoch else 1)
        last = step + 1 == steps
        logged = (step + 1) % config.log_every == 0 or last
        try:
            terms = learn(model, optimizer, batch, config, tables, epoch, processes, accelerator, logged)
        except FloatingPointError as error:
            raise NonFiniteLoss(describe(step, batch, data, str(error))) from None
        average.update(network)
        stopped = processes.any(extras.stop is not None and extras.stop.is_set())
        if logged:
            values = {name: value.item() for name, value in accelerator.reduce(terms, "mean").items()}
            log.write({"step": step + 1, "epoch": round(batches.epoch(step + 1), 3), **values, "lr": group["lr"]})
        if ((step + 1) % config.save_every == 0 or last or stopped) and accelerator.is_main_process:
            more = {**average.weights, **scaler_state(accelerator)}
            save_state(state, network, optimizer.optimizer, step + 1, run, more)
        progress(step + 1, terms["loss"])
        if stopped and not last:
            accelerator.wait_for_everyone()  # for the one that saves: a launcher ends all once one has ended
            raise KeyboardInterrupt

    # Save.
    average.give_to(network)
    student = VlmHoiStudent(
        network.eval(), data.vocabulary, config, extras.identities, {"from": config.start, **asdict(start)}
    )
    finish(student, run_dir, accelerator)
    return student


def new_accelerator(config: VlmHoiConfig, run_dir: Path) -> Accelerator:
    """Of this process among those of a launcher, with the configured precision, logging into the run's folder."""
    return Accelerator(
        mixed_precision=config.precision,
        log_with="tensorboard",
        project_dir=run_dir,
        # a backbone may have stages beyond the one that is read
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def new_network(config: VlmHoiConfig, vocabulary: Vocabulary) -> tuple[Muren, StartReport]:
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


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: VlmHoiConfig,
    tables: tuple[ItmTables | None, ItmTables | None],
    epoch: float,
    processes: Processes,
    accelerator: Accelerator,
    ratios: bool,
) -> dict[str, Tensor]:
    """One step: forward, loss, backward, clip, step. Returns the loss, its terms and the gradient's norm, by name.

    Raises:
        FloatingPointError: one of them is not finite.
    """
    output = MurenOutput(*(each.float() for each in model(batch.pixels, batch.mask)))
    loss, terms = batch_loss(output, batch, config, tables, epoch, processes, ratios)
    optimizer.zero_grad()
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
    terms = {"loss": loss.detach(), **terms, "gradient_norm": norm.detach()}
    if not torch.isfinite(loss) or not (torch.isfinite(norm) or overflowed_by_chance(accelerator)):
        raise FloatingPointError(", ".join(f"{name} {value.item():.4g}" for name, value in terms.items()))
    optimizer.step()
    return terms


def parameter_groups(model: Muren, config: VlmHoiConfig) -> list[dict[str, Any]]:
    """What learns, the backbone at its own rate; ``peak`` is each group's rate before it drops."""
    own = {id(parameter) for parameter in model.backbone.parameters()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rest = {"params": [p for p in learning if id(p) not in own], "peak": config.learning_rate}
    backbone = {"params": [p for p in learning if id(p) in own], "peak": config.backbone_learning_rate}
    return [{**group, "lr": group["peak"]} for group in (rest, backbone) if group["params"]]


class MovingAverage:
    """An exponential moving average of a network's weights. With decay 0 there is none.

    Attributes:
        weights: ``{"ema.<name>": tensor}`` of the floating point entries of the network's state.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        named = network.state_dict() if decay else {}
        self.weights = {f"ema.{name}": value.clone() for name, value in named.items() if value.is_floating_point()}

    def restore(self, network: nn.Module, saved: dict[str, Tensor]) -> None:
        """Take what was saved, onto the network's device."""
        device = next(network.parameters()).device
        self.weights = {name: saved[name].to(device) for name in self.weights}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        if self.decay:
            for name, value in network.state_dict().items():
                if (key := f"ema.{name}") in self.weights:
                    self.weights[key].lerp_(value, 1 - self.decay)

    def give_to(self, network: nn.Module) -> None:
        """Replace the network's weights by their average."""
        network.load_state_dict({name[4:]: value for name, value in self.weights.items()}, strict=False)


def scaler_state(accelerator: Accelerator) -> dict[str, Tensor]:
    """fp16's loss scale and the steps since it changed; nothing in other precisions."""
    if accelerator.scaler is None:
        return {}
    state = accelerator.scaler.state_dict()
    return {"scaler.scale": torch.tensor(state["scale"]), "scaler.steps": torch.tensor(state["_growth_tracker"])}


def restore_scaler(accelerator: Accelerator, saved: dict[str, Tensor]) -> None:
    if accelerator.scaler is not None and "scaler.scale" in saved:
        state = accelerator.scaler.state_dict()
        state["scale"], state["_growth_tracker"] = saved["scaler.scale"].item(), int(saved["scaler.steps"].item())
        accelerator.scaler.load_state_dict(state)


def overflowed_by_chance(accelerator: Accelerator) -> bool:
    """Whether gradients that are not finite are fp16's to skip: the scaler then halves its scale."""
    return accelerator.scaler is not None and accelerator.scaler.get_scale() > LEAST_SCALE


def run_name(config: VlmHoiConfig, data: TrainingSet) -> str:
    """A digest of what decides a run's weights; a saved state of another name is not resumed."""
    weights = parameters_of(config, BOOKKEEPING)
    record = [weights, data.identity, len(data.image), int(data.labelled.sum()), data.vocabulary.digest()]
    return content_name(json.dumps(record).encode(), 8)


def describe(step: int, batch: Batch, data: TrainingSet, what: str) -> str:
    """One line: the step, what is not finite, and the batch's pictures, those with broken pixels alone if there are any."""
    broken = (~torch.isfinite(batch.pixels).flatten(1).all(1)).nonzero().flatten().tolist()
    rows = [int(batch.rows[place]) for place in broken or range(len(batch.rows))]
    names = [str(data.annotations.image_id[int(data.image[row])]) for row in rows]
    return f"step {step + 1}: {what}; {'broken ' if broken else ''}pictures rows {rows}, image ids {names}"
