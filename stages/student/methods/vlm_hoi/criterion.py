"""MUREN's losses on the final and every auxiliary decoder layer, all layers at once, in float32.

Human boxes are divided by the annotated pairs, object boxes by those that have one, verbs by their positive labels, the
object's cross-entropy by the weights of its classes. These counts are those of all processes, so that several of them,
whose gradients are averaged, learn what one would with all their images.

Shape legend: L decoder layers, B images, N queries, M matched queries of all images, R annotated pairs of all
images, K objects, V verbs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import Costs, LossWeights
from hoi_distill.stages.student.methods.vlm_hoi.matching import Match, Targets, joined, match_layers
from hoi_distill.stages.student.methods.vlm_hoi.muren import MurenOutput
from hoi_distill.stages.student.training.focal import hard_focal_terms

TERMS = ("human_l1", "object_l1", "human_giou", "object_giou", "object", "verb")


class Criterion:
    """Matches, then measures. Without weights to learn, so it is no module."""

    def __init__(self, weights: LossWeights | None = None, costs: Costs | None = None) -> None:
        self.weights, self.costs = weights or LossWeights(), costs or Costs()

    def __call__(
        self,
        output: MurenOutput,
        targets: Sequence[Targets],
        reduce: Callable[[Tensor], Tensor] | None = None,
        negative_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], list[list[Match]]]:
        """The loss of one batch.

        Args:
            output: tensors ``[L, B, N, *]``, of any float type.
            targets: one for each image, on the output's device.
            reduce: a small float tensor's sum over the processes (``accelerator.reduce``); None for one process.
            negative_weights: float ``[R, V]``, factors of the verb loss's negative terms at the query that each pair is
                matched with (F2' of the ITM losses); None is 1.

        Returns:
            The weighted sum over terms and layers, float32 ``[]``; every term by itself, unweighted and without gradient
            (``"human_l1"``: the final layer's, ``"human_l1_0"``: the first auxiliary layer's); for each layer and image
            the matched (queries, targets).
        """
        matches = match_layers(output, targets, self.costs)
        with torch.autocast(output.human_boxes.device.type, enabled=False):
            sums, counts = self._sums(
                MurenOutput(*(each.float() for each in output)), targets, matches, negative_weights
            )
            processes = counts.new_ones(1)
            if reduce is not None:
                both = reduce(torch.cat((counts.flatten(), processes)))
                everywhere, processes = both[:-1].view_as(counts), both[-1:]
                if self.weights.local_counts:
                    everywhere[1:] = processes * counts[1:]
                counts = everywhere
            divisors = torch.where(counts > 0, counts, 1)
            each = sums * processes / torch.cat((divisors[:2], divisors))  # [6, L]
            weights = torch.tensor(self.weights.of_terms(), dtype=each.dtype).to(each.device, non_blocking=True)
            total = (each.sum(1) * weights).sum()
        last = each.shape[1] - 1
        terms = {
            name if layer == last else f"{name}_{layer}": value
            for name, values in zip(TERMS, each.detach(), strict=True)
            for layer, value in enumerate(values)
        }
        return total, terms, matches

    def _sums(
        self,
        output: MurenOutput,
        targets: Sequence[Targets],
        matches: Sequence[Sequence[Match]],
        negative_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Of :data:`TERMS` the sums ``[6, L]``; the counts ``[4, L]`` of pairs, object boxes, class weights, positives."""
        rows, _ = joined(targets)
        image, query, row = flat(matches, targets, rows.objects.device)  # [L, M]
        layer = torch.arange(len(matches), device=query.device)[:, None]
        at = (layer, image, query)
        there = ~rows.missing[row]
        boxes = (
            *_box_sums(output.human_boxes[at], rows.human_boxes[row], torch.ones_like(there)),
            *_box_sums(output.object_boxes[at], rows.object_boxes[row], there),
        )
        no_object = output.object_logits.shape[-1] - 1
        classes = torch.full(output.object_logits.shape[:-1], no_object, device=query.device)
        classes[at] = rows.objects[row]
        weight = torch.where(classes == no_object, self.weights.no_object, 1.0)
        entropy = F.cross_entropy(output.object_logits.movedim(-1, 1), classes, reduction="none") * weight
        verbs = torch.zeros_like(output.verb_logits)
        verbs[at] = rows.verbs[row].to(verbs.dtype)
        focal = hard_focal_terms(output.verb_logits, verbs, self.weights.alpha, self.weights.gamma)
        if negative_weights is not None:
            factors = torch.ones_like(verbs)
            factors[at] = negative_weights.detach().to(factors.dtype)[row]
            focal = focal * torch.where(verbs == 1, 1, factors)
        sums = torch.stack((boxes[0], boxes[2], boxes[1], boxes[3], entropy.sum((1, 2)), focal.sum((1, 2, 3))))
        pairs = there.new_full((len(matches),), len(rows), dtype=torch.float32)
        counts = torch.stack((pairs, there.sum(1).float(), weight.sum((1, 2)), (verbs == 1).sum((1, 2, 3)).float()))
        return sums, counts


def flat(
    matches: Sequence[Sequence[Match]], targets: Sequence[Targets], device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """int64 ``[L, M]`` each: the matched pairs' images, their queries, and their rows among all images' R pairs."""
    first = [0]
    for each in targets:
        first.append(first[-1] + len(each))
    columns = [
        torch.stack(
            [
                torch.cat([torch.full_like(query, image) for image, (query, _) in enumerate(layer)]),
                torch.cat([query for query, _ in layer]),
                torch.cat([target + start for (_, target), start in zip(layer, first, strict=False)]),
            ]
        )
        for layer in matches
    ]
    image, query, row = torch.stack(columns, 1).to(device, non_blocking=True)
    return image, query, row


def _box_sums(boxes: Tensor, wanted: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and 1 - GIoU, summed where ``counted`` (bool ``[L, M]``): boxes cxcywh ``[L, M, 4]`` to ``[L]`` and ``[L]``."""
    l1 = ((boxes - wanted).abs().sum(-1) * counted).sum(1)
    giou = box_ops.giou(box_ops.cxcywh_to_xyxy(boxes), box_ops.cxcywh_to_xyxy(wanted))
    return l1, ((1 - giou) * counted).sum(1)
