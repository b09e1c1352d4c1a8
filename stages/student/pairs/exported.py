"""A network of pairs as a graph: instances, pairs and a feature map of one image to the score of every pair and interaction.

Numbers of instances and pairs are free, so one graph serves any image. What chooses the instances stays outside
(:func:`hoi_distill.stages.ops.instances.filter_detections`); its thresholds are settings of the graph.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.exported_graph import ExportedGraph
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.regions import Counts, Regions


class ScoredPairs(nn.Module):
    """The scores of an image's pairs, as :func:`hoi_distill.stages.student.pairs.predict.detections_of` has them.

    Args:
        scorer: from :class:`~.regions.Regions` to interaction logits, float ``[P, H]``.
        valid: bool ``[objects, H]``, the interactions that an object allows.
        prior_power: exponent of the detection scores.
    """

    def __init__(self, scorer: nn.Module, valid: Tensor, prior_power: float) -> None:
        super().__init__()
        self.scorer, self.prior_power = scorer, prior_power
        self.register_buffer("valid", valid.float())
        self.valid: Tensor

    @override
    def forward(
        self, features: Tensor, size: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, pairs: Tensor
    ) -> Tensor:
        """float32 ``[P, H]``; 0 for an interaction that the object does not allow.

        Args:
            features: float32 ``[1, C, h, w]``.
            size: float32 ``[1, 2]`` (width, height) of the image in pixels.
            boxes: float32 ``[I, 4]`` xyxy pixels.
            labels: int64 ``[I]`` object classes.
            scores: float32 ``[I]`` detection scores.
            pairs: int64 ``[P, 2]`` (human, object) positions among the instances, by human.
        """
        counts = Counts([boxes.shape[0]], [pairs.shape[0]])
        regions = Regions(features, size, torch.zeros_like(labels), boxes, labels, scores, pairs, counts)
        human, object_ = pairs.unbind(1)
        prior = (scores[human] * scores[object_])[:, None] ** self.prior_power
        return self.scorer(regions).sigmoid() * prior * self.valid[labels[object_]]


def pairs_graph(
    scorer: nn.Module,
    valid: Tensor,
    config: PairsConfig,
    *,
    prior_power: float,
    top_k: int | None,
    channels: tuple[int, int, int],
) -> ExportedGraph:
    """The graph of a student.

    Args:
        scorer: its network, see :class:`ScoredPairs`.
        valid: bool ``[objects, H]``, the interactions that an object allows.
        config: its parameters.
        prior_power: exponent of the detection scores.
        top_k: how many detections of each image are kept; None: all.
        channels: ``(C, h, w)`` of a feature map.
    """
    boxes = torch.tensor([[8.0, 8, 40, 60], [30, 20, 56, 44], [4, 30, 30, 62], [36, 4, 60, 30], [2, 2, 20, 20]])
    inputs = {
        "features": torch.zeros(1, *channels),
        "size": torch.tensor([[64.0, 64.0]]),
        "boxes": boxes,
        "labels": torch.tensor([0, 0, 1, 1, 1]) % len(valid),
        "scores": torch.full((5,), 0.5),
        "pairs": torch.tensor([(human, other) for human in range(2) for other in range(5) if human != other]),
    }
    instances = {0: "instances"}
    free = {"boxes": instances, "labels": instances, "scores": instances, "pairs": {0: "pairs"}}
    settings = {
        key: getattr(config, key) for key in ("score_threshold", "min_instances", "max_instances", "nms_iou")
    } | {"top_k": top_k}
    module = ScoredPairs(scorer, valid, prior_power).cpu().eval()
    return ExportedGraph("student", module, inputs, ("pair_scores",), free, settings)
