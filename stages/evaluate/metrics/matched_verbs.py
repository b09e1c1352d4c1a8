"""Verbs apart from boxes: which verbs does a model see in the pairs that are there?

Mean average precision asks for boxes and verb at once, so a model whose boxes are loose is not judged by its verbs. Here each
annotated pair takes one detected pair of its image, however loose, as DETR's matching does in training: one to one, with the
greatest sum of generalised IoU of both boxes. Its verb scores are ranked against those of all annotated pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.metrics.average_precision import tie_averaged_precision
from hoi_distill.stages.ops.boxes import giou, iou


@dataclass(frozen=True, eq=False)
class MatchedVerbs:
    """What became of G annotated pairs.

    Attributes:
        score: float64 ``[G, V]``, each verb's score in the detected pair that a pair took; -1 where it was not detected.
        annotated: bool ``[G, V]``.
        overlap: float64 ``[G]``, the lower IoU of the two boxes; 0 where an image has too few detected pairs.
    """

    score: np.ndarray
    annotated: np.ndarray
    overlap: np.ndarray

    def average_precision(self) -> np.ndarray:
        """float64 ``[V]``; NaN of a verb without an annotated pair. Pairs of one score have no order."""
        found = np.full(self.score.shape[1], np.nan)
        for verb in np.flatnonzero(self.annotated.any(0)):
            found[verb] = tie_averaged_precision(self.score[:, verb], self.annotated[:, verb])
        return found

    def as_json(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Percent: the mean over verbs, each verb's, and the share of pairs whose boxes both overlap by half or more."""
        found = 100 * self.average_precision()
        pairs = self.annotated.sum(0).tolist()
        return {
            "verb_map": None if np.isnan(found).all() else round(float(np.nanmean(found)), 2),
            "pairs": len(self.score),
            "boxes_within_half": round(100 * float((self.overlap >= 0.5).mean()), 2) if len(self.score) else None,
            "verbs": {
                vocabulary.verbs[verb]: {"ap": round(float(found[verb]), 2), "pairs": pairs[verb]}
                for verb in np.flatnonzero(~np.isnan(found)).tolist()
            },
        }


def matched_verbs(detections: HoiDetections, annotations: Annotations, verbs: int) -> MatchedVerbs:
    """Match every annotated pair.

    A pair of boxes is one pair, whatever verbs and classes it has. Annotated pairs without an object are left out.

    Args:
        detections: scored triplets of the split's images.
        annotations: the split.
        verbs: V.
    """
    truth = annotations.with_pairs(annotations.object >= 0)
    of_pair, image, boxes = _pairs(truth.pair_image(), truth.human_box, truth.object_box)
    annotated = np.zeros((len(image), verbs), bool)
    annotated[of_pair, truth.verb] = True
    of_found, found_image, found_boxes = _pairs(detections.image, detections.human_box, detections.object_box)
    scores = np.full((len(found_image), verbs), -1.0)
    np.maximum.at(scores, (of_found, detections.verb), detections.score)
    score, overlap = np.full((len(image), verbs), -1.0), np.zeros(len(image))
    starts, ends = (np.searchsorted(found_image, image, side) for side in ("left", "right"))
    for one in np.unique(image).tolist():
        rows = np.arange(*np.searchsorted(image, [one, one + 1]))
        start, end = int(starts[rows[0]]), int(ends[rows[0]])
        given, seen = boxes[rows, None], found_boxes[None, start:end]
        row, taken = linear_sum_assignment(-giou(given, seen).sum(-1))
        score[rows[row]] = scores[start + taken]
        overlap[rows[row]] = iou(boxes[rows[row]], found_boxes[start + taken]).min(-1)
    return MatchedVerbs(score, annotated, overlap)


def _pairs(image: np.ndarray, human: np.ndarray, thing: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs of boxes: each row's pair, the image of each, rising, and float64 ``[G, 2, 4]`` their boxes."""
    keys = np.column_stack([image.astype(np.float64), human, thing])
    unique, of_row = np.unique(keys, axis=0, return_inverse=True)
    return of_row.reshape(-1), unique[:, 0].astype(np.int64), unique[:, 1:].reshape(-1, 2, 4)
