"""One scene of the crowd: an image, its exact boxes, and who does what with which thing."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from hoi_distill.stages.data.coco import OBJECT_INDEX
from hoi_distill.stages.data.crowd.classes import CONTACT, LINES
from hoi_distill.stages.data.crowd.layout import CANVAS, HAND, SIZE, Entity, Layout, Role, lay_out, start_of
from hoi_distill.stages.data.crowd.plan import ImagePlan
from hoi_distill.stages.data.pico.acts import Group, crouch, stand, walk
from hoi_distill.stages.data.pico.backdrop import paint_backdrop, paint_occluder
from hoi_distill.stages.data.pico.figure import ARM, Pose, bend
from hoi_distill.stages.data.pico.render import SUPER, Placed, clipped, finish
from hoi_distill.stages.data.pico.sketch import FRONT, Color, Point, shade

RENDERER_VERSION = 1
"""Raised with every change that moves a pixel or a label; part of a written world's identity."""

_HIDDEN_CONTACT, _HIDDEN_LINE = 0.35, 0.25  # shares of acts before which something stands
_ROPE: Color = (52, 30, 22)
_WATER: Color = (96, 196, 255)
_TUBE: Color = (38, 38, 46)
_GAP = 6  # canvas pixels between a line and the box of its target
_ARM = 0.355  # of a person's height, stretched
PARTS = ("shoulder", "head", "hip", "near_hand", "far_hand", "near_foot", "far_foot")
"""Of a body, in the order in which they are told."""


@dataclass(frozen=True)
class Relation:
    """An act as it was drawn.

    Attributes:
        verb: Its name.
        name: The object's class.
        annotated: Whether the annotations tell of it.
        human: Row of the person who does it.
        object: Row of what it is done with.
        other: (person, object) rows of the candidate that it is not done by, or with.
        seen: Where what shows the act begins and ends, image pixels: shoulder and hand, eye and end of the telescope, hand and
            end of the line, hip and foot.
    """

    verb: str
    name: str
    annotated: bool
    human: int
    object: int
    other: tuple[int, int]
    seen: tuple[Point, Point]


@dataclass(frozen=True)
class Body:
    """Where the parts of one person are, image pixels, whatever they do.

    Attributes:
        parts: float32 ``[7, 2]``, x and y of :data:`PARTS`. Hidden ones count.
        tube: Where a telescope begins and ends, float32 ``[2, 2]``; None of most people.
        height: Pixels of the person standing.
    """

    parts: np.ndarray
    tube: np.ndarray | None
    height: float


@dataclass(frozen=True)
class CrowdScene:
    """A rendered scene.

    Attributes:
        image: uint8 ``[256, 256, 3]``, RGB.
        boxes: float32 ``[n, 4]``, xyxy pixels, zero-based half-open: the whole drawn extent (hidden parts too), clipped.
        objects: int16 ``[n]``, COCO-80 indices (person = 0); people come first.
        hidden: float32 ``[n]``, the share of each box that lies behind the boxes of what was drawn later.
        relations: Every act.
        postures: "standing", "walking" or "crouching", one a person.
        shirts: The colour of each person's shirt.
        bodies: Where each person's parts are.
    """

    image: np.ndarray
    boxes: np.ndarray
    objects: np.ndarray
    hidden: np.ndarray
    relations: tuple[Relation, ...]
    postures: tuple[str, ...]
    shirts: tuple[Color, ...]
    bodies: tuple[Body, ...]


def render_crowd(plan: ImagePlan) -> CrowdScene:
    """Draw a planned image; a pure function of the plan.

    A scene and its twin differ in the arm, telescope or line of one act alone.
    """
    layout = lay_out(plan.seed, plan.acts)
    if plan.swapped is not None:
        role = layout.roles[plan.swapped]
        role.first = not role.first
    rng = random.Random(f"crowd {plan.seed}")
    image = Image.new("RGB", (CANVAS, CANVAS))
    paint_backdrop(image, rng, plain=False, horizon=(0.26, 0.36))
    draw = ImageDraw.Draw(image)
    placed, groups = _drawn(plan.seed, layout)
    boxes = [item.box(0) for item in placed]
    seen = [_seen(role, layout.entities) for role in layout.roles]
    for k, role in enumerate(layout.roles):
        if role.act.verb in LINES:
            seen[k] = seen[k][0], _before(*seen[k], boxes[role.true[1]])
            _paint_line(draw, role.act.verb, *seen[k])
    order = sorted(range(len(placed)), key=lambda k: placed[k].y)
    for k in order:
        item = placed[k]
        item.sketch.paint(draw, item.x, item.y, item.size, item.mirror)
    covers = _paint_covers(draw, rng, layout)
    if rng.random() < 0.15:
        paint_occluder(image, rng)
    corners = clipped(np.array(boxes, np.float32), SIZE)
    relations = [
        Relation(
            role.act.verb, role.act.name, role.act.annotated, *role.true, role.other,
            (_in_image(start), _in_image(end)),
        )
        for role, (start, end) in zip(layout.roles, seen, strict=True)
    ]  # fmt: skip
    people = [entity for entity in layout.entities if entity.name == "person"]
    doing = {role.true[0]: k for k, role in enumerate(layout.roles)}
    return CrowdScene(
        image=finish(image, rng),
        boxes=corners,
        objects=np.array([OBJECT_INDEX[entity.name] for entity in layout.entities], np.int16),
        hidden=_hidden(corners, order, covers),
        relations=tuple(relations),
        postures=tuple(person.posture for person in people),
        shirts=tuple(group.look.shirt for group in groups),
        bodies=tuple(
            _body(person, group.pose, relations[doing[k]] if k in doing else None)
            for k, (person, group) in enumerate(zip(people, groups, strict=True))
        ),
    )


def _in_image(point: Point) -> Point:
    return point[0] / SUPER, point[1] / SUPER


def _seen(role: Role, entities: Sequence[Entity]) -> tuple[Point, Point]:
    """Where what shows the act begins and ends, canvas pixels; of a line, its target's middle is the end."""
    person, target = (entities[k] for k in role.true)
    if role.act.verb == CONTACT:
        foot = _foot(person, target)
        return (person.x, person.y - 0.49 * person.size), _to_canvas(person, foot)
    start, aim = start_of(role.act.verb, person, person.mirror), target.center()
    if role.act.verb in LINES:
        return start, aim
    length = _ARM * person.size / math.dist(start, aim)
    return start, (start[0] + length * (aim[0] - start[0]), start[1] + length * (aim[1] - start[1]))


def _before(start: Point, end: Point, box: Sequence[float]) -> Point:
    """Where a line meets the box of its target, which it stays out of: the pixels of the box tell of no line.

    Args:
        start: Of the line, canvas pixels.
        end: A point of the target, canvas pixels.
        box: The target's, xyxy, image pixels.
    """
    x1, y1, x2, y2 = (SUPER * side for side in box)
    shares = []
    for a, b, low, high in ((start[0], end[0], x1 - _GAP, x2 + _GAP), (start[1], end[1], y1 - _GAP, y2 + _GAP)):
        border = low if a < b else high
        shares.append((border - a) / (b - a) if a != b else 0.0)
    share = min(1.0, max(0.0, *shares))
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _to_canvas(person: Entity, point: Point) -> Point:
    side = -1 if person.mirror else 1
    return person.x + side * point[0] * person.size, person.y - point[1] * person.size


def _from_canvas(person: Entity, point: Point) -> Point:
    side = -1 if person.mirror else 1
    return side * (point[0] - person.x) / person.size, (person.y - point[1]) / person.size


def _foot(person: Entity, thing: Entity) -> Point:
    """Where a foot rests on a thing, in the person's frame: on its near half, no higher than a foot reaches."""
    x1, y1, x2, _ = thing.box()
    near = x1 + 0.3 * (x2 - x1) if person.x < thing.x else x2 - 0.3 * (x2 - x1)
    x, y = _from_canvas(person, (near, y1))
    return x, min(0.32, y + 0.03)


def _drawn(seed: int, layout: Layout) -> tuple[list[Placed], list[Group]]:
    """Every entity's drawing in its place, and the people as they were composed."""
    doing = {role.true[0]: role for role in layout.roles}
    placed, groups = [], []
    for k, entity in enumerate(layout.entities):
        sketch = entity.sketch
        if sketch is None:
            group = Group(random.Random(f"crowd person {seed} {k}"))
            _pose(group, entity, doing.get(k), layout)
            groups.append(group)
            sketch = group.finish()
        placed.append(Placed(sketch, [], entity.size, entity.mirror, entity.x, entity.y))
    return placed, groups


def _body(person: Entity, pose: Pose, relation: Relation | None) -> Body:
    """The parts of a body as it was drawn: a hand that nothing was asked of hangs, one that reaches too far is pulled in."""
    x, y = pose.shoulder
    hands = [
        bend((x, y - 0.035), hand or (x + 0.02, y - 0.345), ARM, pose.elbow)[1]
        for hand in (pose.near_hand, pose.far_hand)
    ]
    points = (pose.shoulder, pose.head(), pose.hip, *hands, pose.near_foot, pose.far_foot)
    parts = np.array([_in_image(_to_canvas(person, point)) for point in points], np.float32)
    watches = relation is not None and relation.verb == "watch"
    tube = np.array(relation.seen, np.float32) if relation is not None and watches else None
    return Body(parts, tube, person.size / SUPER)


def _pose(group: Group, person: Entity, role: Role | None, layout: Layout) -> None:
    """Let a person stand as their posture is and do what their role is; others wave or rest as it comes."""
    {"standing": stand, "walking": walk, "crouching": crouch}[person.posture](group)
    gesture = group.rng.random()  # drawn by everybody, so that a role changes nothing else
    candidate = any(person is layout.entities[who] for role in layout.roles for who, _ in role.candidates)
    if role is None:
        if not candidate and gesture < 0.3:
            angle = math.tau * gesture / 0.3
            group.reach(_ARM * math.cos(angle) * 0.8, _ARM * math.sin(angle) * 0.8)
        elif person.posture == "standing" and gesture > 0.8:
            group.pose.near_hand = group.pose.far_hand = (0.07, 0.53)
        return
    if role.act.verb == CONTACT:
        thing = layout.entities[role.true[1]]
        group.pose = Pose(near_foot=_foot(person, thing), far_foot=(-0.06, 0.03))
        return
    if role.act.verb in LINES:
        group.pose.near_hand = HAND
        return
    start, end = _seen(role, layout.entities)
    dx, dy = (end[0] - start[0]) / person.size, (start[1] - end[1]) / person.size
    dx = -dx if person.mirror else dx
    if role.act.verb == "watch":
        hx, hy = group.pose.head()
        group.prop().line([(hx + 0.25 * dx, hy + 0.25 * dy), (hx + dx, hy + dy)], 0.05, _TUBE, FRONT)
        group.prop().disc(hx + dx, hy + dy, 0.042, shade(_TUBE, 2.4), FRONT)
        group.pose.near_hand = (hx + 0.5 * dx, hy + 0.5 * dy)
        return
    group.reach(dx, dy + 0.035)
    if role.act.verb == "reach_for":
        group.reach(dx + 0.1 * dy, dy - 0.1 * dx + 0.035, far=True)


def _paint_line(draw: ImageDraw.ImageDraw, verb: str, start: Point, end: Point) -> None:
    """A rope or drops of water, behind everybody."""
    if verb == "pull":
        draw.line([start, end], fill=_ROPE, width=4)
        return
    drops = max(2, round(math.dist(start, end) / 13))
    for k in range(drops + 1):
        share = k / drops
        x, y = start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_WATER)


def _paint_covers(draw: ImageDraw.ImageDraw, rng: random.Random, layout: Layout) -> list[tuple[float, ...]]:
    """Bushes and boxes before some contacts and lines, of both candidates alike; their boxes, image pixels."""
    covers: list[tuple[float, ...]] = []
    for role in layout.roles:
        chance = {CONTACT: _HIDDEN_CONTACT}.get(role.act.verb, _HIDDEN_LINE if role.act.verb in LINES else 0.0)
        if rng.random() >= chance:
            continue
        share, half = rng.uniform(0.35, 0.65), rng.uniform(9, 15)
        leaf = shade(rng.choice(((44, 98, 52), (70, 120, 60), (150, 110, 70))), rng.uniform(0.85, 1.15))
        points = []
        for who, what in role.candidates:
            person, target = layout.entities[who], layout.entities[what]
            if role.act.verb == CONTACT:
                points.append(_to_canvas(person, _foot(person, target)))
            else:
                (ax, ay), (bx, by) = start_of(role.act.verb, person, person.mirror), target.center()
                points.append((ax + share * (bx - ax), ay + share * (by - ay)))
        for x, y in points:
            for dx in (-0.7, 0.0, 0.7):
                draw.ellipse((x + dx * half - half, y - half, x + dx * half + half, y + half), fill=leaf)
            covers.append(((x - 1.7 * half) / SUPER, (y - half) / SUPER, (x + 1.7 * half) / SUPER, (y + half) / SUPER))
    return covers


def _hidden(boxes: np.ndarray, order: Sequence[int], covers: Sequence[tuple[float, ...]]) -> np.ndarray:
    """The share of an 8 x 8 grid of points in each box that lies in a later box, or in a cover."""
    rank = {k: place for place, k in enumerate(order)}
    steps = (np.arange(8) + 0.5) / 8
    shares = np.zeros(len(boxes), np.float32)
    for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        later = [boxes[j].tolist() for j in range(len(boxes)) if rank[j] > rank[k]]
        xs, ys = np.meshgrid(x1 + steps * (x2 - x1), y1 + steps * (y2 - y1))
        behind = np.zeros(xs.shape, bool)
        for a, b, c, d in (*later, *covers):
            behind |= (xs > a) & (xs < c) & (ys > b) & (ys < d)
        shares[k] = behind.mean()
    return shares
