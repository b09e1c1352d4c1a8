"""The loss of one batch: MUREN's, and the terms distilled from image-text matching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hoi_distill.stages.student.methods.vlm_hoi.config import VlmHoiConfig
from hoi_distill.stages.student.methods.vlm_hoi.criterion import TERMS, Criterion, flat
from hoi_distill.stages.student.methods.vlm_hoi.image_set import ImageBatch
from hoi_distill.stages.student.methods.vlm_hoi.itm_loss import (
    MatchedQueries,
    image_terms,
    itm_terms,
    negative_weights,
    unmatched_terms,
)
from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import ItmScores, ItmTargets
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig, LossWeights
from hoi_distill.stages.student.methods.vlm_hoi.matching import Match, Targets, joined
from hoi_distill.stages.student.methods.vlm_hoi.muren import MurenOutput
from hoi_distill.stages.student.training.focal import hard_focal_terms
from hoi_distill.stages.student.training.gradients import gradient_ratio
from hoi_distill.stages.student.training.processes import ALONE, Processes


@dataclass(frozen=True)
class ItmTables:
    """:class:`~hoi_distill.stages.student.methods.vlm_hoi.itm_columns.ItmColumns` on a device: int64 ``hoi_id [V, O + 1]``,
    ``hois [C, 2]``."""

    hoi_id: Tensor
    hois: Tensor

    @classmethod
    def of(cls, targets: ItmTargets | None, device: torch.device) -> ItmTables | None:
        """None where nothing is distilled."""
        if targets is None:
            return None
        columns = targets.columns
        return cls(torch.from_numpy(columns.hoi_id).to(device), torch.from_numpy(columns.hois).to(device))


@dataclass
class Distilled:
    """One distilled term: its ``value`` before weighting, and the ``weight`` that it has now."""

    name: str
    value: Tensor
    weight: float


def batch_loss(
    output: MurenOutput,
    batch: ImageBatch,
    config: VlmHoiConfig,
    tables: tuple[ItmTables | None, ItmTables | None],
    epoch: float,
    *,
    processes: Processes = ALONE,
    ratios: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its terms by name, of this process's images.

    Every term is divided by a count over all processes, so that averaged gradients are those of one whole batch.

    Args:
        output: of the batch's images, all layers, float32.
        batch: the images.
        config: the method's parameters.
        tables: the classes of the ITM scores on labelled and on other images.
        epoch: epochs done, fractions included.
        processes: the processes that share the global batch.
        ratios: whether to compare the distilled terms' gradients with the verb loss's, at the final layer's verb logits.
    """
    first = len(batch.targets)
    known = MurenOutput(*(each[:, :first] for each in output))
    softer = None
    if batch.labelled is not None and tables[0] is not None:
        rows, image = joined(batch.targets)
        soft = batch.labelled.of_verbs(image, rows.objects, tables[0].hoi_id).soft
        softer = negative_weights(config.itm, soft, rows.verbs, config.itm.ramp_at(epoch))
    total, terms, matches = Criterion(config.loss, config.costs)(known, batch.targets, processes.mean, softer)
    terms = {f"loss/{name}": terms[name] for name in TERMS}  # of the final layer

    distilled = []
    if batch.labelled is not None and tables[0] is not None:
        value = labelled_term(
            config.itm,
            known,
            batch.targets,
            matches,
            scores=batch.labelled,
            tables=tables[0],
            processes=processes,
        )
        distilled.append(Distilled("itm", value, config.itm.weight_at(epoch)))
    if batch.unlabelled is not None and tables[1] is not None:
        others = MurenOutput(*(each[:, first:] for each in output))
        value = images_term(config.f7, others, batch.unlabelled, tables[1], processes)
        distilled.append(Distilled("f7", value, config.f7.weight_at(epoch)))
    if ratios and distilled:
        verb = config.loss.verb * final_verb_loss(known, batch.targets, matches, config.loss)
        for term in distilled:
            ratio = gradient_ratio(term.weight * term.value, verb, [output.verb_logits])
            terms[f"gradient_ratio/{term.name}"] = ratio
    for term in distilled:
        total = total + term.weight * term.value
        terms[f"loss/{term.name}"] = term.value.detach()
    return total, terms


def labelled_term(
    config: ItmConfig,
    output: MurenOutput,
    targets: list[Targets],
    matches: list[list[Match]],
    *,
    scores: ItmScores,
    tables: ItmTables,
    processes: Processes,
) -> Tensor:
    """The chosen family on the labelled images, summed over the layers that learn, divided by the matched queries."""
    if config.family == "F7":
        return images_term(config, output, scores, tables, processes)
    rows, _ = joined(targets)
    images, queries, row = flat(matches, targets, rows.objects.device)
    value = output.verb_logits.new_zeros(())
    for layer in config.learning_layers(len(matches)):
        image, query, own = images[layer], queries[layer], row[layer]
        at = (layer, image, query)
        matched = MatchedQueries(
            image, output.verb_logits[at], rows.verbs[own], rows.objects[own], output.object_logits[at]
        )
        value = value + itm_terms(config, scores, tables.hoi_id, matched).sum()
        if config.unmatched:
            left = torch.ones(output.verb_logits.shape[1:3], dtype=torch.bool, device=image.device)
            left[image, query] = False
            count = left.numel() - len(image)
            where = left.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:count]
            value = (
                value
                + unmatched_terms(
                    config,
                    scores,
                    tables.hoi_id,
                    where // left.shape[1],
                    verb_logits=output.verb_logits[layer].flatten(0, 1)[where],
                    object_logits=output.object_logits[layer].flatten(0, 1)[where],
                ).sum()
            )
    return value / processes.normaliser(value.new_full((), queries.shape[1]))


def images_term(
    config: ItmConfig, output: MurenOutput, scores: ItmScores, tables: ItmTables, processes: Processes
) -> Tensor:
    """F7, summed over the layers that learn, divided by the expected number of interactions in the images."""
    value = output.verb_logits.new_zeros(())
    for layer in config.learning_layers(len(output.verb_logits)):
        found = image_terms(
            output.verb_logits[layer],
            output.object_logits[layer],
            scores.soft,
            tables.hois,
            smoothing=config.smoothing,
            gamma=config.gamma,
        )
        value = value + found.sum()
    return value / processes.normaliser(torch.nan_to_num(scores.soft).sum())


def final_verb_loss(
    output: MurenOutput, targets: list[Targets], matches: list[list[Match]], weights: LossWeights
) -> Tensor:
    """The final layer's verb loss of this process's images, divided by their own positive labels."""
    rows, _ = joined(targets)
    images, queries, row = flat(matches, targets, rows.objects.device)
    labels = torch.zeros_like(output.verb_logits[-1])
    labels[images[-1], queries[-1]] = rows.verbs[row[-1]]
    loss = hard_focal_terms(output.verb_logits[-1], labels, weights.alpha, weights.gamma).sum()
    return loss / labels.sum().clamp(min=1)
