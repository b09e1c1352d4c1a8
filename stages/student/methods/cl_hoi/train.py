"""Train one student in the CL-HOI style: stage 1 (translator), stage 2 (cognition), exponents, save.

    train(ClHoiConfig(), TrainingSet(...), run_dir)

Both stages resume as exactly as :mod:`hoi_distill.stages.student.training.loop` says, stage 1 in ``run_dir/context``. What stage
1 depends on names its translator under ``shared_dir``, so that arms of a study that differ in stage 2 alone train it
once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import intact, load_tensors, save_tensors
from hoi_distill.stages.student.method import NOTHING, Extras, parameters_of
from hoi_distill.stages.student.methods.cl_hoi.cognition import ClHoi, ClHoiShape
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.methods.cl_hoi.context_batches import ContextBatch, ContextBatches, Texts, annotated
from hoi_distill.stages.student.methods.cl_hoi.exponents import choose_exponents
from hoi_distill.stages.student.methods.cl_hoi.losses import context_loss
from hoi_distill.stages.student.methods.cl_hoi.student import ClHoiStudent, build
from hoi_distill.stages.student.methods.cl_hoi.translator import ContextLearner, Translator
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, TableMaps
from hoi_distill.stages.student.pairs.config import BOOKKEEPING
from hoi_distill.stages.student.pairs.prepare import image_table
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.stages.student.pairs.supervision.annotations import AnnotationTerm
from hoi_distill.stages.student.pairs.supervision.image_label_losses import temperature_of
from hoi_distill.stages.student.pairs.supervision.image_labels import (
    CopiedLabelTerm,
    ImageLabelTable,
    ImageLabelTerm,
    annotated_labels,
    teacher_labels,
)
from hoi_distill.stages.student.pairs.supervision.pair_answers import pair_answer_term
from hoi_distill.stages.student.pairs.terms import PairOutput, Supervision, Term, TextSpace
from hoi_distill.stages.student.pairs.training import PairTraining, TermLoss
from hoi_distill.stages.student.training.loop import Step, finish
from hoi_distill.stages.student.training.optimization import ParameterGroup, parameter_groups
from hoi_distill.storage.digests import content_name
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.sampling import epoch_order

HELD_OUT = 1 << 20
"""The epoch whose order says which images are held out; no training gets there."""


class InteractionLearner(nn.Module):
    """What stage 2 trains: the student and the temperature of its contrast."""

    def __init__(self, student: ClHoi, temperature: float) -> None:
        super().__init__()
        self.student = student
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    @override
    def forward(self, regions: Regions) -> PairOutput:
        """The student's output, with one layer of logits."""
        answer = self.student(regions)
        space = TextSpace(answer.embeddings, answer.classes, self.log_temperature)
        return PairOutput(answer.logits[None], log_r=answer.log_r, text_space=space)


def train(config: ClHoiConfig, data: TrainingSet, run_dir: Path, extras: Extras = NOTHING) -> ClHoiStudent:
    """Train to the end, from the last save if there is one, and save the student in ``run_dir/checkpoint``.

    What stage 1 has learnt goes to ``extras.shared_dir``.

    Raises:
        NonFiniteLoss: training has diverged or a cached value is broken.
        UserError: the run folder holds another run's state, there are no text embeddings or there is nothing to train on.
    """
    # The stream.
    text = extras.text()
    if text is None:
        raise UserError(
            "student.tables.text: cl_hoi tells interactions apart by their text; name a table of text embeddings"
        )
    training = PairTraining.open(config, data, run_dir, extras)
    accelerator, state = training.accelerator, run_dir / "state"
    with accelerator.main_process_first():
        own = annotated(data) if config.labels == "instances" else None
        images = image_table(state / "pictures", data.source, config, own)
        labels = open_labels(config, state, data)
        maps = TableMaps.of(data.source, config.views)
    trained, held_out = pools(config, images.usable() & labels.known)
    valid = torch.from_numpy(data.valid())

    # Stage 1: the translator.
    torch.manual_seed(config.seed)
    channels = int(maps(trained[:1], np.zeros(1, np.int64))[1].shape[1])
    shape = ClHoiShape(channels, text.shape[1], text.shape[1])
    translator = None
    if config.network.context:
        translator, shape = first_stage(training, shape, extras)

    # Stage 2: the network and its loss.
    torch.manual_seed(config.seed)
    student = build(shape, config, data.vocabulary, text, translator)
    learner = InteractionLearner(student, config.losses.temperature)
    terms, pools_ = [term_of(config, labels, data)], Pools(np.empty(0, np.int64), trained)
    if config.pair_answers.used:
        with accelerator.main_process_first():
            terms.append(pair_answer_term(config.pair_answers, state, data, images)[0])
    batches = PairBatches(config, pools_, images, maps, Supervision(terms, valid), share=training.share)
    loss = TermLoss(terms, training.processes)
    groups = groups_of(learner, config)
    learner = training.fit(learner, batches, loss, logits_of=loss.logits_of, groups=groups)

    # Exponents, save.
    exponents = choose_exponents(
        learner.student, config, images, held_out, maps=maps, valid=valid.to(accelerator.device), labels=labels
    )
    made = ClHoiStudent(learner.student.eval(), data.vocabulary, config, shape, exponents, extras.identities)
    if accelerator.is_main_process:
        write_atomically(run_dir / "exponents.json", json.dumps(asdict(exponents), indent=1) + "\n")
        with open(run_dir / "metrics.jsonl", "a") as metrics:
            metrics.write(json.dumps({"step": config.steps, **exponents.metrics()}) + "\n")
        accelerator.log(exponents.metrics(), config.steps)
        extras.report(exponents.words())
    finish(made, run_dir, accelerator)
    return made


def open_labels(config: ClHoiConfig, folder: Path, data: TrainingSet) -> ImageLabelTable:
    """The image-level labels that stage 2 learns from."""
    if config.labels == "teacher":
        return teacher_labels(folder / "labels", data)
    return annotated_labels(folder / "annotated-labels", data)


def pools(config: ClHoiConfig, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are trained on and those held out, int64, rising: a share of all rows, whatever is known of them.

    Args:
        config: says how many are held out.
        usable: bool ``[N]``, rows with pairs and labels.

    Raises:
        UserError: nothing is left to train on, or to choose the exponents on.
    """
    held = np.zeros(len(usable), bool)
    if config.chooses:
        order = epoch_order(config.seed, HELD_OUT, len(usable))
        held[order[: round(config.held_out * len(usable))]] = True
    trained, held_out = np.flatnonzero(usable & ~held), np.flatnonzero(usable & held)
    if not len(trained) or (config.chooses and not len(held_out)):
        raise UserError(
            f"student.held_out: {config.held_out} of {len(usable)} images leave {len(trained)} to train on and {len(held_out)} "
            "to choose exponents on, of those with a person, another instance and labels; more images are needed"
        )
    return trained, held_out


def first_stage(
    training: PairTraining[ClHoiConfig], shape: ClHoiShape, extras: Extras
) -> tuple[Translator, ClHoiShape]:
    """The translator, trained if it is to be, and the shape with its text's width."""
    config, data, run_dir = training.config, training.data, training.run.folder
    if not config.distil:
        return Translator(shape.channels, shape.context_width, config.translator), shape
    stage, own = config.first_stage(), config.context_stage
    context = PairTraining.open(
        stage,
        data,
        run_dir / "context",
        replace(extras, track=NOTHING.track, held_out=None, report=lambda line: extras.report(f"context: {line}")),
    )
    accelerator = context.accelerator
    with accelerator.main_process_first():
        texts = Texts.open_or_build(run_dir / "state" / "texts", data)
        labels = teacher_labels(run_dir / "state" / "labels", data)
        maps = TableMaps.of(data.source, config.views)
    shape = ClHoiShape(shape.channels, shape.text_width, texts.width)
    torch.manual_seed(config.seed)
    learner = ContextLearner(Translator(shape.channels, texts.width, config.translator), own.temperature)
    done = (extras.shared_dir or run_dir / "context") / f"translator-{stage_name(config, data)}.safetensors"
    if context.processes.any(intact(done, load_tensors) is None):  # another arm may write it meanwhile
        pool, _ = pools(config, texts.present() & labels.known)
        batches = ContextBatches(stage, pool, maps, texts=texts, labels=labels, queue=own.queue, share=context.share)
        learner = context.fit(learner, batches, context_terms, logits_of=lambda output: output[0].whole)
        if accelerator.is_main_process:
            save_tensors(done, learner.state_dict(), {})
        accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    learner.load_state_dict(load_tensors(done)[0])
    learner.zero_grad()  # what is left of the last step would enter the norm that stage 2 clips
    return learner.translator, shape


def stage_name(config: ClHoiConfig, data: TrainingSet) -> str:
    """A digest of all that stage 1 depends on; where the tables' values have no names, of the whole training's identity."""
    stage = parameters_of(config.first_stage(), BOOKKEEPING)
    read = [data.values.get(role, data.identity) for role in ("features", "context", "labels")]
    held_out = config.held_out if config.chooses else 0
    record = [
        1,
        stage,
        asdict(config.translator),
        asdict(config.context_stage),
        held_out,
        data.source.rows_digest,
        read,
    ]
    return content_name(json.dumps(record).encode(), 8)


def context_terms(model: nn.Module, batch: ContextBatch, _step: Step) -> tuple[Tensor, dict[str, Tensor]]:
    """Stage 1's loss: the global and the late contrast."""
    output, log_temperature = model(batch.regions)
    temperature = temperature_of(log_temperature)
    whole, late = context_loss(
        output.phrases, output.whole, batch.sentences, batch.text, same=batch.same, temperature=temperature
    )
    terms = {"loss/global": whole, "loss/late": late, "temperature": temperature}
    return whole + late, terms


def groups_of(learner: InteractionLearner, config: ClHoiConfig) -> list[ParameterGroup]:
    """Parameters by learning rate and decay. The translator's rate is a share of the network's."""
    translator = learner.student.translator
    slow = set() if translator is None else set(translator.parameters())
    groups = parameter_groups(learner, config.learning_rate, config.weight_decay)
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in slow]
    if translator is not None and config.translator_rate:
        groups += parameter_groups(translator, config.learning_rate * config.translator_rate, config.weight_decay)
    return groups


def term_of(config: ClHoiConfig, labels: ImageLabelTable, data: TrainingSet) -> Term:
    """Interaction distillation from image-level labels, or the targets of single pairs of a control."""
    shape = {"alpha": config.focal_alpha, "gamma": config.focal_gamma}
    if config.labels == "instances":
        return AnnotationTerm(np.ones(len(data.image), bool), len(data.vocabulary.hois), **shape)
    if config.bridge == "copy":
        return CopiedLabelTerm(labels, **shape)
    relatedness = config.losses.relatedness if config.network.interactiveness else 0.0
    return ImageLabelTerm(labels, replace(config.losses, relatedness=relatedness))
