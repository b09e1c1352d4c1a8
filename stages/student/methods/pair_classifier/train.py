"""Train one pair classifier: stream, forward, loss, step, save.

    train(PairClassifierConfig(), TrainingSet(...), run_dir)

A run folder holds ``checkpoint/`` (what prediction needs), ``state/`` (what resuming needs), ``metrics.jsonl`` and
TensorBoard's ``tensorboard/``. Calling :func:`train` again on the folder of a killed run goes on from its last save and
ends with the weights of an undisturbed run, bit for bit on a CPU with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hoi_distill.stages.student.data import Report, TrainingSet
from hoi_distill.stages.student.method import NOTHING, Extras
from hoi_distill.stages.student.methods.pair_classifier.batches import SoftBatch, StepBatches
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.losses import image_terms
from hoi_distill.stages.student.methods.pair_classifier.network import PairClassifier, Shape
from hoi_distill.stages.student.methods.pair_classifier.region_cnn import (
    RegionCNN,
    RegionCNNConfig,
    map_reader,
    own_encoder,
)
from hoi_distill.stages.student.methods.pair_classifier.soft_labels import (
    has_picture_probabilities,
    picture_probabilities,
    soft_labels,
)
from hoi_distill.stages.student.methods.pair_classifier.student import PairStudent
from hoi_distill.stages.student.pairs.losses import annotated_loss, final_logit
from hoi_distill.stages.student.pairs.prepare import training_pictures
from hoi_distill.stages.student.pairs.regions import entries
from hoi_distill.stages.student.pairs.training import PairTraining
from hoi_distill.stages.student.training.loop import Step, finish
from hoi_distill.stages.student.training.processes import Processes


def train(
    config: PairClassifierConfig,
    data: TrainingSet,
    run_dir: Path,
    extras: Extras = NOTHING,
    *,
    cnn: RegionCNNConfig | None = None,
    loader_workers: int = 0,
    report: Report = print,
) -> PairStudent:
    """Train to the end, from the last save if there is one, and save the student in ``run_dir/checkpoint``.

    Args:
        extras: its ``shared_dir`` is where variants of a study share the ``region_cnn`` encoder; default: the run folder's
            parent.

    Raises:
        NonFiniteLoss: training has diverged or a cached value is broken.
        UserError: the run folder holds another run's state, or there is nothing to train on.
    """
    # The stream.
    training = PairTraining.open(config, data, run_dir, extras, loader_workers=loader_workers, report=report)
    accelerator, processes = training.accelerator, training.processes
    shared = extras.shared_dir or run_dir.parent

    def labels_only() -> PairStudent:
        own = replace(config, itm_on="none", teacher="itm")
        given, say = replace(extras, shared_dir=shared, identities={}), lambda line: report(f"labels only: {line}")
        return train(own, data, run_dir / "labels_only", given, cnn=cnn, report=say)

    batches, encoder = open_stream(config, data, run_dir, shared, cnn, accelerator, labels_only, report)
    valid = torch.from_numpy(data.valid()).to(accelerator.device)

    # The network and its loss.
    torch.manual_seed(config.seed)
    channels = batches.maps(batches.labelled_pool[:1], np.zeros(1, np.int64))[1].shape[1]
    model = build_model(config, data, channels, extras.text())

    def loss_of(model: nn.Module, batch: SoftBatch, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        weight = config.itm_weight * min(1.0, (step.number + 1) / max(config.itm_ramp, 1))
        return batch_loss(model, batch, valid, config, weight, processes)

    # Forward, loss, step, save.
    network = training.fit(model, batches, loss_of, logits_of=lambda logits: logits)
    student = PairStudent(network, data.vocabulary, config, extras.identities, encoder)
    finish(student, run_dir, accelerator)
    return student


def open_stream(
    config: PairClassifierConfig,
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
        pictures = training_pictures(folder / "pictures", data, config)
        own = config.encoder == "region_cnn"
        encoder = own_encoder(shared, data, pictures, cnn or RegionCNNConfig(), report) if own else None
        maps = map_reader(data.source, pictures, config.views, encoder, shared, data.read)
    if config.teacher == "self" and config.distils and not has_picture_probabilities(folder / "self.npy", data):
        model = labels_only().model
        if accelerator.is_main_process:
            valid = torch.from_numpy(data.valid())
            picture_probabilities(folder / "self.npy", model, pictures, maps, valid)
        accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        soft = soft_labels(folder, data, pictures, config)
    if soft is not None and soft.platt is not None and accelerator.is_main_process:
        report(f"soft labels: sigmoid({soft.platt.slope:.3f} m {soft.platt.bias:+.3f})")
    rank, world, interactions = accelerator.process_index, accelerator.num_processes, len(data.vocabulary.hois)
    return StepBatches(config, pictures, maps, data.labelled, soft, interactions, rank, world), encoder


def build_model(config: PairClassifierConfig, data: TrainingSet, channels: int, text: Tensor | None) -> PairClassifier:
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
    return PairClassifier(shape, verb, text)


def batch_loss(
    model: nn.Module,
    batch: SoftBatch,
    valid: Tensor,
    config: PairClassifierConfig,
    itm_weight: float,
    processes: Processes,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Annotated pairs of labelled pictures, plus soft labels where the batch has them.

    Each term is divided by its expected number of positives in the whole batch, over all ranks, at least 1.

    Returns:
        The loss and its terms by name.
    """
    logits = model(batch.regions)
    pair, hoi, prior = entries(batch.regions, valid)
    picture = batch.regions.pair_picture[pair]
    final = final_logit(logits[pair, hoi], prior)

    pairs_loss = annotated_loss(final, pair, hoi, batch, config, processes)
    if not config.distils:
        return pairs_loss, {"loss/pairs": pairs_loss}

    asked = ~torch.isnan(batch.soft[picture, hoi])
    group, entry_group = torch.unique(picture[asked] * valid.shape[1] + hoi[asked], return_inverse=True)
    soft = batch.soft.flatten()[group]
    pooled = final if config.itm_logit == "final" else logits[pair, hoi].float()
    image_loss = image_terms(pooled[asked], entry_group, soft).sum() / processes.share(soft.sum())
    loss = pairs_loss + itm_weight * image_loss
    return loss, {"loss/pairs": pairs_loss, "loss/itm": image_loss}
