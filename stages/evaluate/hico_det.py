"""HICO-DET's official evaluation (Chao et al., WACV 2018): default and known-object average precision per HOI class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.evaluate.average_precision import best_match, interpolated_precision, ranking, true_positives
from stages.evaluate.detections import Detections


@dataclass(frozen=True)
class Truths:
    """The annotated pairs of a split, as columns.

    Attributes:
        image: ``int [G]`` picture of each pair, below N.
        human_box, object_box: ``float32 [G, 4]``, xyxy pixels, zero-based half-open.
        hoi: ``int [G]`` class, below H. A pair with two interactions is two truths.
        image_objects: ``bool [N, O]``: object categories that the picture's image-level labels name.
    """

    image: np.ndarray
    human_box: np.ndarray
    object_box: np.ndarray
    hoi: np.ndarray
    image_objects: np.ndarray


@dataclass(frozen=True)
class ClassResults:
    """One setting's results per class, arrays of length H. ``ap`` and ``recall`` are fractions, NaN without pairs."""

    ap: np.ndarray
    recall: np.ndarray
    pairs: np.ndarray
    detections: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class Results:
    """Both settings, and ``matched`` int64 [D]: the truth that each stored detection found, -1 where it is wrong."""

    default: ClassResults
    known_object: ClassResults
    matched: np.ndarray


def hico_det(detections: Detections, truths: Truths, hoi_object: np.ndarray) -> Results:
    """Evaluate as the official code does.

    A detection is compared with the annotated pair of its class that it overlaps most, by min(IoU_human, IoU_object);
    it is right when that is at least 0.5 and no higher-ranked detection took the pair. All pictures count, also those
    without pairs. *Known object* looks, for each class, only at pictures whose image-level labels name its object.

    Args:
        hoi_object: ``int [H]`` object category of each class.
    """
    images, classes = len(truths.image_objects), len(hoi_object)
    overlap, truth = best_match(
        detections.hoi.astype(np.int64) * images + detections.image,
        (detections.human_box, detections.object_box),
        truths.hoi.astype(np.int64) * images + truths.image,
        (truths.human_box, truths.object_box),
    )
    order = ranking(detections.hoi, detections.score, detections.image)
    klass, right = detections.hoi[order].astype(np.int64), true_positives(order, overlap, truth)

    # A truth and the detections that may take it lie in one picture: leaving pictures out changes no match.
    known_detection = truths.image_objects[detections.image[order], hoi_object[klass]]
    known_truth = truths.image_objects[truths.image, hoi_object[truths.hoi]]
    matched = np.full(len(order), -1, np.int64)
    matched[order[right]] = truth[order[right]]
    return Results(
        default=_per_class(klass, right, truths.hoi, classes),
        known_object=_per_class(klass[known_detection], right[known_detection], truths.hoi[known_truth], classes),
        matched=matched,
    )


def _per_class(klass: np.ndarray, right: np.ndarray, truth_class: np.ndarray, classes: int) -> ClassResults:
    pairs = np.bincount(truth_class, minlength=classes)
    found = np.bincount(klass[right], minlength=classes)
    return ClassResults(
        ap=interpolated_precision(klass, right, pairs),
        recall=np.divide(found, pairs, out=np.full(classes, np.nan), where=pairs > 0),
        pairs=pairs,
        detections=np.bincount(klass, minlength=classes),
        found=found,
    )
