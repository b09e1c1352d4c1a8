"""Classes by the number of their annotated training pairs: 0, 1-5, 6-20, more.

A mean over rare classes mixes classes that training never saw with classes that it saw nine times. These groups keep them
apart. A group's mean is over its classes that have test pairs; how many these are stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PAIR_GROUPS: Mapping[str, tuple[int, int | None]] = {
    "pairs_0": (0, 0),
    "pairs_1_5": (1, 5),
    "pairs_6_20": (6, 20),
    "pairs_21": (21, None),
}
"""The fewest and the most training pairs of each group's classes, both included. None: no limit."""
PAIR_GROUP_LABELS: Mapping[str, str] = {
    "pairs_0": "0 pairs",
    "pairs_1_5": "1–5",
    "pairs_6_20": "6–20",
    "pairs_21": "more",
}
"""The groups' titles."""


def pair_groups(training: np.ndarray | None) -> dict[str, np.ndarray]:
    """The classes of each group.

    Args:
        training: ``int64 [C]`` training pairs of each class; None where they are not known.

    Returns:
        ``bool [C]`` by group. ``{}`` where no class has a training pair: annotations that training did not see tell no
        classes apart.
    """
    if training is None or not np.any(training):
        return {}
    return {
        name: (training >= least) & (training <= (np.inf if most is None else most))
        for name, (least, most) in PAIR_GROUPS.items()
    }


def training_pairs_of(per_class: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """``int64 [C]`` training pairs as the ``per_class`` of an ``evaluation.json`` has them; None where it has none."""
    counts = [row.get("training_pairs") for row in per_class]
    return None if None in counts or not counts else np.array(counts, np.int64)


def means_by_pairs(
    per_class: Sequence[Mapping[str, Any]], averaged: np.ndarray | None = None
) -> dict[str, dict[str, Any]]:
    """Mean average precision of each group, from the ``per_class`` of an ``evaluation.json`` of any age.

    Args:
        per_class: one record a class, with ``training_pairs`` and ``ap`` (percent, None without test pairs).
        averaged: ``bool [C]`` classes that enter means; None: all.

    Returns:
        ``{group: {"classes": number, "map": percent or None}}``; ``{}`` as in :func:`pair_groups`.
    """
    ap = np.array([np.nan if row["ap"] is None else row["ap"] for row in per_class])
    counted = ~np.isnan(ap) & (True if averaged is None else averaged)
    means = {}
    for name, chosen in pair_groups(training_pairs_of(per_class)).items():
        inside = ap[chosen & counted]
        means[name] = {"classes": len(inside), "map": round(float(inside.mean()), 6) if len(inside) else None}
    return means


def by_pairs_line(means: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for people: ``0 pairs 74.10 (3 classes)  1–5 80.22 (17)``."""
    told = [(PAIR_GROUP_LABELS[name], group) for name, group in means.items() if group["map"] is not None]
    return "  ".join(
        f"{label} {group['map']:.2f} ({group['classes']}{'' if place else ' classes'})"
        for place, (label, group) in enumerate(told)
    )
