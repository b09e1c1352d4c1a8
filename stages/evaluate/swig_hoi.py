"""SWiG-HOI's evaluation as its authors' code does it: eleven-point average precision of the evaluated interactions.

Wang et al., ICCV 2021 and CVPR 2022. Per interaction: the 19,999 detections of highest score; each takes the annotated
pair of its picture with the highest min(IoU of persons, IoU of objects), right if that is at least 1/2 and the first to
take it; precision at the recall levels k/10, exactly. An evaluated interaction without annotated pairs or without
detections counts as 0. Equal scores: published code leaves them to ``argsort()[::-1]``; here as a stable sort would,
later pictures first, in one picture detections stored last first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.data.records import Annotations
from stages.data.swig_hoi import swig_evaluated, swig_frequency
from stages.evaluate.average_precision import (
    RECALL_GRIDS,
    best_matches,
    candidates,
    interpolated_precision,
    iou,
    ranking,
)
from stages.evaluate.detections import Detections

_CAP = 19_999


@dataclass(frozen=True, eq=False)
class SwigResults:
    """Per interaction, arrays of length 14,130: ``ap`` a fraction, 0 where nothing is annotated or found; ``pairs``
    annotated; ``detections`` that counted; ``found`` right ones. Means are over those that are evaluated."""

    ap: np.ndarray
    pairs: np.ndarray
    detections: np.ndarray
    found: np.ndarray

    def mean(self, frequency: int | None = None) -> float:
        """Over all 5,539 evaluated interactions, or those unseen (0), rare (1) or non-rare (2) in training."""
        chosen = swig_evaluated() if frequency is None else swig_evaluated() & (swig_frequency() == frequency)
        return float(self.ap[chosen].mean())

    def percentages(self) -> dict[str, float]:
        """{"full", "non_rare", "rare", "unseen"} in percent."""
        return {
            name: 100 * self.mean(frequency)
            for name, frequency in (("full", None), ("non_rare", 2), ("rare", 1), ("unseen", 0))
        }


def swig_hoi(detections: Detections, annotations: Annotations) -> SwigResults:
    """Evaluate detections of the pictures of `annotations`. Time grows as n log n with the detections."""
    classes, images = len(swig_frequency()), len(annotations)
    truth = np.flatnonzero(annotations.hoi >= 0)
    truth_class = annotations.hoi[truth].astype(np.int64)

    order = _capped_order(detections)
    klass = detections.hoi[order].astype(np.int64)
    detection, candidate = candidates(
        klass * images + detections.image[order], truth_class * images + annotations.pair_image()[truth]
    )
    of, to = order[detection], truth[candidate]
    overlap = np.minimum(
        iou(detections.human_box[of], annotations.human_box[to]),
        iou(detections.object_box[of], annotations.object_box[to]),
    )
    right = np.zeros(len(order), bool)
    right[detection[best_matches(detection, candidate, overlap, overlap >= 0.5)]] = True
    pairs = np.bincount(truth_class, minlength=classes)
    return SwigResults(
        ap=np.nan_to_num(interpolated_precision(klass, right, pairs, RECALL_GRIDS["exact"])),
        pairs=pairs,
        detections=np.bincount(klass, minlength=classes),
        found=np.bincount(klass[right], minlength=classes),
    )


def _capped_order(detections: Detections) -> np.ndarray:
    """int64: rows of evaluated interactions by class, then falling score, at most the cap of each class."""
    rows = np.flatnonzero(detections.hoi >= 0)
    rows = rows[swig_evaluated()[detections.hoi[rows]]]
    order = rows[ranking(detections.hoi[rows], detections.score[rows], detections.image[rows], ties="last")]
    klass = detections.hoi[order]
    return order[np.arange(len(order)) - np.searchsorted(klass, klass) < _CAP]
