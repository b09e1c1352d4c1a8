"""What can happen in the pico world: a subset of HICO-DET's interactions under HICO-DET's own names."""

from __future__ import annotations

import math

from hoi_distill.stages.data.prompts import NO_INTERACTION

_VERBS_OF_OBJECT = {  # HICO-DET's order of objects, and of verbs within an object
    "bicycle": "carry hold jump repair ride",
    "chair": "carry hold sit_on stand_on",
    "dog": "feed hold pet walk chase",
    "horse": "feed jump pet ride walk",
    "bench": "lie_on sit_on",
    "book": "hold read",
    "cell_phone": "hold read talk_on text_on",
    "cup": "drink_with hold pour",
    "kite": "fly hold",
    "skateboard": "carry hold jump ride sit_on stand_on",
    "sports_ball": "dribble hold kick throw",
    "umbrella": "carry hold open stand_under",
}

OBJECTS: tuple[str, ...] = tuple(_VERBS_OF_OBJECT)
HOIS: tuple[tuple[str, str], ...] = tuple(
    (verb, name) for name, verbs in _VERBS_OF_OBJECT.items() for verb in (*verbs.split(), NO_INTERACTION)
)
"""All (verb, object) classes, no_interaction included, in the order of HICO-DET's official list."""

CO_LABELS: dict[tuple[str, str], tuple[str, ...]] = {
    ("jump", "bicycle"): ("ride",),
    ("jump", "horse"): ("ride",),
    ("read", "book"): ("hold",),
    ("read", "cell_phone"): ("hold",),
    ("talk_on", "cell_phone"): ("hold",),
    ("text_on", "cell_phone"): ("hold",),
    ("drink_with", "cup"): ("hold",),
    ("pour", "cup"): ("hold",),
    ("hold", "umbrella"): ("stand_under",),
    ("open", "umbrella"): ("hold",),
    ("ride", "skateboard"): ("stand_on",),
}
"""Verbs that hold of the same pair whenever the key does."""

PRIMARY: tuple[tuple[str, str], ...] = (
    ("ride", "bicycle"), ("sit_on", "chair"), ("hold", "cup"), ("talk_on", "cell_phone"), ("walk", "dog"),
    ("ride", "horse"), ("hold", "umbrella"), ("kick", "sports_ball"), ("read", "book"), ("ride", "skateboard"),
    ("sit_on", "bench"), ("drink_with", "cup"), ("fly", "kite"), ("hold", "sports_ball"),
    ("text_on", "cell_phone"), ("hold", "bicycle"), ("hold", "book"), ("pet", "dog"), ("carry", "skateboard"),
    ("feed", "horse"), ("hold", "cell_phone"), ("stand_on", "chair"), ("carry", "umbrella"),
    ("jump", "skateboard"), ("throw", "sports_ball"), ("walk", "horse"), ("hold", "dog"), ("lie_on", "bench"),
    ("read", "cell_phone"), ("hold", "kite"), ("hold", "chair"), ("carry", "bicycle"),
    ("dribble", "sports_ball"), ("pour", "cup"), ("feed", "dog"), ("jump", "horse"), ("hold", "skateboard"),
    ("repair", "bicycle"), ("open", "umbrella"), ("chase", "dog"), ("carry", "chair"), ("pet", "horse"),
    ("sit_on", "skateboard"), ("jump", "bicycle"),
)  # fmt: skip
"""The interactions that are drawn on purpose, most frequent first; rank = position."""

TAIL_DECAY = 0.105


def weights(temper: float) -> list[float]:
    """Unnormalised frequency of each ``PRIMARY`` interaction: exp(-TAIL_DECAY * rank) ** temper; 0 is flat."""
    return [math.exp(-TAIL_DECAY * rank * temper) for rank in range(len(PRIMARY))]
