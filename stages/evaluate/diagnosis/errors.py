"""Why detections are false positives, and why annotated pairs were missed.

Categories exclude one another: each detection, and each missed pair, belongs to the first category of its list whose
condition holds. Overlaps are intersection over union with the annotated boxes of the same image. A box is *on* another
from 0.5, and *near* it from 0.1. The categories follow Hoiem et al., ECCV 2012, and TIDE, ECCV 2020, for pairs of boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag, auto

import numpy as np

from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.metrics.average_precision import iou
from hoi_distill.stages.evaluate.metrics.curves import Ranking

ON, NEAR = 0.5, 0.1

KINDS = {
    "right": "Found a pair of its class: what the evaluation counts as true positive.",
    "duplicate": "Both boxes are on a pair of its class, but the evaluation gave that pair to another detection.",
    "wrong verb": "Both boxes are on a pair with this object, but of another verb.",
    "wrong object": "Both boxes are on a pair with this verb, but its object is of another category.",
    "wrong verb and object": "Both boxes are on a pair that has neither this verb nor this object.",
    "object box": "A pair of its class: the human box is on it, the object box only near it.",
    "human box": "A pair of its class: the object box is on it, the human box only near it.",
    "both boxes": "A pair of its class: both boxes are near it, neither is on it.",
    "wrong pairing": "The human box is on a human, the object box on an object of this category, but of two different pairs.",
    "background": "None of these: no annotated pair explains it.",
}
"""Categories of detections, in the order in which they are tried."""

MISSES = {
    "taken": "A detection of its class has both boxes on it, but was counted for another pair or as a duplicate.",
    "wrong verb": "Detected with both boxes on it and its object, but only with other verbs.",
    "wrong object": "Detected with both boxes on it and its verb, but only as other objects.",
    "wrong verb and object": "Detected with both boxes on it, but with neither its verb nor its object.",
    "boxes": "Detections of its class are near it with both boxes, but none is on it with both.",
    "not detected": "None of these.",
}
"""Why an annotated pair was missed, in the order in which reasons are tried. All counted detections are looked at."""


class _Overlap(IntFlag):
    """How a detection lies on an annotated pair of its image. ``OWN``: verb and object are those of the pair."""

    BOTH_OWN = auto()
    BOTH_OBJECT = auto()
    BOTH_VERB = auto()
    BOTH = auto()
    HUMAN_ON_OBJECT_NEAR = auto()
    OBJECT_ON_HUMAN_NEAR = auto()
    BOTH_NEAR = auto()
    HUMAN = auto()
    OBJECT = auto()


_EXPLAINS_ERROR = (
    _Overlap.BOTH_OWN,
    _Overlap.BOTH_OBJECT,
    _Overlap.BOTH_VERB,
    _Overlap.BOTH,
    _Overlap.HUMAN_ON_OBJECT_NEAR,
    _Overlap.OBJECT_ON_HUMAN_NEAR,
    _Overlap.BOTH_NEAR,
    _Overlap.HUMAN | _Overlap.OBJECT,
)
"""What explains a wrong detection, in the order of KINDS from "duplicate" on. All flags must be set, on any pairs."""

_EXPLAINS_MISS = (
    _Overlap.BOTH_OWN,
    _Overlap.BOTH_OBJECT,
    _Overlap.BOTH_VERB,
    _Overlap.BOTH,
    _Overlap.BOTH_NEAR,
)
"""What explains a missed pair, in the order of MISSES."""


@dataclass(frozen=True, eq=False)
class AnnotatedPairs:
    """Annotated pairs as columns.

    Attributes:
        image: ``int [G]`` image.
        human_box: ``float32 [G, 4]``, xyxy pixels, zero-based half-open.
        object_box: ``float32 [G, 4]``, in the same format.
        object: ``int [G]`` object category.
        verb: ``int [G]``.
    """

    image: np.ndarray
    human_box: np.ndarray
    object_box: np.ndarray
    object: np.ndarray
    verb: np.ndarray


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The category of every detection and of every annotated pair.

    Attributes:
        detections: what was diagnosed.
        pairs: the annotated pairs of the same images.
        kind: ``int8 [D]`` position in :data:`KINDS` of each detection, -1 if the evaluation does not count it.
        miss: ``int8 [G]`` position in :data:`MISSES` of each annotated pair, -1 if it was found.
    """

    detections: HoiDetections
    pairs: AnnotatedPairs
    kind: np.ndarray
    miss: np.ndarray


def diagnose(detections: HoiDetections, pairs: AnnotatedPairs, matched: np.ndarray, counted: np.ndarray) -> Diagnosis:
    """Sort every counted detection and every annotated pair into its category.

    Args:
        detections: of all images.
        pairs: the annotated pairs of the same images.
        matched: ``int64 [D]`` the pair that each detection found, -1 for a false positive.
        counted: ``bool [D]``, False where the evaluation left a detection out.
    """
    of_detection = np.zeros(len(detections), np.int64)
    of_pair = np.zeros(len(pairs.image), np.int64)
    rows = np.flatnonzero(counted)
    for owner, pair in _candidates(detections.image, rows, pairs.image):
        flags = _overlaps(detections, pairs, owner, pair)
        begins = np.flatnonzero(np.diff(owner, prepend=-1))
        of_detection[owner[begins]] = np.bitwise_or.reduceat(flags, begins)
        np.bitwise_or.at(of_pair, pair, flags)
    kind = _first([matched >= 0, *(of_detection & int(flags) == flags for flags in _EXPLAINS_ERROR)])
    kind[~counted] = -1
    miss = _first([of_pair & int(flags) == flags for flags in _EXPLAINS_MISS])
    miss[matched[matched >= 0]] = -1
    return Diagnosis(detections, pairs, kind, miss)


def _overlaps(detections: HoiDetections, pairs: AnnotatedPairs, owner: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """``int64 [M]``: the :class:`_Overlap` flags of M detections (``owner``) and pairs."""
    human = iou(detections.human_box[owner], pairs.human_box[pair])
    obj = iou(detections.object_box[owner], pairs.object_box[pair])
    verb = detections.verb[owner] == pairs.verb[pair]
    category = detections.object[owner] == pairs.object[pair]
    on_human, on_object = human >= ON, obj >= ON
    on = on_human & on_object
    near = verb & category & (human >= NEAR) & (obj >= NEAR)
    conditions = {
        _Overlap.BOTH_OWN: on & verb & category,
        _Overlap.BOTH_OBJECT: on & category,
        _Overlap.BOTH_VERB: on & verb,
        _Overlap.BOTH: on,
        _Overlap.HUMAN_ON_OBJECT_NEAR: near & on_human,
        _Overlap.OBJECT_ON_HUMAN_NEAR: near & on_object,
        _Overlap.BOTH_NEAR: near,
        _Overlap.HUMAN: on_human,
        _Overlap.OBJECT: on_object & category,
    }
    flags = np.zeros(len(owner), np.int64)
    for flag, condition in conditions.items():
        flags += condition * int(flag)
    return flags


def confusions(detections: HoiDetections, pairs: AnnotatedPairs, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The annotated pair of another class on which a detection lies with both boxes.

    Of several pairs it is one with the detection's object, else one with its verb, else any. Of those it is the one with
    the largest min(IoU_human, IoU_object), the first stored of equals.

    Args:
        detections: of all images.
        pairs: the annotated pairs of the same images.
        rows: ``int64 [R]`` detections to look at.

    Returns:
        Rows and pairs, ``int64 [K]`` each; rows that lie on no such pair are left out.
    """
    found, chosen = [], []
    for owner, pair in _candidates(detections.image, rows, pairs.image):
        overlap = np.minimum(
            iou(detections.human_box[owner], pairs.human_box[pair]),
            iou(detections.object_box[owner], pairs.object_box[pair]),
        )
        verb = detections.verb[owner] == pairs.verb[pair]
        category = detections.object[owner] == pairs.object[pair]
        possible = np.flatnonzero((overlap >= ON) & ~(verb & category))
        best = possible[
            np.lexsort((pair[possible], -overlap[possible], ~verb[possible], ~category[possible], owner[possible]))
        ]
        first = best[np.flatnonzero(np.diff(owner[best], prepend=-1))]
        found.append(owner[first])
        chosen.append(pair[first])
    empty = np.zeros(0, np.int64)
    return np.concatenate([empty, *found]), np.concatenate([empty, *chosen])


def decisive(ranking: Ranking) -> np.ndarray:
    """``bool [M]``: the n highest-ranked detections of each class, n being its number of annotated pairs.

    A perfect detector has only true positives among them. Errors far below them cost next to nothing.
    """
    return ranking.rank() < ranking.positives[ranking.klass]


def _candidates(
    image: np.ndarray, rows: np.ndarray, pair_image: np.ndarray, at_once: int = 1 << 19
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every (detection, pair) of the same image, ``int64`` each, in parts of about ``at_once``.

    All pairs of a detection are neighbours in one part.
    """
    by_image = np.argsort(pair_image, kind="stable")
    sorted_image = pair_image[by_image]
    first = np.searchsorted(sorted_image, image[rows], "left")
    count = np.searchsorted(sorted_image, image[rows], "right") - first
    total = np.cumsum(count)
    begin = 0
    while begin < len(rows):
        done = int(total[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + at_once, "right")))
        repeats = count[begin:end]
        owner = np.repeat(rows[begin:end], repeats)
        starts = np.cumsum(repeats) - repeats
        yield owner, by_image[np.arange(len(owner)) + np.repeat(first[begin:end] - starts, repeats)]
        begin = end


def _first(conditions: list[np.ndarray]) -> np.ndarray:
    """``int8``: the position of the first condition that holds, the number of conditions where none holds."""
    kind = np.full(len(conditions[0]), len(conditions), np.int8)
    for number in reversed(range(len(conditions))):
        kind[conditions[number]] = number
    return kind
