"""Train one LINK student, a phase-1 teacher on annotations alone or a phase-2 student with teachers: stream, forward, loss,
step, save.

    train(LinkConfig(), TrainingSet(...), run_dir)

A killed training goes on as :mod:`hoi_distill.stages.student.training.loop` says.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from hoi_distill.stages.student.data import Report, TrainingSet
from hoi_distill.stages.student.method import NOTHING, Extras
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.distillation import kd_terms
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.stream import LinkBatches, TaughtBatch
from hoi_distill.stages.student.methods.link.student import LinkStudent, allowed, verbs
from hoi_distill.stages.student.pairs.losses import annotated_loss, final_logit
from hoi_distill.stages.student.pairs.prepare import training_pictures
from hoi_distill.stages.student.pairs.regions import entries
from hoi_distill.stages.student.pairs.training import PairTraining
from hoi_distill.stages.student.training.loop import Step, finish
from hoi_distill.stages.student.training.processes import Processes


def train(
    config: LinkConfig,
    data: TrainingSet,
    run_dir: Path,
    extras: Extras = NOTHING,
    *,
    loader_workers: int = 0,
    report: Report = print,
) -> LinkStudent:
    """Train to the end, from the last save if there is one, and save the student in ``run_dir/checkpoint``.

    Raises:
        NonFiniteLoss: training has diverged or a cached value is broken.
        UserError: the run folder holds another run's state, there is nothing to train on, or a teacher looked at other boxes.
    """
    # The stream.
    training = PairTraining.open(config, data, run_dir, extras, loader_workers=loader_workers, report=report)
    accelerator, processes = training.accelerator, training.processes
    valid = torch.from_numpy(allowed(config, data.vocabulary))
    with accelerator.main_process_first():
        pictures = training_pictures(run_dir / "state" / "pictures", data, config)
    batches = LinkBatches(config, data, pictures, valid, accelerator.process_index, accelerator.num_processes)

    # The network and its loss.
    torch.manual_seed(config.seed)
    text = extras.text()
    shape = LinkShape(batches.channels(), None if text is None else text.shape[1], config.network)
    seen = batches.seen.to(accelerator.device)
    candidates = valid.to(accelerator.device) & seen

    def loss_of(model: nn.Module, batch: TaughtBatch, _step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        return batch_loss(model, batch, candidates, seen, config, processes)

    # Forward, loss, step, save.
    model = training.fit(
        Link(shape, verbs(data.vocabulary), text), batches, loss_of, logits_of=lambda output: output.logits[-1]
    )
    student = LinkStudent(model, data.vocabulary, config, extras.identities)
    finish(student, run_dir, accelerator)
    return student


def batch_loss(
    model: nn.Module,
    batch: TaughtBatch,
    valid: Tensor,
    seen: Tensor,
    config: LinkConfig,
    processes: Processes,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Annotated pairs of labelled pictures at every decoder layer, plus what the teachers said of all pairs.

    Args:
        valid: bool ``[objects, H]``, seen interactions (``seen``, bool ``[H]``) alone.

    Returns:
        The loss and its terms, unweighted, by name.
    """
    output = model(batch.regions)
    pair, hoi, prior = entries(batch.regions, valid)
    final = final_logit(output.logits[:, pair, hoi], prior)
    loss = annotated_loss(final, pair, hoi, batch, config, processes)
    terms = {"loss/pairs": loss}
    taught = kd_terms(output, batch.taught, batch.regions, pair, hoi, prior, seen, config.kd, processes)
    for name, term in taught.items():
        loss = loss + getattr(config.kd, name) * term
        terms[f"loss/kd_{name}"] = term
    return loss, terms
