"""HICO-DET's evaluation (Chao et al., WACV 2018), default and known object, per HOI class, under any convention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hoi_distill.stages.evaluate.detections import HoiDetections
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
from hoi_distill.stages.evaluate.metrics.curves import Ranking
from hoi_distill.stages.evaluate.metrics.pair_nms import pairwise_nms

_HALF_OPEN = np.array([0, 0, 1, 1], np.float32)  # minus inclusive corners


@dataclass(frozen=True)
class GroundTruth:
    """The annotated pairs of a split, as columns. A pair with two interactions is two rows.

    Attributes:
        image: ``int [G]`` image of each pair, below N.
        human_box: ``float32 [G, 4]``, xyxy pixels, zero-based half-open.
        object_box: ``float32 [G, 4]``, in the same format.
        hoi: ``int [G]`` class, below H.
        image_objects: ``bool [N, O]``: object categories that the image's image-level labels name.
    """

    image: np.ndarray
    human_box: np.ndarray
    object_box: np.ndarray
    hoi: np.ndarray
    image_objects: np.ndarray


@dataclass(frozen=True)
class ClassResults:
    """One setting's results per class.

    Attributes:
        ap: ``float64 [H]``, fractions; NaN without annotated pairs.
        recall: ``float64 [H]``, fractions; NaN without annotated pairs.
        pairs: ``int64 [H]`` annotated pairs.
        detections: ``int64 [H]`` detections that count.
        found: ``int64 [H]`` true positives.
    """

    ap: np.ndarray
    recall: np.ndarray
    pairs: np.ndarray
    detections: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class Results:
    """Both settings, and what became of every stored detection.

    Attributes:
        default: results per class over all images.
        known_object: results per class over the images that show the object of the class.
        ranking: the counted detections of the default setting in rank order.
        known_object_ranking: those of the known-object setting.
        matched: ``int64 [D]`` row of the ground truth that each detection found, -1 for a false positive.
        counted: ``bool [D]``, False where the convention leaves a detection out (caps, suppression, image set).
    """

    default: ClassResults
    known_object: ClassResults
    ranking: Ranking
    known_object_ranking: Ranking
    matched: np.ndarray
    counted: np.ndarray


def hico_det(
    detections: HoiDetections, gt: GroundTruth, hoi_object: np.ndarray, convention: Convention = OFFICIAL
) -> Results:
    """Evaluate as the official code does, or as another convention's switches say.

    Officially a detection is compared with the annotated pair of its class that it overlaps most, by min(IoU_human,
    IoU_object). It is a true positive when that is at least 0.5 and no higher-ranked detection took the pair. All
    images count, also those without pairs. *Known object* looks, for each class, only at images whose image-level
    labels name its object.

    Args:
        detections: a row whose ``hoi`` is -1 (no class of the dataset) is left out.
        gt: the annotated pairs of the same images.
        hoi_object: ``int [H]`` object category of each class.
        convention: the switches.
    """
    ranked, counted = _ranked(detections, gt, len(hoi_object), convention)
    images = ranked.images
    owner, pair = candidates(ranked.klass * images + ranked.image, gt.hoi.astype(np.int64) * images + gt.image)
    stored = ranked.row[owner]
    overlap = np.minimum(
        _overlap(detections.human_box[stored], gt.human_box[pair], convention),
        _overlap(detections.object_box[stored], gt.object_box[pair], convention),
    )
    close = overlap >= 0.5 if convention.threshold == "at_least" else overlap > 0.5
    if convention.assignment == "best":
        matches = best_matches(owner, pair, overlap, close)
    else:
        matches = first_unused_matches(owner, pair, close)
    is_tp = np.zeros(len(ranked.row), bool)
    is_tp[owner[matches]] = True
    ranked = replace(ranked, is_tp=is_tp)
    matched = np.full(len(detections), -1, np.int64)
    matched[stored[matches]] = pair[matches]

    # A pair and the detections that may take it lie in one image: leaving images out changes no match.
    shows = _image_objects(gt, hoi_object, convention)
    known = ranked.select(
        shows[ranked.image, hoi_object[ranked.klass]], shows[ranked.gt_image, hoi_object[ranked.gt_class]]
    )
    grid = RECALL_GRIDS[convention.recall_grid]
    return Results(
        default=_class_results(ranked, grid),
        known_object=_class_results(known, grid),
        ranking=ranked,
        known_object_ranking=known,
        matched=matched,
        counted=counted,
    )


def _ranked(
    detections: HoiDetections, gt: GroundTruth, classes: int, convention: Convention
) -> tuple[Ranking, np.ndarray]:
    """The ranking of the counted detections, none of them a true positive yet, and ``bool [D]`` which are counted."""
    counted = counted_detections(detections, gt, convention)
    rows = np.flatnonzero(counted)
    order = rows[ranking(detections.hoi[rows], detections.score[rows], detections.image[rows], convention.ties)]
    if convention.top_per_class is not None:
        klass = detections.hoi[order]
        within = np.arange(len(order)) - np.searchsorted(klass, klass) < convention.top_per_class
        counted[order[~within]] = False
        order = order[within]
    ranked = Ranking(
        row=order,
        klass=detections.hoi[order].astype(np.int64),
        image=detections.image[order].astype(np.int64),
        score=detections.score[order],
        is_tp=np.zeros(len(order), bool),
        gt_class=gt.hoi.astype(np.int64),
        gt_image=gt.image.astype(np.int64),
        classes=classes,
        images=len(gt.image_objects),
    )
    return ranked, counted


def counted_detections(detections: HoiDetections, gt: GroundTruth, convention: Convention) -> np.ndarray:
    """The detections that a convention evaluates, before its cap per class.

    It keeps, in this order: detections of a class; those in images that count; the highest-scored of each image
    (equal scores as stored); and what pairwise suppression leaves.

    Args:
        detections: of all images.
        gt: the annotated pairs of the same images.
        convention: the switches.

    Returns:
        ``bool [D]``.
    """
    counted = detections.hoi >= 0
    if convention.pictures == "with_pairs":
        counted &= (np.bincount(gt.image, minlength=len(gt.image_objects)) > 0)[detections.image]
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
            threshold=convention.nms_threshold,
            human_power=convention.nms_human,
            object_power=convention.nms_object,
        )
    return counted


def _image_objects(gt: GroundTruth, hoi_object: np.ndarray, convention: Convention) -> np.ndarray:
    """``bool [N, O]``: the objects that an image shows by the convention's known-object setting."""
    if convention.known_object != "box_level":
        return gt.image_objects
    shows = np.zeros_like(gt.image_objects)
    shows[gt.image, hoi_object[gt.hoi]] = True
    return shows


def _overlap(boxes: np.ndarray, gt_boxes: np.ndarray, convention: Convention) -> np.ndarray:
    short = 1.0 if convention.box_area == "plain" else 0.0
    least = 1.0 - short if convention.one_pixel_overlap == "none" else 0.0
    if convention.detection_boxes == "rounded":  # as MATLAB rounds: halves away from zero
        inclusive = boxes - _HALF_OPEN
        boxes = np.trunc(inclusive + np.copysign(np.float32(0.5), inclusive)) + _HALF_OPEN
    return iou(boxes, gt_boxes + np.float32(convention.truth_shift), short, least)


def _class_results(ranked: Ranking, grid: np.ndarray | None) -> ClassResults:
    pairs = ranked.positives
    found = np.bincount(ranked.klass[ranked.is_tp], minlength=ranked.classes)
    return ClassResults(
        ap=interpolated_precision(ranked.klass, ranked.is_tp, pairs, grid),
        recall=np.divide(found, pairs, out=np.full(ranked.classes, np.nan), where=pairs > 0),
        pairs=pairs,
        detections=np.bincount(ranked.klass, minlength=ranked.classes),
        found=found,
    )
