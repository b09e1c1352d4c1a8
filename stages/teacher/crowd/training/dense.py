"""What each cell of a scene of the crowd shows: things, ropes, water, and the bodies of people. No interaction.

No label says who does something, or with what: a stretched arm is a hand far from its shoulder, a rope is a dark line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoi_distill.stages.data.coco import OBJECT_INDEX
from hoi_distill.stages.data.crowd.classes import LINES, THINGS
from hoi_distill.stages.data.crowd.layout import SIZE
from hoi_distill.stages.data.crowd.render import PARTS, Body, CrowdScene
from hoi_distill.stages.data.crowd.texts import COLORS, color_name

CELL = 16
"""Pixels of a cell's side."""
GRID = SIZE // CELL
SEEN: tuple[str, ...] = ("person", *THINGS, "telescope", "rope", "water")
"""What a cell may show, several at once."""
POSTURES = ("standing", "walking", "crouching")
VECTORS = (*PARTS[1:], "telescope", "cell")
"""Of the body in a cell, x and y each, in its height: its parts and the cell's middle as seen from the shoulder, and the end of
its telescope as seen from the eye (0 without one)."""
_LABELS = tuple(OBJECT_INDEX[name] for name in ("person", *THINGS))
_STUFF = {"pull": "rope", "spray": "water"}
_LIMBS = ((0, 1), (0, 2), (0, 3), (0, 4), (2, 5), (2, 6))  # pairs of PARTS
_COVERED = 0.3  # of a cell, or of a thing that is smaller
_NEAR = 10.0  # pixels between a limb and the middle of a cell that is the body's


@dataclass(frozen=True)
class DenseLabels:
    """Labels of the cells of one scene, or of many (a leading axis N).

    Attributes:
        seen: bool ``[16, 16, 12]``, which of :data:`SEEN` a cell shows.
        line: float16 ``[16, 16, 2]``, cosine and sine of twice the angle of its rope or water (y down); 0 without one.
        body: float16 ``[16, 16, 16]``, x and y of each of :data:`VECTORS`; 0 where nobody is.
        posture: int8 ``[16, 16]``, of the body in front, into :data:`POSTURES`; -1 where nobody is.
        shirt: int8 ``[16, 16]``, into :data:`~hoi_distill.stages.data.crowd.texts.COLORS`; -1 where nobody is.
    """

    seen: np.ndarray
    line: np.ndarray
    body: np.ndarray
    posture: np.ndarray
    shirt: np.ndarray


def dense_labels(scene: CrowdScene) -> DenseLabels:
    """The labels of one scene."""
    middle = (np.arange(GRID) + 0.5) * CELL
    middles = np.stack(np.meshgrid(middle, middle), -1).astype(np.float32)
    seen = np.zeros((GRID, GRID, len(SEEN)), bool)
    for box, label in zip(scene.boxes, scene.objects.tolist(), strict=True):
        seen[..., _LABELS.index(label)] |= _covered(box, middles)
    line = np.zeros((GRID, GRID, 2), np.float16)
    for relation in scene.relations:
        if relation.verb in LINES:
            (x1, y1), (x2, y2) = relation.seen
            crossed = _distance(middles, (x1, y1), (x2, y2)) < CELL / 2
            angle = 2 * np.arctan2(y2 - y1, x2 - x1)
            line[crossed] = np.cos(angle), np.sin(angle)
            seen[..., SEEN.index(_STUFF[relation.verb])] |= crossed
    body = np.zeros((GRID, GRID, 2 * len(VECTORS)), np.float16)
    posture, shirt = np.full((GRID, GRID), -1, np.int8), np.full((GRID, GRID), -1, np.int8)
    for k in np.argsort([one.parts[:, 1].max() for one in scene.bodies]).tolist():  # who is in front comes last
        one = scene.bodies[k]
        on = _on_body(one, middles)
        body[on] = _vectors(one, middles[on])
        posture[on] = POSTURES.index(scene.postures[k])
        shirt[on] = COLORS.index(color_name(scene.shirts[k]))
        if one.tube is not None:
            seen[..., SEEN.index("telescope")] |= _distance(middles, *one.tube) < CELL / 2
    return DenseLabels(seen, line, body, posture, shirt)


def mirrored(labels: DenseLabels) -> DenseLabels:
    """The labels of the mirrored scenes."""
    flipped = DenseLabels(*(array[..., ::-1, :].copy() for array in (labels.seen, labels.line, labels.body)),
                          *(array[..., ::-1].copy() for array in (labels.posture, labels.shirt)))  # fmt: skip
    flipped.line[..., 1] *= -1
    flipped.body[..., ::2] *= -1
    return flipped


def _covered(box: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """bool ``[16, 16]``: where a box covers enough of a cell, or a cell enough of the box."""
    low, high = np.maximum(middles - CELL / 2, box[:2]), np.minimum(middles + CELL / 2, box[2:])
    area = np.clip(high - low, 0, None).prod(-1)
    return area >= _COVERED * min(CELL**2, float((box[2:] - box[:2]).prod()))


def _on_body(body: Body, middles: np.ndarray) -> np.ndarray:
    limbs = [_distance(middles, body.parts[a], body.parts[b]) for a, b in _LIMBS]
    return np.minimum.reduce(limbs) < _NEAR


def _vectors(body: Body, middles: np.ndarray) -> np.ndarray:
    """float32 ``[n, 16]`` of the cells with these middles, float ``[n, 2]``."""
    shoulder = body.parts[0]
    tube = np.zeros(2, np.float32) if body.tube is None else body.tube[1] - body.tube[0]
    fixed = np.concatenate([(body.parts[1:] - shoulder).reshape(-1), tube])
    rows = np.concatenate([np.tile(fixed, (len(middles), 1)), middles - shoulder], 1)
    return rows / body.height


def _distance(points: np.ndarray, start: npt.ArrayLike, end: npt.ArrayLike) -> np.ndarray:
    """From each point, float ``[..., 2]``, to a segment."""
    origin = np.asarray(start, np.float32)
    along = np.asarray(end, np.float32) - origin
    share = ((points - origin) @ along / max(float(along @ along), 1e-6)).clip(0, 1)
    return np.linalg.norm(points - origin - share[..., None] * along, axis=-1)
