"""Which query answers for which annotated pair: the cheapest assignment (QPIC's costs, Tamura et al. 2021, as CDN has them).

Shape legend: B images, T pairs of one image, R pairs of all images together in order, N queries, K objects, V verbs;
``...`` stands for the decoder layers or for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import Costs
from hoi_distill.stages.student.methods.vlm_hoi.muren import MurenOutput

Match = tuple[Tensor, Tensor]
"""int64 ``[M]`` queries and ``[M]`` targets of one image, ``M = min(N, T)``, on the CPU."""


@dataclass
class Targets:
    """One image's annotated pairs, one row for each distinct (human box, object box).

    Attributes:
        human_boxes: float32 ``[T, 4]`` cxcywh in 0..1 of the image without its padding.
        object_boxes: float32 ``[T, 4]`` likewise; all 0 where the object is missing.
        objects: int64 ``[T]``; K where the object is missing.
        verbs: float32 ``[T, V]``, 0 or 1.
    """

    human_boxes: Tensor
    object_boxes: Tensor
    objects: Tensor
    verbs: Tensor

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def missing(self) -> Tensor:
        """bool ``[T]``: there is no object box."""
        return (self.object_boxes == 0).all(-1)


def joined(targets: Sequence[Targets]) -> tuple[Targets, Tensor]:
    """All images' pairs in a row, R of them, and int64 ``[R]``, the image of each."""
    rows = Targets(*(torch.cat([getattr(each, field.name) for each in targets]) for field in fields(Targets)))
    image = torch.from_numpy(np.repeat(np.arange(len(targets)), [len(each) for each in targets]))
    return rows, image.to(rows.objects.device, non_blocking=True)


def matching_costs(output: MurenOutput, targets: Sequence[Targets], costs: Costs) -> Tensor:
    """float32 ``[..., R, N]``: what it costs that each query of its own image answers for a pair.

    ``object * -p(class) + verb * -(mean p over annotated verbs + mean (1 - p) over others) / 2 + l1 * max(L1_h, L1_o)
    + giou * max(-GIoU_h, -GIoU_o)``. Where the object is missing, L1_o is 0 and -GIoU_o is raised by -GIoU_h.

    Args:
        output: of tensors ``[..., B, N, *]``.
        targets: the pairs of the B images.
        costs: what each part counts.
    """
    rows, image = joined(targets)
    with torch.no_grad(), torch.autocast(rows.verbs.device.type, enabled=False):
        human, object_, object_logits, verb_logits = (each.float()[..., image, :, :] for each in output)
        classes = rows.objects[:, None, None].expand(*object_logits.shape[:-1], 1)
        cost_object = -object_logits.softmax(-1).gather(-1, classes).squeeze(-1)
        p, y = verb_logits.sigmoid(), rows.verbs.float()
        present = (p @ y[..., None]).squeeze(-1) / y.sum(-1).clamp(min=1)[:, None]
        absent = ((1 - p) @ (1 - y)[..., None]).squeeze(-1) / (1 - y).sum(-1).clamp(min=1)[:, None]
        there = ~rows.missing[:, None]
        l1_human = (human - rows.human_boxes[:, None]).abs().sum(-1)
        l1_object = (object_ - rows.object_boxes[:, None]).abs().sum(-1) * there
        giou_human = -_giou(human, rows.human_boxes[:, None])
        giou_object = -_giou(object_, rows.object_boxes[:, None]) + giou_human * ~there
        return (
            costs.object * cost_object
            - costs.verb * (present + absent) / 2
            + costs.l1 * torch.maximum(l1_human, l1_object)
            + costs.giou * torch.maximum(giou_human, giou_object)
        )


def match_layers(output: MurenOutput, targets: Sequence[Targets], costs: Costs | None = None) -> list[list[Match]]:
    """For each decoder layer of ``output`` (tensors ``[L, B, N, *]``) and each image the cheapest assignment.

    The costs of all layers leave the device in one copy.

    Raises:
        FloatingPointError: the network's answers are not finite.
    """
    table = matching_costs(output, targets, costs or Costs()).cpu().numpy()
    if not np.isfinite(table).all():
        raise FloatingPointError("matching: the network's answers are not finite; lower the learning rate")
    ends = np.cumsum([len(each) for each in targets])[:-1]
    return [[_assign(cost) for cost in np.split(layer, ends)] for layer in table]


def match(output: MurenOutput, targets: Sequence[Targets], costs: Costs | None = None) -> list[Match]:
    """:func:`match_layers` of one layer (tensors ``[B, N, *]``): (queries, targets) of each image."""
    return match_layers(MurenOutput(*(each[None] for each in output)), targets, costs)[0]


def _assign(cost: np.ndarray) -> Match:
    """float ``[T, N]``; the answer in the order of the queries."""
    query, target = linear_sum_assignment(cost.T)
    return torch.from_numpy(query.astype(np.int64)), torch.from_numpy(target.astype(np.int64))


def _giou(a: Tensor, b: Tensor) -> Tensor:
    return box_ops.giou(box_ops.cxcywh_to_xyxy(a), box_ops.cxcywh_to_xyxy(b))
