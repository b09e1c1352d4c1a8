"""What the wrong detections got wrong, and why the missed pairs were missed.

Categories exclude one another: each detection, and each missed pair, belongs to the first of its list whose condition
holds. Overlaps are intersection over union with the annotated boxes of the same picture; a box is *on* another from
0.5, and *near* it from 0.1 (as in Hoiem et al., ECCV 2012, and TIDE, ECCV 2020, carried over to pairs of boxes).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hoi_distill.stages.evaluate.detections import Detections
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

_DUPLICATE, _VERB, _OBJECT, _NEITHER, _OBJECT_BOX, _HUMAN_BOX, _BOTH_BOXES, _ON_HUMAN, _ON_OBJECT = 1 << np.arange(9)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Annotated pairs as columns: ``image, object, verb`` int [G], boxes ``float32 [G, 4]`` xyxy pixels, half-open."""

    image: np.ndarray
    human_box: np.ndarray
    object_box: np.ndarray
    object: np.ndarray
    verb: np.ndarray


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """``kind`` int8 [D]: position in :data:`KINDS` of each detection (-1: not counted by the evaluation);
    ``miss`` int8 [G]: position in :data:`MISSES` of each annotated pair, -1 for those found."""

    kind: np.ndarray
    miss: np.ndarray


def diagnose(detections: Detections, pairs: Pairs, matched: np.ndarray, counted: np.ndarray) -> Diagnosis:
    """Sort every counted detection and every annotated pair into its category.

    Args:
        matched: ``int64 [D]`` the pair each detection found, -1 where it is wrong.
        counted: ``bool [D]``, False where the evaluation left a detection out.
    """
    verdict = np.zeros(len(detections), np.int64)
    seen = np.zeros(len(pairs.image), np.int64)
    rows = np.flatnonzero(counted)
    for owner, pair in _candidates(detections.image, rows, pairs.image):
        human = iou(detections.human_box[owner], pairs.human_box[pair])
        thing = iou(detections.object_box[owner], pairs.object_box[pair])
        verb = detections.verb[owner] == pairs.verb[pair]
        category = detections.object[owner] == pairs.object[pair]
        own, on_human, on_object = verb & category, human >= ON, thing >= ON
        on = on_human & on_object
        near = own & (human >= NEAR) & (thing >= NEAR)
        bits = (
            (on & own) * _DUPLICATE + (on & category) * _VERB + (on & verb) * _OBJECT + on * _NEITHER
            + (near & on_human) * _OBJECT_BOX + (near & on_object) * _HUMAN_BOX + near * _BOTH_BOXES
            + on_human * _ON_HUMAN + (on_object & category) * _ON_OBJECT
        )  # fmt: skip
        begins = np.flatnonzero(np.diff(owner, prepend=-1))
        verdict[owner[begins]] = np.bitwise_or.reduceat(bits, begins)
        np.bitwise_or.at(seen, pair, bits)
    both = _ON_HUMAN | _ON_OBJECT
    kind = _first(
        [matched >= 0]
        + [verdict & bit > 0 for bit in (_DUPLICATE, _VERB, _OBJECT, _NEITHER, _OBJECT_BOX, _HUMAN_BOX, _BOTH_BOXES)]
        + [verdict & both == both]
    )
    kind[~counted] = -1
    miss = _first([seen & bit > 0 for bit in (_DUPLICATE, _VERB, _OBJECT, _NEITHER, _BOTH_BOXES)])
    miss[matched[matched >= 0]] = -1
    return Diagnosis(kind, miss)


def confusions(detections: Detections, pairs: Pairs, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The annotated pair on which each of ``rows`` lies with both boxes although it is not of its class.

    Where there are several: one with its object, else one with its verb, else any; of those the one with the largest
    min(IoU_human, IoU_object), the first stored of equals.

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

    A perfect detector has only right ones among them; far below them, errors of any kind cost next to nothing.
    """
    return ranking.rank() < ranking.positives[ranking.klass]


def _candidates(
    image: np.ndarray, rows: np.ndarray, pair_image: np.ndarray, at_once: int = 1 << 19
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every (detection, pair) of the same picture, ``int64`` each, in parts of about ``at_once``; all pairs of a
    detection come together, and in one part."""
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
    """``int8``: the first condition that holds, their number where none does."""
    kind = np.full(len(conditions[0]), len(conditions), np.int8)
    for number in reversed(range(len(conditions))):
        kind[conditions[number]] = number
    return kind
