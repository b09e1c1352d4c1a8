"""HICO-DET's evaluation (Chao et al., WACV 2018), default and known object, per HOI class, under any convention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hoi_distill.stages.evaluate.detections import Detections
from hoi_distill.stages.evaluate.metrics.average_precision import (
    RECALL_GRIDS,
    best_matches,
    candidates,
    first_unused_matches,
    interpolated_precision,
    iou,
    ranking,
)
from hoi_distill.stages.evaluate.metrics.conventions import OFFICIAL, Convention
from hoi_distill.stages.evaluate.metrics.pair_nms import pairwise_nms

_HALF_OPEN = np.array([0, 0, 1, 1], np.float32)  # minus inclusive corners


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
    """Both settings, and what became of every stored detection.

    Attributes:
        default, known_object: per class.
        matched: ``int64 [D]``: the truth that each detection found, -1 where it is wrong.
        counted: ``bool [D]``: False where the convention leaves a detection out (caps, suppression, picture set).
    """

    default: ClassResults
    known_object: ClassResults
    matched: np.ndarray
    counted: np.ndarray


def hico_det(
    detections: Detections, truths: Truths, hoi_object: np.ndarray, convention: Convention = OFFICIAL
) -> Results:
    """Evaluate as the official code does, or as another convention's switches say.

    Officially a detection is compared with the annotated pair of its class that it overlaps most, by min(IoU_human,
    IoU_object); it is right when that is at least 0.5 and no higher-ranked detection took the pair. All pictures count,
    also those without pairs. *Known object* looks, for each class, only at pictures whose image-level labels name its
    object.

    Args:
        detections: ``hoi`` -1 (no class of the dataset) is left out.
        hoi_object: ``int [H]`` object category of each class.
    """
    images, classes = len(truths.image_objects), len(hoi_object)
    counted = counted_detections(detections, truths, convention)
    rows = np.flatnonzero(counted)
    order = rows[ranking(detections.hoi[rows], detections.score[rows], detections.image[rows], convention.ties)]
    klass = detections.hoi[order].astype(np.int64)
    if convention.top_per_class is not None:
        within = np.arange(len(order)) - np.searchsorted(klass, klass) < convention.top_per_class
        counted[order[~within]] = False
        order, klass = order[within], klass[within]
    image = detections.image[order]

    ranked, truth = candidates(klass * images + image, truths.hoi.astype(np.int64) * images + truths.image)
    stored = order[ranked]
    overlap = np.minimum(
        _overlap(detections.human_box[stored], truths.human_box[truth], convention),
        _overlap(detections.object_box[stored], truths.object_box[truth], convention),
    )
    close = overlap >= 0.5 if convention.threshold == "at_least" else overlap > 0.5
    if convention.assignment == "best":
        matches = best_matches(ranked, truth, overlap, close)
    else:
        matches = first_unused_matches(ranked, truth, close)
    right = np.zeros(len(order), bool)
    right[ranked[matches]] = True
    matched = np.full(len(detections), -1, np.int64)
    matched[stored[matches]] = truth[matches]

    # A truth and the detections that may take it lie in one picture: leaving pictures out changes no match.
    shows = truths.image_objects
    if convention.known_object == "box_level":
        shows = np.zeros_like(shows)
        shows[truths.image, hoi_object[truths.hoi]] = True
    known_detection = shows[image, hoi_object[klass]]
    known_truth = shows[truths.image, hoi_object[truths.hoi]]
    grid = RECALL_GRIDS[convention.recall_grid]
    return Results(
        default=_per_class(klass, right, truths.hoi, classes, grid),
        known_object=_per_class(klass[known_detection], right[known_detection], truths.hoi[known_truth], classes, grid),
        matched=matched,
        counted=counted,
    )


def counted_detections(detections: Detections, truths: Truths, convention: Convention) -> np.ndarray:
    """``bool [D]``: detections that a convention evaluates, before its cap per class.

    In this order: those of a class; in pictures that count; the highest-scored of each picture (ties as stored); what
    pairwise suppression leaves.
    """
    counted = detections.hoi >= 0
    if convention.pictures == "with_pairs":
        counted &= (np.bincount(truths.image, minlength=len(truths.image_objects)) > 0)[detections.image]
    if convention.top_per_image is not None:
        rows = np.flatnonzero(counted)
        image = detections.image[rows]
        if len(rows) and np.bincount(image).max() > convention.top_per_image:
            by_score = rows[np.lexsort((-detections.score[rows].astype(np.float64), image))]
            image = detections.image[by_score]
            beyond = np.arange(len(rows)) - np.searchsorted(image, image) >= convention.top_per_image
            counted[by_score[beyond]] = False
    if convention.nms_threshold is not None:
        rows = np.flatnonzero(counted)
        counted[rows] = pairwise_nms(
            detections.image[rows].astype(np.int64) * (1 + int(detections.hoi.max(initial=0))) + detections.hoi[rows],
            detections.score[rows],
            (detections.human_box[rows], detections.object_box[rows]),
            convention.nms_threshold, convention.nms_human, convention.nms_object,
        )  # fmt: skip
    return counted


def _overlap(boxes: np.ndarray, truths: np.ndarray, convention: Convention) -> np.ndarray:
    short = 1.0 if convention.box_area == "plain" else 0.0
    least = 1.0 - short if convention.one_pixel_overlap == "none" else 0.0
    if convention.detection_boxes == "rounded":  # as MATLAB rounds: halves away from zero
        inclusive = boxes - _HALF_OPEN
        boxes = np.trunc(inclusive + np.copysign(np.float32(0.5), inclusive)) + _HALF_OPEN
    return iou(boxes, truths + np.float32(convention.truth_shift), short, least)


def _per_class(
    klass: np.ndarray, right: np.ndarray, truth_class: np.ndarray, classes: int, grid: np.ndarray | None
) -> ClassResults:
    pairs = np.bincount(truth_class, minlength=classes)
    found = np.bincount(klass[right], minlength=classes)
    return ClassResults(
        ap=interpolated_precision(klass, right, pairs, grid),
        recall=np.divide(found, pairs, out=np.full(classes, np.nan), where=pairs > 0),
        pairs=pairs,
        detections=np.bincount(klass, minlength=classes),
        found=found,
    )
