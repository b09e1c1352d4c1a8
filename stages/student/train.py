"""Train one student: stream, forward, loss, step, evaluate, save.

    train(StudentConfig(), TrainingSet(...), run_dir)

A run folder holds ``checkpoint/`` (what prediction needs), ``state/`` (what resuming needs), ``metrics.jsonl`` and
TensorBoard's ``tensorboard/``. Calling :func:`train` again on the folder of a killed run goes on from its last save and
ends with the weights of an undisturbed run, bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from stages.student.batches import Batch, StepBatches
from stages.student.config import StudentConfig
from stages.student.losses import final_logit, focal_terms, image_terms
from stages.student.model import PairClassifier, Shape
from stages.student.pair_student import PairStudent
from stages.student.predict import entries, picture_probabilities
from stages.student.prepare import (
    Report,
    TestSet,
    TrainingSet,
    distils,
    map_reader,
    own_encoder,
    picture_table,
    soft_labels,
    valid_classes,
)
from stages.student.progress import MetricsLog, NonFiniteLoss, Progress
from stages.student.region_cnn import RegionCNN, RegionCNNConfig
from stages.student.state import load_state, save_state
from storage.errors import UserError

Evaluate = Callable[[Path], dict[str, float]]
"""Average precisions of a Parquet file of predictions, by name."""


def train(
    config: StudentConfig,
    data: TrainingSet,
    run_dir: Path,
    *,
    text_embeddings: np.ndarray | None = None,
    identities: dict[str, Any] | None = None,
    shared_dir: Path | None = None,
    cnn: RegionCNNConfig | None = None,
    test: TestSet | None = None,
    evaluate: Evaluate | None = None,
    loader_workers: int = 0,
    stop: threading.Event | None = None,
    report: Report = print,
) -> PairStudent:
    """Train to the end, from the last save if there is one; predict and evaluate ``test`` if given.

    Args:
        text_embeddings: float ``[H, D]`` of the interactions' prompts; the classifier's rows start from them.
        identities: what made the detections and features, recorded in the checkpoint.
        shared_dir: where variants of a study share the ``region_cnn`` encoder; default: the run folder's parent.
        stop: once it is set, the step under way is finished and saved and KeyboardInterrupt raised.
        evaluate: called with ``run_dir / "detections.parquet"``; what it returns is logged.

    Raises:
        NonFiniteLoss: training has diverged or a cached value is broken.
        UserError: the run folder holds another run's state, or there is nothing to train on.
    """
    # The stream.
    (run_dir / "state").mkdir(parents=True, exist_ok=True)
    shared = shared_dir or run_dir.parent
    accelerator = Accelerator(log_with="tensorboard", project_dir=run_dir)
    rank = accelerator.process_index

    def labels_only() -> PairStudent:
        own = replace(config, itm_on="none", teacher="itm")
        options: dict[str, Any] = {"text_embeddings": text_embeddings, "shared_dir": shared, "cnn": cnn}
        return train(own, data, run_dir / "labels_only", **options, report=lambda line: report(f"labels only: {line}"))

    batches, encoder = open_stream(config, data, run_dir, shared, cnn, accelerator, labels_only, report)
    valid = torch.from_numpy(valid_classes(data.vocabulary))

    # The network, as it was left.
    torch.manual_seed(config.seed)
    channels = batches.maps(batches.labelled_pool[:1], np.zeros(1, np.int64))[1].shape[1]
    model = build_model(config, data, channels, text_embeddings)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), config.learning_rate, foreach=True)
    run = run_name(config, data)
    state = run_dir / "state" / "latest.safetensors"
    done = load_state(state, model, optimizer, run)
    model, optimizer = accelerator.prepare(model, optimizer)
    network = accelerator.unwrap_model(model)
    log = MetricsLog(run_dir / "metrics.jsonl", done, accelerator)

    # Forward, loss, step, save.
    loader: DataLoader[Batch] = DataLoader(
        batches, batch_size=None, sampler=range(done, config.steps), num_workers=loader_workers
    )
    progress = Progress(done, config.steps, report)
    model.train()
    for step, batch in enumerate(loader, done):
        batch = batch.to(accelerator.device)
        torch.manual_seed(random_seed(config.seed, step, rank))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(step, config.steps, config.warmup_steps)
        weight = config.itm_weight * min(1.0, (step + 1) / max(config.itm_ramp, 1))
        loss, terms = batch_loss(model, batch, valid.to(accelerator.device), config, weight, accelerator)
        optimizer.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise NonFiniteLoss(describe_non_finite(step, batch, network, data, terms, float(norm)))
        optimizer.step()
        stopped = stop is not None and stop.is_set()
        last = step + 1 == config.steps
        if (step + 1) % config.log_every == 0 or last:
            epoch = (step + 1) * config.labelled_per_step / max(len(batches.labelled_pool), 1)
            log.write({"step": step + 1, "epoch": round(epoch, 3), "loss": loss.item(), **terms, "lr": group["lr"]})
        if ((step + 1) % config.save_every == 0 or last or stopped) and accelerator.is_main_process:
            save_state(state, network, optimizer.optimizer, step + 1, run)
        progress(step + 1, loss)
        if stopped and not last:
            raise KeyboardInterrupt

    # Evaluate, save.
    student = PairStudent(network.eval(), data.vocabulary, config, identities or {}, encoder)
    if accelerator.is_main_process:
        student.save_pretrained(run_dir / "checkpoint")
        if test is not None:
            predictions = student.predict(test, run_dir, shared, report)
            if evaluate is not None:
                log.trackers({f"AP/{name}": value for name, value in evaluate(predictions).items()}, config.steps)
    for tracker in accelerator.trackers:
        tracker.finish()
    return student


def open_stream(
    config: StudentConfig,
    data: TrainingSet,
    run_dir: Path,
    shared: Path,
    cnn: RegionCNNConfig | None,
    accelerator: Accelerator,
    labels_only: Callable[[], PairStudent],
    report: Report,
) -> tuple[StepBatches, RegionCNN | None]:
    """Every step's batch, and the student's own encoder if it has one. ``labels_only`` trains the student whose answers
    a self-trained one learns from. Raises UserError when there is nothing to train on."""
    folder = run_dir / "state"
    with accelerator.main_process_first():
        pictures = picture_table(folder / "pictures", data.source, config, data)
        if not (pictures.usable() & data.labelled).any():
            raise UserError("nothing to train on: no labelled picture has a person and another instance detected")
        own = config.encoder == "region_cnn"
        encoder = own_encoder(shared, data, pictures, cnn or RegionCNNConfig(), report) if own else None
        maps = map_reader(data.source, pictures, config.views, encoder, shared, data.read)
    if config.teacher == "self" and distils(config) and not (folder / "self.npy").exists():
        model = labels_only().model
        if accelerator.is_main_process:
            valid = torch.from_numpy(valid_classes(data.vocabulary))
            picture_probabilities(folder / "self.npy", model, pictures, maps, valid)
        accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        soft = soft_labels(folder, data, pictures, config)
    if soft is not None and soft.platt is not None:
        report(f"soft labels: sigmoid({soft.platt.slope:.3f} m {soft.platt.bias:+.3f})")
    rank, world, interactions = accelerator.process_index, accelerator.num_processes, len(data.vocabulary.hois)
    return StepBatches(config, pictures, maps, data.labelled, soft, interactions, rank, world), encoder


def build_model(config: StudentConfig, data: TrainingSet, channels: int, text: np.ndarray | None) -> PairClassifier:
    """A fresh network for the data's vocabulary and maps of ``channels``."""
    shape = Shape(
        channels=channels,
        objects=len(data.vocabulary.objects),
        text_width=None if text is None else text.shape[1],
        roi_size=config.roi_size,
        width=config.width,
        dropout=config.dropout,
        feature_dropout=config.feature_dropout,
        logit_scale=config.logit_scale,
    )
    verb = torch.from_numpy(data.vocabulary.hois[:, 0].astype(np.int64))
    return PairClassifier(shape, verb, None if text is None else torch.from_numpy(text.astype(np.float32)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and scales do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def batch_loss(
    model: nn.Module, batch: Batch, valid: Tensor, config: StudentConfig, itm_weight: float, accelerator: Accelerator
) -> tuple[Tensor, dict[str, float]]:
    """Annotated pairs of labelled pictures, plus soft labels where the batch has them.

    Each term is divided by its expected number of positives in the whole batch, over all ranks, at least 1.

    Returns:
        The loss and its terms by name.
    """
    logits = model(batch.regions)
    pair, hoi, prior = entries(batch.regions, valid)
    picture = batch.regions.pair_picture[pair]
    final = final_logit(logits[pair, hoi], prior)

    annotated = batch.labelled[picture]
    target = batch.target[pair, hoi][annotated]
    terms = focal_terms(final[annotated], target, config.focal_alpha, config.focal_gamma)
    pairs_loss = terms.sum() / _count(target.sum(), accelerator)
    if torch.isnan(batch.soft).all():
        return pairs_loss, {"loss/pairs": pairs_loss.item()}

    asked = ~torch.isnan(batch.soft[picture, hoi])
    group, entry_group = torch.unique(picture[asked] * valid.shape[1] + hoi[asked], return_inverse=True)
    soft = batch.soft.flatten()[group]
    pooled = final if config.itm_logit == "final" else logits[pair, hoi].float()
    image_loss = image_terms(pooled[asked], entry_group, soft).sum() / _count(soft.sum(), accelerator)
    loss = pairs_loss + itm_weight * image_loss
    return loss, {"loss/pairs": pairs_loss.item(), "loss/itm": image_loss.item()}


def _count(positives: Tensor, accelerator: Accelerator) -> Tensor:
    """The ranks' mean number of positives, so that averaged gradients are those of one whole batch."""
    return accelerator.reduce(positives.detach(), "mean").clamp(min=1)


def rate(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 0: a factor of the learning rate."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def random_seed(*numbers: int) -> int:
    """One seed for a step: what it draws does not depend on what was drawn before it."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def run_name(config: StudentConfig, data: TrainingSet) -> str:
    """A digest of what decides a run's weights; a saved state of another name is not resumed."""
    weights = {k: v for k, v in asdict(config).items() if k not in ("log_every", "save_every", "predict_batch")}
    record = [weights, data.identity, len(data.source), int(data.labelled.sum()), data.vocabulary.digest()]
    return hashlib.blake2b(json.dumps(record).encode(), digest_size=8).hexdigest()


def describe_non_finite(
    step: int, batch: Batch, network: nn.Module, data: TrainingSet, terms: dict[str, float], norm: float
) -> str:
    """One line: the step, the terms, and the pictures whose own values are not finite, else all of the batch."""
    with torch.inference_mode():
        logits = network(batch.regions)
    bad = torch.unique(batch.regions.pair_picture[~torch.isfinite(logits).all(1)]).tolist()
    broken = (~torch.isfinite(batch.regions.maps.flatten(1)).all(1)).nonzero().flatten().tolist()
    places = broken or bad or range(len(batch.rows))
    rows = [int(batch.rows[place]) for place in places]
    names = [str(data.annotations.image_id[int(data.image[row])]) for row in rows]
    what = "feature maps that are not finite in" if broken else "pictures"
    losses = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    return f"step {step + 1}: {losses}, gradient norm {norm:.4g}; {what} rows {rows}, image ids {names}"
