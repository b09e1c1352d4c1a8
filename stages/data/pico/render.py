"""One scene of the pico world: an image, its exact boxes and everything that happens in it, all from one seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from hoi_distill.stages.data.coco import OBJECT_INDEX
from hoi_distill.stages.data.pico.acts import HAND_ACTS, SECOND, STANCES, Group, idle, stand, walk
from hoi_distill.stages.data.pico.backdrop import paint_backdrop, paint_occluder
from hoi_distill.stages.data.pico.classes import CO_LABELS, PRIMARY, weights
from hoi_distill.stages.data.pico.objects import DRAWINGS
from hoi_distill.stages.data.pico.sketch import Pen, Place, Sketch
from hoi_distill.stages.data.prompts import NO_INTERACTION

RENDERER_VERSION = 1
"""Raised with every change that moves a pixel or a label; part of a written world's identity."""

SIZE = 128
SUPER = 2
"""A canvas is drawn this many times larger than its image, then box-filtered."""
_CANVAS = SIZE * SUPER
_MIN_SIDE = 3.0  # pixels; no entity's box is narrower than this

Fact = tuple[str, str]


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: uint8 ``[128, 128, 3]``, RGB.
        boxes: float32 ``[n, 4]``, xyxy pixels, zero-based half-open: the whole drawn extent (hidden parts too), clipped.
        objects: int16 ``[n]``, COCO-80 indices (person = 0).
        pairs: (human row, object row, verbs), primary verb first; ("no_interaction",): an idle person and an unused object.
        facts: (verb, object) of all primary interactions and no_interaction pairs, without repetition.
        co_facts: (verb, object) of what also holds because of a fact, without the facts.
    """

    image: np.ndarray
    boxes: np.ndarray
    objects: np.ndarray
    pairs: list[tuple[int, int, tuple[str, ...]]]
    facts: tuple[Fact, ...]
    co_facts: tuple[Fact, ...]


@dataclass
class Placed:
    """A sketch with its place on the canvas: origin (x, ground y), canvas pixels per unit, mirrored or not."""

    sketch: Sketch
    actions: list[tuple[int, str]]
    size: float
    mirror: bool
    x: float = 0.0
    y: float = 0.0

    def span(self) -> tuple[float, float]:
        """Left and right end relative to the origin, canvas pixels."""
        x1, _, x2, _ = self.sketch.span()
        return (-x2 * self.size, -x1 * self.size) if self.mirror else (x1 * self.size, x2 * self.size)

    def box(self, row: int) -> tuple[float, float, float, float]:
        """xyxy in image pixels, not clipped."""
        e = self.sketch.extents[row]
        a, b = (-e.x2, -e.x1) if self.mirror else (e.x1, e.x2)
        s, x, y = self.size, self.x, self.y
        return (x + s * a) / SUPER, (y - s * e.y2) / SUPER, (x + s * b) / SUPER, (y - s * e.y1) / SUPER


def render_scene(seed: int, *, temper: float = 1.0, people: tuple[int, int] = (1, 3), plain: bool = False) -> Scene:
    """Render one scene; a pure function of its arguments.

    Args:
        seed: Any whole number.
        temper: Exponent on the long-tailed frequencies of interactions, 1 as they are, 0 flat.
        people: Smallest and largest number of people.
        plain: For a curriculum: one person, one interaction, nothing else in sight.
    """
    rng = random.Random(seed)
    frequency = weights(temper)
    if plain:
        groups = [_person(rng, frequency, busy=rng.random() < 0.9, second=False)]
    else:
        low, high = people
        count = rng.choices(range(low, high + 1), [0.62**k for k in range(high - low + 1)])[0]
        groups = [_person(rng, frequency, busy=rng.random() < 0.78, second=rng.random() < 0.45) for _ in range(count)]
    idle_present = any(not group.actions for group in groups)
    if plain:
        frees = int(idle_present)
    else:
        frees = rng.choices((1, 2), (0.8, 0.2))[0] if idle_present else rng.choices((0, 1), (0.7, 0.3))[0]
    loose = [_free_object(rng, frequency) for _ in range(frees)]
    placed = _place(rng, groups, loose)

    image = Image.new("RGB", (_CANVAS, _CANVAS))
    paint_backdrop(image, rng, plain=plain)
    draw = ImageDraw.Draw(image)
    for item in sorted(placed, key=lambda item: item.y):
        item.sketch.paint(draw, item.x, item.y, item.size, item.mirror)
    if not plain and rng.random() < 0.22:
        paint_occluder(image, rng)
    return _annotate(finish(image, rng), placed[: len(groups)], placed[len(groups) :])


def _person(rng: random.Random, frequency: list[float], *, busy: bool, second: bool) -> Group:
    group = Group(rng)
    if not busy:
        idle(group)
        return group
    fact = rng.choices(PRIMARY, frequency)[0]
    if fact in HAND_ACTS:
        (walk if rng.random() < 0.4 else stand)(group)
    group.act(*fact)
    if second and fact in STANCES and fact in SECOND:
        options = SECOND[fact]
        group.act(*rng.choices(options, [frequency[PRIMARY.index(option)] for option in options])[0])
    return group


def _free_object(rng: random.Random, frequency: list[float]) -> Sketch:
    """An object that nobody uses, on the ground or, when small, on a stool half of the time."""
    name = rng.choices([name for _, name in PRIMARY], [math.sqrt(w) for w in frequency])[0]
    sketch = Sketch()
    small = name in {"book", "cell_phone", "cup"}
    y, form, turn = 0.0, {}, 0.0
    if small:
        y = {"book": 0.12, "cell_phone": 0.1, "cup": 0.09}[name]
        if rng.random() < 0.6:
            top = rng.uniform(0.26, 0.34)
            stool = Pen(sketch, None)
            for x in (-0.12, 0.12):
                stool.line([(x, top - 0.02), (1.25 * x, 0.02)], 0.035, (96, 74, 56))
            stool.line([(-0.16, top - 0.03), (0.16, top - 0.03)], 0.055, (132, 100, 72))
            y += top
        form = {"opened": rng.random() < 0.4} if name == "book" else {}
    elif name == "umbrella":
        opened = rng.random() < 0.5
        form, turn = {"opened": opened}, 75.0 if opened else 90.0
        y = 0.3 if opened else 0.05
    elif name in {"kite", "sports_ball"}:
        y, turn = (0.16, 80.0) if name == "kite" else (0.1, 0.0)
    place = Place(0, y, (1.25 if small else 1.0) * rng.uniform(0.94, 1.06), turn)
    pen = Pen(sketch, sketch.entity(name), place)
    DRAWINGS[name](pen, rng, **form)
    return sketch


def _place(rng: random.Random, groups: list[Group], loose: list[Sketch]) -> list[Placed]:
    """Side by side in random order, smaller when it gets crowded; people first in the returned list."""
    base = _CANVAS * {1: rng.uniform(0.44, 0.66), 2: rng.uniform(0.4, 0.54)}.get(len(groups), rng.uniform(0.36, 0.46))
    placed = [Placed(g.finish(), g.actions, base * rng.uniform(0.92, 1.08), rng.random() < 0.5) for g in groups]
    placed += [Placed(s, [], base * rng.uniform(0.9, 1.05), rng.random() < 0.5) for s in loose]
    widths = [right - left for left, right in (item.span() for item in placed)]
    room = 0.97 * _CANVAS
    shrink = min(1.0, max(0.75, room * 1.06 / sum(widths)))
    for item in placed:
        _, y1, _, y2 = item.sketch.span()
        item.size *= shrink
        item.size = min(item.size, 0.96 * _CANVAS / (y2 - min(y1, 0.0)))
    order = rng.sample(range(len(placed)), len(placed))
    slack = room - sum(widths[i] for i in order) * shrink
    cuts = sorted(rng.random() for _ in order)
    gaps = [b - a for a, b in pairwise([0.0, *cuts])]
    x = 0.015 * _CANVAS
    for i, gap in zip(order, gaps, strict=True):
        item = placed[i]
        left, right = item.span()
        x += gap * slack
        item.x = min(max(x - left, -left - 0.04 * _CANVAS), _CANVAS * 1.04 - right)
        x += right - left
        top = item.sketch.span()[3] * item.size
        lowest = _CANVAS * rng.uniform(0.80, 0.97)
        item.y = min(max(lowest, top + 2.0), 0.985 * _CANVAS)
    return placed


def finish(image: Image.Image, rng: random.Random) -> np.ndarray:
    """Reduce a square canvas, then a little noise and another exposure. Gives uint8 ``[S, S, 3]``."""
    pixels = np.asarray(image.reduce(SUPER)).astype(np.int16)
    tile, size = _noise(), len(pixels)
    dy, dx = rng.randrange(tile.shape[0] - size), rng.randrange(tile.shape[1] - size)
    strength = rng.randint(3, 10)
    pixels += (tile[dy : dy + size, dx : dx + size] * strength) >> 5
    pixels += rng.randint(-12, 12)
    return np.clip(pixels, 0, 255).astype(np.uint8)


@cache
def _noise() -> np.ndarray:
    """int16 [400, 400, 3], standard deviation 20: cut, not drawn anew, for every scene."""
    return np.random.default_rng(0).normal(0, 20, (400, 400, 3)).round().astype(np.int16)


def _annotate(image: np.ndarray, people: list[Placed], loose: list[Placed]) -> Scene:
    names: list[str] = []
    boxes: list[tuple[float, float, float, float]] = []
    pairs: list[tuple[int, int, tuple[str, ...]]] = []
    idle_rows: list[int] = []
    for item in people:
        human = len(names)
        for row, extent in enumerate(item.sketch.extents):
            names.append(extent.name)
            boxes.append(item.box(row))
        for row, verb in item.actions:
            pairs.append((human, human + row, (verb, *CO_LABELS.get((verb, names[human + row]), ()))))
        if not item.actions:
            idle_rows.append(human)
    for item in loose:
        pairs += [(human, len(names), (NO_INTERACTION,)) for human in idle_rows]
        names.append(item.sketch.extents[0].name)
        boxes.append(item.box(0))
    facts = tuple(dict.fromkeys((verbs[0], names[o]) for _, o, verbs in pairs))
    also = dict.fromkeys((verb, names[o]) for _, o, verbs in pairs for verb in verbs[1:])
    return Scene(
        image=image,
        boxes=clipped(np.array(boxes, np.float32), SIZE),
        objects=np.array([OBJECT_INDEX[name] for name in names], np.int16),
        pairs=pairs,
        facts=facts,
        co_facts=tuple(fact for fact in also if fact not in facts),
    )


def clipped(boxes: np.ndarray, size: int) -> np.ndarray:
    """Boxes float32 ``[n, 4]``, xyxy, clipped to a square image; widened where needed so that no side is under 3 pixels."""
    low = np.clip(boxes[:, :2], 0, size - _MIN_SIDE)
    high = np.clip(boxes[:, 2:], 0, size)
    return np.concatenate([low, np.maximum(high, low + np.float32(_MIN_SIDE))], axis=1)
