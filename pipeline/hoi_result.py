"""The human-object pairs of one image, as a student's user gets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.evaluate.pages.drawing import drawn
from hoi_distill.stages.evaluate.pages.images import Pair
from hoi_distill.storage.errors import UserError

DRAWN = 12
"""At most so many pairs are drawn into an image."""


@dataclass(frozen=True, eq=False)
class HOIResult:
    """N scored human-object pairs, the best first.

    Attributes:
        image: RGB, upright.
        human_box: ``float32 [N, 4]``, xyxy pixels of ``image``, zero-based half-open.
        object_box: in the same format; NaN where the verb is done without an object.
        verb: N names.
        object: N names; "" where there is no object.
        score: float ``[N]``.
    """

    image: Image.Image
    human_box: np.ndarray
    object_box: np.ndarray
    verb: list[str]
    object: list[str]
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def to_dict(self) -> list[dict[str, Any]]:
        """A JSON record for each pair: verb, object, score, human_box, object_box. The object's are None without one."""
        return [
            {
                "verb": self.verb[index],
                "object": self.object[index] or None,
                "score": float(self.score[index]),
                "human_box": self.human_box[index].tolist(),
                "object_box": self.object_box[index].tolist() if self.object[index] else None,
            }
            for index in range(len(self))
        ]

    def to_supervision(self) -> Any:
        """The pairs as ``supervision.Detections``: the human boxes, and verb, object and object_box as ``data``.

        Raises:
            UserError: the package is not installed.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise UserError("supervision: not installed; pip install supervision") from None
        data: dict[str, Any] = {
            "verb": np.array(self.verb),
            "object": np.array(self.object),
            "object_box": self.object_box,
        }
        return Detections(xyxy=self.human_box, confidence=self.score, data=data)

    def plot(self, threshold: float = 0.0) -> Image.Image:
        """A drawing of the best pairs, at most :data:`DRAWN`. Human boxes are solid, object boxes are dashed.

        Args:
            threshold: pairs of a lower score are not drawn.
        """
        return drawn(self.image, [pair for _, pair in self.pairs(threshold)])

    def pairs(self, threshold: float = 0.0) -> list[tuple[int, Pair]]:
        """The pairs that are drawn, with their positions.

        Args:
            threshold: pairs of a lower score are left out.
        """
        shown = [index for index in range(min(DRAWN, len(self))) if self.score[index] >= threshold]
        return [
            (
                index,
                Pair(
                    self.human_box[index].tolist(),
                    (self.object_box if self.object[index] else self.human_box)[index].tolist(),
                    self.verb[index].replace("_", " "),
                    self.object[index].replace("_", " "),
                    float(self.score[index]),
                ),
            )
            for index in shown
            if self.verb[index] != NO_INTERACTION
        ]

    def show(self, threshold: float = 0.0) -> None:
        """Open the drawing in the system's viewer."""
        self.plot(threshold).show()
