"""Swap accuracy: does a model see which of two equal candidates a person acts on?

A *twin* is a scene drawn twice, with the target of one act swapped. Each of its two images asks one question: is the pair
that acts scored above the pair that acts in the other image? Both pairs are of the same classes, so only the relation
answers; who looks at the regions alone is right in one image and wrong in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.reading.json_columns import read_json
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.ops.boxes import iou_matrix
from hoi_distill.storage.errors import UserError

_MATCH = 0.5
_PAIRS = ("acting", "other")
_BOXES = ("human_box", "object_box")


@dataclass(frozen=True, eq=False)
class Twins:
    """The questions of T twins, two for each, in the order of the file.

    Attributes:
        image: int64 ``[2T]``, the image of each question, a position in the split.
        hoi: int64 ``[2T]``, the class of both pairs.
        boxes: float32 ``[2T, 2, 2, 4]``: the acting pair and the other one; person and object; xyxy pixels, zero-based
            half-open.
    """

    image: np.ndarray
    hoi: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.hoi) // 2


@dataclass(frozen=True, eq=False)
class SwapAccuracy:
    """What became of each of Q questions.

    Attributes:
        scores: float64 ``[Q, 2]``, of the acting and of the other pair; NaN where a pair was not detected.
        hoi: int64 ``[Q]``, the class asked about.
    """

    scores: np.ndarray
    hoi: np.ndarray

    @property
    def compared(self) -> np.ndarray:
        """bool ``[Q]``: both pairs were detected, so that there is something to compare."""
        return np.logical_not(np.isnan(self.scores).any(1))

    def accuracy(self, rows: np.ndarray | None = None) -> float:
        """The share of compared questions whose acting pair scores higher, an equal score counting half; NaN of none.

        Args:
            rows: bool ``[Q]``, the questions that are asked for; None: all.
        """
        chosen = self.scores[self.compared if rows is None else self.compared & rows]
        if not len(chosen):
            return float("nan")
        return float(((chosen[:, 0] > chosen[:, 1]) + 0.5 * (chosen[:, 0] == chosen[:, 1])).mean())

    def as_json(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Percent over all and by verb, with the number of questions and of those that were compared."""
        verb = vocabulary.hois[self.hoi, 0]
        by_verb = {vocabulary.verbs[v]: self._figures(verb == v) for v in np.unique(verb).tolist()}
        return {**self._figures(np.ones(len(verb), bool)), "verbs": by_verb}

    def _figures(self, rows: np.ndarray) -> dict[str, float | int | None]:
        accuracy = self.accuracy(rows)
        return {
            "swap_accuracy": None if np.isnan(accuracy) else round(100 * accuracy, 2),
            "questions": int(rows.sum()),
            "compared": int((self.compared & rows).sum()),
        }


def read_twins(path: Path, image_ids: Sequence[str] | np.ndarray, vocabulary: Vocabulary) -> Twins:
    """Read ``twins_test2015.json`` (docs/formats.md).

    Args:
        path: The file.
        image_ids: The N images of the split, in its order.
        vocabulary: Its classes.

    Raises:
        UserError: With the file and the entry, if the file is not there, an entry lacks something, or names an image or a
            class that the split does not have.
    """
    entries = read_json(path, list, "a list of twins")
    position = {name: row for row, name in enumerate(np.asarray(image_ids).tolist())}
    classes = {vocabulary.hoi_name(hoi): hoi for hoi in range(len(vocabulary))}
    image, hoi, boxes = [], [], []
    for number, entry in enumerate(entries, 1):
        try:
            hoi += [classes[entry["verb"], entry["object"]]] * 2
            first, second = entry["images"]
            for one in (first, second):
                image.append(position[one["image_id"]])
                boxes.append([[one[pair][box] for box in _BOXES] for pair in _PAIRS])
        except KeyError as error:
            raise UserError(
                f"{path}: entry {number}: {error} is missing, or is no image or class of the annotations; draw the world again"
            ) from None
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path}: entry {number}: not a twin of two images ({error}); draw the world again"
            ) from None
    try:
        corners = np.array(boxes, np.float32).reshape(-1, 2, 2, 4)
    except ValueError:
        raise UserError(f"{path}: not every box has four numbers; draw the world again") from None
    return Twins(np.array(image, np.int64), np.array(hoi, np.int64), corners)


def swap_accuracy(detections: HoiDetections, twins: Twins) -> SwapAccuracy:
    """Score both pairs of every question.

    A pair's score is the best one among the detections of its image and class whose boxes both overlap the pair's by an
    IoU of at least 0.5.
    """
    classes = 1 + max(int(detections.hoi.max(initial=0)), int(twins.hoi.max(initial=0)))
    key = detections.image.astype(np.int64) * classes + detections.hoi
    wanted = twins.image * classes + twins.hoi
    rows = np.flatnonzero((detections.hoi >= 0) & np.isin(key, wanted))
    rows = rows[np.argsort(key[rows], kind="stable")]
    starts = np.searchsorted(key[rows], wanted)
    ends = np.searchsorted(key[rows], wanted, side="right")
    scores = np.full((len(wanted), 2), np.nan)
    for question, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        found = rows[start:end]
        human = iou_matrix(twins.boxes[question, :, 0], detections.human_box[found]) >= _MATCH
        thing = iou_matrix(twins.boxes[question, :, 1], detections.object_box[found]) >= _MATCH
        for pair, match in enumerate(human & thing):
            if match.any():
                scores[question, pair] = detections.score[found[match]].max()
    return SwapAccuracy(scores, twins.hoi)
