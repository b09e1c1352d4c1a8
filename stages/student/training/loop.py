"""The steps of training a student of pairs, whatever its network and loss: resume, forward, loss, step, log, save.

Every step is a pure function of its number, the seed and the weights before it, so a killed run that is started again goes
on from its last save and ends with the weights of an undisturbed one, bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hoi_distill.stages.student.data import Report, TrainingSet
from hoi_distill.stages.student.pairs.batches import Batch, PictureBatches
from hoi_distill.stages.student.pairs.config import BOOKKEEPING, PairsConfig
from hoi_distill.stages.student.pairs.losses import focal_terms
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.stages.student.student import Student
from hoi_distill.stages.student.training.metrics import MetricsLog, NonFiniteLoss, Progress
from hoi_distill.stages.student.training.processes import Processes
from hoi_distill.stages.student.training.resume import load_state, save_state
from hoi_distill.storage.digests import content_name

Network = TypeVar("Network", bound=nn.Module)
NAMED = 8
"""Pictures named in an error, at most."""
Loss = Callable[[nn.Module, Any, int], tuple[Tensor, dict[str, float]]]
"""``(network, batch, step) -> (loss, its terms by name)``."""


def train_steps(
    config: PairsConfig,
    data: TrainingSet,
    batches: PictureBatches,
    model: Network,
    loss_of: Loss,
    logits_of: Callable[[Any], Tensor],
    run_dir: Path,
    accelerator: Accelerator,
    *,
    groups: list[dict[str, Any]] | None = None,
    loader_workers: int = 0,
    stop: threading.Event | None = None,
    report: Report = print,
) -> Network:
    """Train ``model`` to the last step, from the last save in ``run_dir/state`` if there is one.

    Args:
        model: a fresh network of ``config.seed``; logits_of: from its output to interaction logits, float ``[P, H]``.
        groups: its parameters as the optimiser takes them, each maybe with a ``scale`` of the learning rate; default:
            :func:`parameter_groups`.
        stop: once it is set, the step under way is finished and saved and KeyboardInterrupt raised.

    Returns:
        The trained network, in evaluation mode.

    Raises:
        NonFiniteLoss: training has diverged or a cached value is broken.
        UserError: the run folder holds another run's state.
    """
    optimizer = torch.optim.AdamW(
        groups or parameter_groups(model, config.weight_decay), config.learning_rate, foreach=True
    )
    run, processes = run_name(config, data), Processes.of(accelerator)
    state = run_dir / "state" / "latest.safetensors"
    say: Report = report if accelerator.is_main_process else lambda line: None
    done = load_state(state, model, optimizer, run, report=say)
    model, optimizer = accelerator.prepare(model, optimizer)
    network: Network = accelerator.unwrap_model(model)
    log = MetricsLog(run_dir / "metrics.jsonl", done, accelerator, say)
    loader: DataLoader[Batch] = DataLoader(
        batches, batch_size=None, sampler=range(done, config.steps), num_workers=loader_workers
    )
    progress = Progress(done, config.steps, say)
    model.train()
    for step, batch in enumerate(loader, done):
        batch = batch.to(accelerator.device)
        torch.manual_seed(random_seed(config.seed, step, accelerator.process_index))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * group.get("scale", 1) * rate(step, config.steps, config.warmup_steps)
        loss, terms = loss_of(model, batch, step)
        if processes.number > 1:  # gradients are exchanged once every parameter has one, also what no term asks for
            loss = loss + 0 * sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad)
        optimizer.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            with torch.inference_mode():
                logits = logits_of(network(batch.regions))
            raise NonFiniteLoss(describe_non_finite(step, batch.rows, batch.regions, logits, data, terms, float(norm)))
        optimizer.step()
        stopped = processes.any(stop is not None and stop.is_set())
        last = step + 1 == config.steps
        if (step + 1) % config.log_every == 0 or last:
            epoch, lr = batches.epochs(step + 1), optimizer.param_groups[0]["lr"]
            values = processes.average({"loss": loss.item(), **terms})
            log.write({"step": step + 1, "epoch": round(epoch, 3), **values, "lr": lr})
        if ((step + 1) % config.save_every == 0 or last or stopped) and accelerator.is_main_process:
            save_state(state, network, optimizer.optimizer, step + 1, run)
        progress(step + 1, loss)
        if stopped and not last:
            accelerator.wait_for_everyone()  # for the one that saves: a launcher ends all once one has ended
            raise KeyboardInterrupt
    return network.eval()


def finish(student: Student, run_dir: Path, accelerator: Accelerator) -> None:
    """Save a trained student in ``run_dir/checkpoint``, once, and end the processes' logs together."""
    if accelerator.is_main_process:
        student.save_pretrained(run_dir / "checkpoint")
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()


def annotated_loss(
    final: Tensor, pair: Tensor, hoi: Tensor, batch: Batch, config: PairsConfig, processes: Processes
) -> Tensor:
    """The focal loss of annotated pairs, those of labelled pictures that are not ignored. A layer's is divided by the
    expected number of positives in the whole batch, over all ranks, at least 1; layers are averaged.

    Args:
        final: float ``[E]`` or ``[L, E]`` final logits of the entries (``pair``, ``hoi``), int64 ``[E]`` each.
    """
    target = batch.target[pair, hoi]
    counted = batch.labelled[batch.regions.pair_picture[pair]] & ~torch.isnan(target)
    final, target = final[..., counted], target[counted]
    terms = focal_terms(final, target.expand_as(final), config.focal_alpha, config.focal_gamma)
    layers = len(final) if final.ndim > 1 else 1
    return terms.sum() / (processes.share(target.sum()) * layers)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and scales do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 0: a factor of the learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def random_seed(*numbers: int) -> int:
    """One seed for a step: what it draws does not depend on what was drawn before it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def run_name(config: PairsConfig, data: TrainingSet) -> str:
    """A digest of what decides a run's weights; a saved state of another name is not resumed."""
    weights = {k: v for k, v in asdict(config).items() if k not in BOOKKEEPING}
    record = [weights, data.identity, len(data.source), int(data.labelled.sum()), data.vocabulary.digest()]
    return content_name(json.dumps(record).encode(), 8)


def describe_non_finite(
    step: int,
    batch_rows: Tensor,
    regions: Regions,
    logits: Tensor,
    data: TrainingSet,
    terms: dict[str, float],
    norm: float,
) -> str:
    """One line: the step, the terms, and the pictures whose own values are not finite, else all of the batch."""
    bad = torch.unique(regions.pair_picture[~torch.isfinite(logits).all(1)]).tolist()
    broken = (~torch.isfinite(regions.maps.flatten(1)).all(1)).nonzero().flatten().tolist()
    places = broken or bad or list(range(len(batch_rows)))
    rows, more = [int(batch_rows[place]) for place in places[:NAMED]], len(places) - NAMED
    names = [str(data.annotations.image_id[int(data.image[row])]) for row in rows]
    what = "feature maps that are not finite in" if broken else "pictures"
    others = f" and {more} more" if more > 0 else ""
    losses = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    return f"step {step + 1}: {losses}, gradient norm {norm:.4g}; {what} rows {rows}, image ids {names}{others}"
