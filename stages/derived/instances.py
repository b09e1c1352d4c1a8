"""The instances of each image that enter pairs, without their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.keys import Count, Fraction
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.ops.instances import HUMAN, filter_detections, order_without_scores, whole_pixels
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.shards.cells import cells

INSTANCES = pa.struct(
    [
        ("boxes", pa.list_(pa.list_(pa.int32(), 4))),
        ("labels", pa.list_(pa.int16())),
        ("humans", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
"""A cell: K boxes (xyxy, whole pixels of the original image), their labels, how many of them, the first ones, are people, and
the image's size in pixels. They are ordered by :func:`hoi_distill.stages.ops.instances.order_without_scores`."""
NOTHING = {"boxes": (), "scores": (), "labels": (), "width": 0, "height": 0}


class Instances(Stage):
    """The boxes and labels of an image that enter pairs, people first, chosen by UPT's rule; without their scores. One column,
    ``value``; pure arithmetic, without images.

    What is computed from these cells stays valid while a detector's scores move and its selection does not.
    """

    name = "instances"
    decodes = False
    columns = ("value",)
    output = ArrowOutput(INSTANCES)

    class Config(Stage.Config):
        detections: str = "detections"
        """The configuration's name of the detections table."""
        score_threshold: Fraction = 0.2
        """Least score. A student that learns from pair answers needs the same, as for the next three keys."""
        min_instances: Count = 3
        """So many people, and so many others, are chosen whatever they score."""
        max_instances: Count = 15
        """At most so many people, and so many others, are chosen, the best."""
        nms_iou: Fraction = 0.5
        """Overlap above which the lower-scoring box of a class is left out."""
        batch_size: Count = 256
        """Rows per step."""

    def __init__(self, config: Config) -> None:
        if config.min_instances > config.max_instances:
            raise UserError(
                f"min_instances: {config.min_instances} are more than max_instances: {config.max_instances}; lower it"
            )
        self.inputs, self.batch_size = (config.detections,), config.batch_size
        self.rule: dict[str, Any] = {
            "score_threshold": config.score_threshold,
            "at_least": config.min_instances,
            "at_most": config.max_instances,
            "nms_iou": config.nms_iou,
        }

    @override
    def parameters(self) -> dict[str, Any]:
        return {**self.rule, "boxes": "whole pixels, halves to even"}

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        found = cells(inputs[self.inputs[0]]["value"])
        chosen = [self.chosen(found(row) or NOTHING) for row in range(len(batch.row_ids))]
        return {"value": pa.array(chosen, INSTANCES)}

    def chosen(self, detections: Mapping[str, Any]) -> dict[str, Any]:
        """A cell of :data:`INSTANCES`, of a cell of the detections table."""
        width, height = int(detections["width"]), int(detections["height"])
        boxes = box_ops.clip(np.asarray(detections["boxes"], np.float32).reshape(-1, 4), width, height)
        labels = np.asarray(detections["labels"], np.int16)
        kept = filter_detections(boxes, np.asarray(detections["scores"], np.float32), labels, **self.rule)
        boxes, labels = whole_pixels(boxes[kept]), labels[kept]
        order = order_without_scores(boxes, labels)
        return {
            "boxes": boxes[order].tolist(),
            "labels": labels[order].tolist(),
            "humans": int((labels == HUMAN).sum()),
            "width": width,
            "height": height,
        }
