"""Six small pictures of persons who do things, and a list of detections full of ties, duplicates and empty roles.

Boxes lie on a grid of ten pixels, so that overlaps of exactly one half, equal boxes and boxes that meet nobody abound.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hoi_distill.stages.data.v_coco.loader import ACTION_ROLES, ACTIONS, ROLES, People

PICTURES = 6


def small_v_coco(tied: bool) -> tuple[People, list[dict[str, Any]]]:
    """Annotated persons and the official list of detections; `tied`: scores are quarters."""
    rng = np.random.default_rng(11)
    columns: dict[str, list[Any]] = {"image": [], "box": [], "annotated": [], "actions": [], "role_box": []}
    entries: list[dict[str, Any]] = []

    def box() -> np.ndarray:
        corner = 10 * rng.integers(0, 4, 2)
        return np.concatenate([corner, corner + 10 * rng.integers(1, 4, 2) - 1]).astype(float)  # inclusive

    def score() -> float | None:
        value = rng.integers(0, 4) / 4 if tied else rng.random()
        return float(value) if rng.random() < 0.9 else None

    for image in range(PICTURES):
        boxes = [box() for _ in range(6)]
        for person in boxes[: 1 + image % 3]:
            known = bool(rng.random() < 0.8)
            does = (rng.random(len(ACTIONS)) < 0.4) & known
            there = np.repeat(does, [len(roles) for roles in ACTION_ROLES.values()]) & (rng.random(len(ROLES)) < 0.6)
            things = np.array([boxes[rng.integers(6)] for _ in ROLES]) + [0, 0, 1, 1]
            for key, value in zip(
                columns, (image, person + [0, 0, 1, 1], known, does, things * there[:, None]), strict=True
            ):
                columns[key].append(value)
        for _ in range(8):
            person = boxes[rng.integers(3)] if rng.random() < 0.6 else box()
            entry: dict[str, Any] = {"image_id": image, "person_box": person.tolist()}
            entry |= {f"{action}_agent": score() for action in ACTIONS}
            for role in ROLES:
                kind = rng.random()
                thing = [0.0] * 4 if kind < 0.3 else [None] * 4 if kind < 0.4 else boxes[rng.integers(6)].tolist()
                entry[role] = [*thing, score()]
            entries.append(entry)
    types = {"image": np.int32, "box": np.float32, "annotated": bool, "actions": bool, "role_box": np.float32}
    arrays = {key: np.array(values, types[key]) for key, values in columns.items()}
    return People(image_id=np.arange(PICTURES).astype(str), **arrays), entries
