"""Train one LINK student, a phase-1 teacher on annotations alone or a phase-2 student with teachers: stream, forward, loss,
step, save.

    train(LinkConfig(), TrainingSet(...), run_dir)

A killed training goes on as :mod:`hoi_distill.stages.student.training.loop` says.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import shared_place
from hoi_distill.stages.student.method import NOTHING, Extras
from hoi_distill.stages.student.methods.link.batches import LinkBatches
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import LinkStudent, allowed, verbs
from hoi_distill.stages.student.pairs.instances import ImageTable
from hoi_distill.stages.student.pairs.prepare import training_images
from hoi_distill.stages.student.pairs.supervision.annotations import AnnotationTerm
from hoi_distill.stages.student.pairs.supervision.config import ImageLabelLossConfig
from hoi_distill.stages.student.pairs.supervision.dense_distillation import DenseDistillation
from hoi_distill.stages.student.pairs.supervision.image_labels import ImageLabelTerm, teacher_labels
from hoi_distill.stages.student.pairs.supervision.pair_answers import pair_answer_term, pair_calibration_line
from hoi_distill.stages.student.pairs.supervision.soft_labels import SoftLabelTerm, calibration_line, itm_soft_labels
from hoi_distill.stages.student.pairs.terms import Supervision, Term
from hoi_distill.stages.student.pairs.training import PairTraining, TermLoss
from hoi_distill.stages.student.training.loop import finish


def train(config: LinkConfig, data: TrainingSet, run_dir: Path, extras: Extras = NOTHING) -> LinkStudent:
    """Train to the end, from the last save if there is one, and save the student in ``run_dir/checkpoint``.

    Raises:
        NonFiniteLoss: training has diverged or a cached value is broken.
        UserError: the run folder holds another run's state, there is nothing to train on, or a teacher read other boxes.
    """
    # The stream.
    training = PairTraining.open(config, data, run_dir, extras)
    accelerator = training.accelerator
    valid = torch.from_numpy(allowed(config, data.vocabulary))
    with accelerator.main_process_first():
        images = training_images(run_dir / "state" / "pictures", data, config, unlabelled=config.uses_unlabelled)
        terms = [
            *terms_of(config, data, valid),
            *image_terms_of(config, data, images, run_dir / "state", extras),
        ]
    supervision = Supervision(terms, valid & torch.from_numpy(data.seen))
    batches = LinkBatches(config, data, images, supervision, training.share)

    # The network and its loss.
    torch.manual_seed(config.seed)
    text = extras.text()
    shape = LinkShape(batches.channels(), None if text is None else text.shape[1], config.network)
    loss = TermLoss(terms, training.processes)

    # Forward, loss, step, save.
    def student_of(model: Link) -> LinkStudent:
        return LinkStudent(model, data.vocabulary, config, extras.identities)

    model = Link(shape, verbs(data.vocabulary), text)
    student = student_of(training.fit(model, batches, loss, logits_of=loss.logits_of, student_of=student_of))
    finish(student, run_dir, accelerator)
    return student


def terms_of(config: LinkConfig, data: TrainingSet, valid: Tensor) -> list[Term]:
    """What is said of single pairs: annotations, at every decoder layer, and the pair teachers' outputs.

    Args:
        config: the method's parameters.
        data: the training set.
        valid: bool ``[objects, H]``, the interactions that an object allows, unseen ones among them.
    """
    alpha, gamma = config.focal_alpha, config.focal_gamma
    annotations = AnnotationTerm(data.labelled, len(data.vocabulary.hois), alpha=alpha, gamma=gamma)
    return [annotations, DenseDistillation(config.kd, data, valid)] if config.kd.on else [annotations]


def image_terms_of(
    config: LinkConfig, data: TrainingSet, images: ImageTable, folder: Path, extras: Extras
) -> list[Term]:
    """What a teacher says: matching scores of images, labels from its text, and answers about pairs.

    Args:
        config: the method's parameters.
        data: the training set.
        images: the instances and pairs of all images.
        folder: keeps what is read of tables once.
        extras: its ``shared_dir`` keeps matching scores for all trainings of the same cells instead, if there is one.

    Raises:
        UserError: no labelled image has a pair, so that nothing can be calibrated, or the teacher was asked about other boxes.
    """
    terms: list[Term] = []
    if (soft := config.soft_labels).used:
        distilled = soft.rows(data.labelled) & images.usable()
        place = shared_place(folder / "itm.npy", extras.shared_dir, data.name_of("itm", data.prompts))
        seed = config.seed if soft.teacher == "shuffled" else None
        labels = itm_soft_labels(place, data, images, distilled, shuffle_seed=seed, calibrated=soft.calibrated)
        if labels.platt is not None and soft.calibrated:
            extras.report(calibration_line(labels.platt))
        terms.append(SoftLabelTerm(labels, soft.weight, soft.ramp))
    if (text := config.text_labels).used:
        table = teacher_labels(folder / "labels", data)
        told = replace(table, known=table.known & text.rows(data.labelled))
        losses = ImageLabelLossConfig(contrastive=0.0, mil=text.weight, relatedness=0.0)
        terms.append(ImageLabelTerm(told, losses, text.ramp))
    if config.pair_answers.used:
        term, fit = pair_answer_term(config.pair_answers, folder, data, images)
        if config.pair_answers.calibrated:
            extras.report(pair_calibration_line(fit))
        terms.append(term)
    return terms
