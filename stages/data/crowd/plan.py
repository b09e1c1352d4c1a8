"""What each image of a split shows, before anything is drawn: acts dealt by quota, half of them annotated, twins."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from hoi_distill.stages.data.crowd.classes import ACTS_OF_SCENE, CONTACT, RANKED, quotas, training_weights

TWIN_SHARE = 0.3
"""The share of the test images that are the twin of another one."""
_SEED_STRIDE = 10_000_000
_SPLIT_START = {"train": 0, "test": 5_000_000}


@dataclass(frozen=True)
class Act:
    """One thing that somebody does.

    Attributes:
        verb: Its name.
        name: The object's class.
        annotated: Whether the annotations tell of it.
    """

    verb: str
    name: str
    annotated: bool


@dataclass(frozen=True)
class ImagePlan:
    """What one image shows.

    Attributes:
        seed: The renderer's.
        acts: At least one; three at most.
        swapped: The act that is done with the other of its two targets, where the image is a twin; else None. All else is
            as without.
    """

    seed: int
    acts: tuple[Act, ...]
    swapped: int | None = None

    def twin(self) -> ImagePlan | None:
        """The same with another target of the first act that has two; None if all acts are contacts, which have one."""
        act = next((k for k, act in enumerate(self.acts) if act.verb != CONTACT), None)
        return None if act is None else replace(self, swapped=act)


def twin_count(images: int) -> int:
    """How many of so many test images are twins."""
    return int(TWIN_SHARE * images)


def plan_split(world: int, split: str, images: int) -> list[ImagePlan]:
    """The plans of a split's images in their order; a function of the arguments.

    Training: classes have a long tail, and every second pair of a class is annotated, the first one included. Test: all
    classes are equally frequent, every pair is annotated, and the last images are the twins of the first ones that have one.
    """
    scenes = images if split == "train" else images - twin_count(images)
    rng = random.Random(f"crowd {world} {split} {images}")
    sizes = [ACTS_OF_SCENE[i % len(ACTS_OF_SCENE)] for i in range(scenes)]
    rng.shuffle(sizes)
    weights = training_weights() if split == "train" else [1.0] * len(RANKED)
    dealt = [rank for rank, count in enumerate(quotas(sum(sizes), weights)) for _ in range(count)]
    rng.shuffle(dealt)
    seen: Counter[int] = Counter()
    plans = []
    for index, size in enumerate(sizes):
        acts = []
        for rank in (dealt.pop() for _ in range(size)):
            verb, name = RANKED[rank]
            acts.append(Act(verb, name, annotated=split == "test" or seen[rank] % 2 == 0))
            seen[rank] += 1
        plans.append(ImagePlan(world * _SEED_STRIDE + _SPLIT_START[split] + index, tuple(acts)))
    swapped = [twin for plan in plans if (twin := plan.twin()) is not None]
    return plans + swapped[: images - scenes]


def twins(plans: list[ImagePlan]) -> list[tuple[int, int]]:
    """The rows of each scene and of its twin."""
    row = {plan.seed: i for i, plan in enumerate(plans) if plan.swapped is None}
    return [(row[plan.seed], i) for i, plan in enumerate(plans) if plan.swapped is not None]
