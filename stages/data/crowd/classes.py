"""What can happen in the crowd, and how often: six relations with nine kinds of things, a long tail in training."""

from __future__ import annotations

import random
from functools import cache

from hoi_distill.stages.data.vocabulary import Vocabulary

PARTICIPLES: dict[str, str] = {
    "point_at": "pointing_at",
    "pull": "pulling",
    "reach_for": "reaching_for",
    "spray": "spraying",
    "step_on": "stepping_on",
    "watch": "watching",
}
"""Every verb with its participle."""

RAYS: frozenset[str] = frozenset({"point_at", "reach_for", "watch"})
"""Verbs that are a direction: of one arm, of both arms, of a telescope before the eye."""
LINES: frozenset[str] = frozenset({"pull", "spray"})
"""Verbs that are a line from the hand to the target: a rope, drops of water."""
CONTACT = "step_on"
"""The verb that is a foot on a thing beside which two people stand."""

_VERBS_OF_OBJECT = {  # HICO-DET's order of objects
    "person": "point_at reach_for spray watch",
    "chair": "point_at pull reach_for spray step_on watch",
    "dog": "point_at pull reach_for spray watch",
    "book": "point_at reach_for step_on watch",
    "cup": "point_at pull reach_for spray step_on watch",
    "kite": "point_at pull reach_for watch",
    "skateboard": "point_at pull reach_for spray step_on watch",
    "sports_ball": "point_at pull reach_for spray step_on watch",
    "umbrella": "point_at pull reach_for spray watch",
}
THINGS: tuple[str, ...] = tuple(name for name in _VERBS_OF_OBJECT if name != "person")
HOIS: tuple[tuple[str, str], ...] = tuple(
    (verb, name) for name, verbs in _VERBS_OF_OBJECT.items() for verb in verbs.split()
)
"""All (verb, object) classes in the order of the vocabulary."""
RANKED: tuple[tuple[str, str], ...] = tuple(random.Random("crowd").sample(HOIS, len(HOIS)))
"""The classes, most frequent first in training; drawn by lot."""

ACTS_OF_SCENE = (3, 2, 3, 1)
"""How many acts scenes have, in turn: 2.25 on average."""
_TAIL = (5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 1, 1, 1)
_GROWTH = 1.135


@cache
def crowd_vocabulary() -> Vocabulary:
    """The crowd's 46 interactions. It has no no_interaction."""
    return Vocabulary.from_actions([(name, verb, PARTICIPLES[verb]) for verb, name in HOIS], "the crowd")


def training_weights() -> list[float]:
    """How many training pairs each class of ``RANKED`` has among 2,000 images.

    Half of them are annotated: 1 to 5 in the last third of the classes. The others grow by 13.5 % a rank.
    """
    head = len(RANKED) - len(_TAIL)
    return [12 * _GROWTH**rank for rank in reversed(range(head))] + [2.0 * count for count in _TAIL]


def quotas(total: int, weights: list[float]) -> list[int]:
    """``total`` pairs dealt to classes in proportion to weights; what rounding leaves goes to the largest remainders."""
    shares = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda rank: counts[rank] - shares[rank])
    for rank in by_remainder[: total - sum(counts)]:
        counts[rank] += 1
    return counts
