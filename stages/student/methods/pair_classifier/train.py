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
from torch import Tensor

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.method import NOTHING, Extras
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.network import PairClassifier, Shape
from hoi_distill.stages.student.methods.pair_classifier.region_cnn import (
    RegionCNN,
    RegionCNNConfig,
    map_reader,
    own_encoder,
)
from hoi_distill.stages.student.methods.pair_classifier.soft_labels import (
    has_image_probabilities,
    image_probabilities,
    soft_labels,
)
from hoi_distill.stages.student.methods.pair_classifier.student import PairStudent
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools
from hoi_distill.stages.student.pairs.prepare import training_images
from hoi_distill.stages.student.pairs.supervision.annotations import AnnotationTerm
from hoi_distill.stages.student.pairs.supervision.config import PairAnswerConfig
from hoi_distill.stages.student.pairs.supervision.pair_answers import pair_answer_term, pair_calibration_line
from hoi_distill.stages.student.pairs.supervision.soft_labels import SoftLabels, SoftLabelTerm, calibration_line
from hoi_distill.stages.student.pairs.terms import PairOutput, Supervision, Term
from hoi_distill.stages.student.pairs.training import PairTraining, TermLoss
from hoi_distill.stages.student.training.loop import finish


def train(
    config: PairClassifierConfig,
    data: TrainingSet,
    run_dir: Path,
    extras: Extras = NOTHING,
    *,
    cnn: RegionCNNConfig | None = None,
) -> PairStudent:
    """Train to the end, from the last save if there is one, and save the student in ``run_dir/checkpoint``.

    Args:
        config: the method's parameters.
        data: the training set.
        run_dir: the run's folder.
        extras: its ``shared_dir`` is where variants of a study share the ``region_cnn`` encoder and the teacher's scores;
            default: the run folder's parent.
        cnn: the encoder's parameters; default: those of :class:`RegionCNNConfig`.

    Raises:
        NonFiniteLoss: training has diverged or a cached value is broken.
        UserError: the run folder holds another run's state, or there is nothing to train on.
    """
    # The stream.
    training = PairTraining.open(config, data, run_dir, extras)
    accelerator = training.accelerator
    shared = extras.shared_dir or run_dir.parent

    def labels_only() -> PairStudent:
        own = replace(config, itm_on="none", teacher="itm", pair_answers=PairAnswerConfig())
        given = replace(
            extras,
            shared_dir=shared,
            identities={},
            report=lambda line: extras.report(f"labels only: {line}"),
            track=NOTHING.track,
            held_out=None,
        )
        return train(own, data, run_dir / "labels_only", given, cnn=cnn)

    batches, encoder = open_batches(training, shared, cnn, labels_only)

    # The network and its loss.
    torch.manual_seed(config.seed)
    model = build_model(config, data, batches.channels(), extras.text())
    loss = TermLoss(batches.terms, training.processes, lambda logits: PairOutput(logits[None]))

    # Forward, loss, step, save.
    def student_of(network: PairClassifier) -> PairStudent:
        return PairStudent(network, data.vocabulary, config, extras.identities, encoder)

    student = student_of(training.fit(model, batches, loss, logits_of=loss.logits_of, student_of=student_of))
    finish(student, run_dir, accelerator)
    return student


def open_batches(
    training: PairTraining[PairClassifierConfig],
    shared: Path,
    cnn: RegionCNNConfig | None,
    labels_only: Callable[[], PairStudent],
) -> tuple[PairBatches, RegionCNN | None]:
    """The batches with their supervision terms, and the student's own encoder if it has one.

    Args:
        training: the configuration, the run folder and its processes.
        shared: where variants of a study share the encoder and the teacher's scores.
        cnn: the encoder's parameters; default: those of :class:`RegionCNNConfig`.
        labels_only: trains the student whose answers a self-trained student learns from.

    Raises:
        UserError: there is nothing to train on.
    """
    config, data, accelerator = training.config, training.data, training.accelerator
    report, folder = training.run.report, training.run.folder / "state"
    with accelerator.main_process_first():
        images = training_images(folder / "pictures", data, config)
        own = config.encoder == "region_cnn"
        encoder = own_encoder(shared, data, images, cnn or RegionCNNConfig(), report) if own else None
        maps = map_reader(data.source, images, config.views, cnn=encoder, shared=shared, read=data.read)
    if config.teacher == "self" and config.distils and not has_image_probabilities(folder / "self.npy", data):
        model = labels_only().model
        if accelerator.is_main_process:
            valid = torch.from_numpy(data.valid())
            image_probabilities(folder / "self.npy", model, images, maps, valid=valid)
        accelerator.wait_for_everyone()
    with accelerator.main_process_first():
        soft = soft_labels(folder, data, images, config, shared=shared)
    if soft is not None and soft.platt is not None and accelerator.is_main_process:
        report(calibration_line(soft.platt))
    terms, unlabelled = terms_of(config, data, soft), soft is not None and config.itm_on in ("unlabelled", "both")
    if config.pair_answers.used:
        with accelerator.main_process_first():
            term, fit = pair_answer_term(config.pair_answers, folder, data, images)
        if config.pair_answers.calibrated and accelerator.is_main_process:
            report(pair_calibration_line(fit))
        terms.append(term)
    pools = Pools.of(images, data.labelled, unlabelled=unlabelled or config.pair_answers.unlabelled)
    supervision = Supervision(terms, torch.from_numpy(data.valid()))
    return PairBatches(config, pools, images, maps, supervision, share=training.share), encoder


def terms_of(config: PairClassifierConfig, data: TrainingSet, soft: SoftLabels | None) -> list[Term]:
    """Annotated pairs, and soft labels of whole images where there are any."""
    alpha, gamma = config.focal_alpha, config.focal_gamma
    terms: list[Term] = [AnnotationTerm(data.labelled, len(data.vocabulary.hois), alpha=alpha, gamma=gamma)]
    if soft is not None:
        terms.append(SoftLabelTerm(soft, config.itm_weight, config.itm_ramp, config.itm_logit))
    return terms


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
