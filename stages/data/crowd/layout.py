"""Where everybody and everything of a scene stands, and between which of them an act is to be told.

Lengths are canvas pixels, y down. Every act has two candidates that look alike: two targets of one person, or two people
beside one thing. Which of them is true is tossed; all else of the layout is the same for both.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TypeVar

from hoi_distill.stages.data.crowd.classes import CONTACT, LINES, THINGS
from hoi_distill.stages.data.crowd.plan import Act
from hoi_distill.stages.data.pico.objects import DRAWINGS
from hoi_distill.stages.data.pico.render import SUPER
from hoi_distill.stages.data.pico.sketch import Pen, Place, Point, Sketch

SIZE = 256
CANVAS = SIZE * SUPER
SHOULDER, EYE, HAND = 0.76, 0.925, (0.2, 0.52)
"""Where a ray begins, and a line, in heights of a person above the ground (the hand: ahead, above)."""

_BOOST = {"cup": 1.7, "book": 1.5, "sports_ball": 1.4, "kite": 1.2, "dog": 1.1, "umbrella": 0.8}
_ORIGIN = {"cup": 0.09, "book": 0.12, "sports_ball": 0.1, "kite": 0.44, "umbrella": 0.05}  # above what it stands on
_TRIES = 14
_APART = 0.42  # of a person's height: how far beside a thing the two stand of whom one steps on it


@dataclass
class Entity:
    """A person or thing with its place.

    Attributes:
        name: Its class.
        x: Of its origin.
        y: Of the ground below it.
        size: Pixels in a person's height where it stands.
        mirror: Whether it faces left.
        sketch: A thing's drawing; None of people, who are drawn when it is known what they do.
        extent: x1, y1, x2, y2 of the drawing, heights of a person, y up; of people, about.
        posture: A person's: "standing", "walking" or "crouching"; empty of a thing.
    """

    name: str
    x: float = 0.0
    y: float = 0.0
    size: float = 0.0
    mirror: bool = False
    sketch: Sketch | None = None
    extent: tuple[float, float, float, float] = (-0.17, 0.0, 0.17, 1.02)
    posture: str = ""

    def box(self) -> tuple[float, float, float, float]:
        """xyxy; of people, about."""
        x1, y1, x2, y2 = self.extent
        if self.mirror:
            x1, x2 = -x2, -x1
        return self.x + self.size * x1, self.y - self.size * y2, self.x + self.size * x2, self.y - self.size * y1

    def center(self) -> Point:
        """The middle of the box."""
        x1, y1, x2, y2 = self.box()
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass
class Role:
    """An act with its two candidates.

    Attributes:
        act: What is done.
        candidates: (person, object) rows of the entities, twice.
        first: Whether the first candidate is the true one.
    """

    act: Act
    candidates: tuple[tuple[int, int], tuple[int, int]]
    first: bool

    @property
    def true(self) -> tuple[int, int]:
        """Who does it with what."""
        return self.candidates[not self.first]

    @property
    def other(self) -> tuple[int, int]:
        """The candidate that does not hold."""
        return self.candidates[self.first]


@dataclass
class Layout:
    """A whole scene before it is drawn.

    Attributes:
        entities: People first.
        roles: One of each act, in the order of the plan.
    """

    entities: list[Entity] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)


def lay_out(seed: int, acts: Sequence[Act]) -> Layout:
    """A layout in which every act can be told from its image; a pure function of its arguments."""
    attempt, slack = 0, 1.0
    while True:
        rng = random.Random(f"crowd layout {seed} {attempt}")
        layout = _attempt(rng, acts, slack)
        if layout is not None:
            return layout
        attempt += 1
        if attempt % 12 == 0:
            slack *= 0.85


def _attempt(rng: random.Random, acts: Sequence[Act], slack: float) -> Layout | None:
    steps = [act for act in acts if act.verb == CONTACT]
    others = [act for act in acts if act.verb != CONTACT]
    things = _things(rng, steps, others)
    needed = len(others) + 2 * len(steps)
    people = max(needed, rng.choices((4, 5, 6, 7, 8), (3, 4, 4, 3, 2))[0])
    placed: list[Entity] = []
    stepping = []
    for act in steps:  # three to a place
        things[act.name] -= 1
        stepping.append(_around(rng, act.name, placed))
    for _ in range(people - 2 * len(steps)):
        placed.append(_spaced(rng, "person", placed))
    for name, count in things.items():
        for _ in range(count):
            placed.append(_spaced(rng, name, placed))
    entities = sorted(placed, key=lambda entity: entity.name != "person")  # stable: people first
    row = {id(entity): i for i, entity in enumerate(entities)}
    busy = {row[id(person)] for left, right, _ in stepping for person in (left, right)}
    used = {row[id(thing)] for _, _, thing in stepping}
    layout = Layout(entities)
    for act in acts:
        if act.verb == CONTACT:
            left, right, thing = (row[id(entity)] for entity in stepping.pop(0))
            candidates = ((left, thing), (right, thing))
        else:
            found = _candidates(rng, act, entities, busy | used, slack)
            if found is None:
                return None
            candidates = found
            busy.add(candidates[0][0])
        layout.roles.append(Role(act, candidates, rng.random() < 0.5))
    for k, entity in enumerate(entities):
        if entity.name == "person":
            entity.posture = rng.choices(("standing", "walking", "crouching"), (6, 3, 0 if k in busy else 3))[0]
    return layout


def _things(rng: random.Random, steps: Sequence[Act], others: Sequence[Act]) -> Counter[str]:
    """How many of each class: two or three classes, each at least twice, five to ten altogether."""
    named = list(dict.fromkeys(act.name for act in (*steps, *others) if act.name != "person"))
    wanted = 3 if rng.random() < 0.4 else 2
    spare = [name for name in THINGS if name not in named]
    named += rng.sample(spare, max(0, wanted - len(named)))
    counts = Counter(act.name for act in steps)
    for name in named:
        counts[name] += 2 if any(act.name == name for act in others) else 1
        counts[name] = max(counts[name], 2)
    for _ in range(max(5, min(10, counts.total() + rng.randint(0, 3))) - counts.total()):
        counts[rng.choice(named)] += 1
    return counts


def _around(rng: random.Random, name: str, placed: list[Entity]) -> tuple[Entity, Entity, Entity]:
    """A thing with a person on either side, added to what is placed; the people face it."""

    pattern = _pattern(rng, name)

    def draw() -> tuple[Entity, Entity, Entity]:
        thing = _somewhere(rng, pattern)
        thing.x = rng.uniform(0.2, 0.8) * CANVAS
        x1, _, x2, _ = thing.box()
        apart = _APART * thing.size + (x2 - x1) / 4
        thing.x -= (x1 + x2) / 2 - thing.x
        people = [Entity("person", thing.x + side * apart, thing.y, thing.size, side > 0) for side in (-1, 1)]
        return people[0], people[1], thing

    options = [draw() for _ in range(_TRIES)]
    best = _least_crowded(options, placed)
    placed += best
    return best


def _spaced(rng: random.Random, name: str, placed: list[Entity]) -> Entity:
    """An entity where there is room."""
    pattern = _pattern(rng, name)
    return _least_crowded([(_somewhere(rng, pattern),) for _ in range(_TRIES)], placed)[0]


GroupT = TypeVar("GroupT", bound=tuple[Entity, ...])


def _least_crowded(options: Sequence[GroupT], placed: Sequence[Entity]) -> GroupT:
    """The option of which the least lies in what is placed."""
    boxes = [other.box() for other in placed]
    costs = [sum(overlap(entity.box(), box) for entity in option for box in boxes) for option in options]
    return options[costs.index(min(costs))]


def _pattern(rng: random.Random, name: str) -> Entity:
    """An entity with its drawing, nowhere yet."""
    if name == "person":
        return Entity(name)
    sketch = _sketch(rng, name)
    return Entity(name, sketch=sketch, extent=sketch.span())


def _somewhere(rng: random.Random, pattern: Entity) -> Entity:
    """A copy of an entity in a place; smaller where it is farther away. Kites fly."""
    depth = rng.random()
    size = CANVAS * (0.2 + 0.08 * depth) * rng.uniform(0.94, 1.06)
    y = rng.uniform(0.3, 0.95) if pattern.name == "kite" else 0.44 + 0.53 * depth
    x, mirror = rng.uniform(0.06, 0.94) * CANVAS, rng.random() < 0.5
    entity = replace(pattern, x=x, y=CANVAS * y, size=size, mirror=mirror)
    if pattern.name != "person":
        x1, _, x2, _ = entity.box()
        entity.x += max(0.0, 6 - x1) + min(0.0, CANVAS - 6 - x2)
    return entity


def _sketch(rng: random.Random, name: str) -> Sketch:
    sketch = Sketch()
    boost = _BOOST.get(name, 1.0) * rng.uniform(0.94, 1.06)
    form = {"opened": rng.random() < 0.5} if name == "book" else {"opened": True} if name == "umbrella" else {}
    turn = rng.uniform(-25, 25) if name == "kite" else 0.0
    pen = Pen(sketch, sketch.entity(name), Place(0, boost * _ORIGIN.get(name, 0.0), boost, turn))
    DRAWINGS[name](pen, rng, **form)
    return sketch


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The intersection of two boxes as a share of the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))


def start_of(verb: str, person: Entity, facing_left: bool) -> Point:
    """Where a ray or a line of a person begins."""
    if verb in LINES:
        side = -1 if facing_left else 1
        return person.x + side * HAND[0] * person.size, person.y - HAND[1] * person.size
    return person.x, person.y - (EYE if verb == "watch" else SHOULDER) * person.size


def _candidates(
    rng: random.Random, act: Act, entities: Sequence[Entity], taken: set[int], slack: float
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Somebody free with two targets that can be told apart, on one side of them where possible.

    Args:
        rng: Chooses among those who could.
        act: What is done.
        entities: Of the scene.
        taken: Rows of people who do something else, and of things that are stepped on.
        slack: Factor of all distances that are kept.
    """
    free = [k for k, entity in enumerate(entities) if entity.name == "person" and k not in taken]
    things = [k for k, entity in enumerate(entities) if entity.name == act.name]
    targets = things if act.name == "person" else [k for k in things if k not in taken]
    options: list[tuple[bool, float, tuple[tuple[int, int], tuple[int, int]]]] = []
    for person in free:
        near = [k for k in targets if k != person and _readable(act.verb, entities, person, k, slack)]
        for a, b in combinations(near, 2):
            start = start_of(act.verb, entities[person], facing_left=False)
            least = (10 if act.verb in LINES else 25) * slack
            if _angle(start, entities[a].center(), entities[b].center()) < least:
                continue
            sides = {entities[k].x < entities[person].x for k in (a, b)}
            pair = ((person, a), (person, b))
            options.append((len(sides) > 1, rng.random(), pair))
    if not options:
        return None
    _, _, chosen = min(options)
    who = entities[chosen[0][0]]
    who.mirror = sum(entities[k].x - who.x for _, k in chosen) < 0
    return chosen


def _readable(verb: str, entities: Sequence[Entity], person: int, target: int, slack: float) -> bool:
    """Whether an image of the act leaves no doubt about its target.

    The target is a good way off and touches nobody of the pair; a ray passes by every other thing, a line by everything
    that the target could be taken for.
    """
    who, what = entities[person], entities[target]
    start, end = start_of(verb, who, facing_left=what.x < who.x), what.center()
    if not 0.17 * CANVAS < math.dist(start, end) < 0.62 * CANVAS or overlap(who.box(), what.box()) > 0:
        return False
    for k, entity in enumerate(entities):
        if k in (person, target):
            continue
        alike = entity.name == what.name
        if verb in LINES:
            if alike and _beside(start, end, entity.center()) < 26 * slack:
                return False
        elif (alike or entity.name != "person") and _angle(start, end, entity.center()) < (14 if alike else 9) * slack:
            return False
    return True


def _angle(start: Point, a: Point, b: Point) -> float:
    """Degrees between the directions of two points, 0 to 180."""
    turn = math.atan2(a[1] - start[1], a[0] - start[0]) - math.atan2(b[1] - start[1], b[0] - start[0])
    return abs((math.degrees(turn) + 180) % 360 - 180)


def _beside(start: Point, end: Point, point: Point) -> float:
    """The distance of a point from a segment."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = ((point[0] - start[0]) * dx + (point[1] - start[1]) * dy) / (dx * dx + dy * dy)
    share = min(1.0, max(0.0, share))
    return math.dist(point, (start[0] + share * dx, start[1] + share * dy))
