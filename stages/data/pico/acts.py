"""How each interaction looks: a stance places the body and what carries it, a hand act the hands and what they hold."""

from __future__ import annotations

import random
from collections.abc import Callable

from hoi_distill.stages.data.pico.figure import Look, Pose, draw_person
from hoi_distill.stages.data.pico.objects import DRAWINGS
from hoi_distill.stages.data.pico.sketch import BACK, FAR, FRONT, HELD, MIDDLE, NEAR, Color, Pen, Place, Sketch

ROPE: Color = (70, 46, 28)
SHADOW: Color = (58, 58, 58)


class Group:
    """One person with what they do, being composed.

    Attributes:
        rng: All randomness comes from it.
        sketch: What is drawn so far.
        pose: How the person stands.
        look: How the person is dressed.
        actions: (object extent index, verb) of each act so far.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.sketch = Sketch()
        self.pose = Pose()
        self.look = Look.random(rng)
        self.actions: list[tuple[int, str]] = []

    def jitter(self, amount: float) -> float:
        """A random number in [-amount, amount]."""
        return self.rng.uniform(-amount, amount)

    def draw(self, name: str, x: float, y: float, layer: int = MIDDLE, *, scale: float = 1.0, turn: float = 0.0,
              flip: bool = False, **form: bool) -> Pen:  # fmt: skip
        """Draw an object with its origin at (x, y) and return its pen, to find points of it."""
        place = Place(x, y, scale * self.rng.uniform(0.94, 1.08), turn, flip)
        pen = Pen(self.sketch, self.sketch.entity(name), place, layer)
        DRAWINGS[name](pen, self.rng, **form)
        return pen

    def prop(self) -> Pen:
        """A pen for scenery that belongs to no entity: ropes, strings, shadows, marks of motion."""
        return Pen(self.sketch, None)

    def act(self, verb: str, name: str) -> None:
        """Let the person do something with a new object."""
        ACTS[verb, name](self)
        self.actions.append((len(self.sketch.extents) - 1, verb))

    def reach(self, dx: float, dy: float, *, far: bool = False, both: bool = False) -> tuple[float, float]:
        """Put a hand at the shoulder + (dx, dy) and return that point."""
        at = self.pose.shoulder[0] + dx, self.pose.shoulder[1] + dy
        if both or not far:
            self.pose.near_hand = at
        if both or far:
            self.pose.far_hand = at
        return at

    def finish(self) -> Sketch:
        """Draw the person; their extent comes first in the sketch."""
        draw_person(self.sketch, self.pose, self.look)
        self.sketch.extents.insert(0, self.sketch.extents.pop())
        self.actions = [(index + 1, verb) for index, verb in self.actions]
        return self.sketch


# Stances ------------------------------------------------------------------------------------------------------------


def stand(g: Group) -> None:
    """Somebody who stands, legs apart."""
    spread = g.rng.uniform(0.03, 0.09)
    g.pose = Pose(near_foot=(spread, 0.03), far_foot=(-spread, 0.03))


def walk(g: Group) -> None:
    """Somebody who walks."""
    stride = g.rng.uniform(0.13, 0.19)
    side = g.rng.choice((-1, 1))
    g.pose = Pose(
        hip=(0, 0.475), shoulder=(0.025, 0.775), near_foot=(side * stride, 0.035), far_foot=(-side * stride, 0.045)
    )
    g.reach(-side * 0.12, -0.31)
    g.reach(side * 0.13, -0.31, far=True)


def _run(g: Group) -> None:
    g.pose = Pose(hip=(0, 0.47), shoulder=(0.11, 0.75), near_foot=(0.26, 0.13), far_foot=(-0.3, 0.2))
    g.reach(-0.12, -0.22)
    g.reach(0.2, -0.12, far=True)


def crouch(g: Group) -> None:
    """Somebody who crouches."""
    g.pose = Pose(hip=(-0.08, 0.24), shoulder=(0.06, 0.5), near_foot=(0.06, 0.03), far_foot=(-0.06, 0.03), nod=0.5)


def idle(g: Group) -> None:
    """Somebody who does nothing with anything."""
    kind = g.rng.randrange(5)
    (walk if kind == 0 else stand)(g)
    if kind == 1:  # waving
        g.reach(0.14, 0.27)
    elif kind == 2:  # hands on the hips
        g.pose.near_hand = g.pose.far_hand = (0.07, 0.53)
    elif kind == 3:  # arms crossed
        g.pose.near_hand, g.pose.far_hand = (0.1, 0.65), (0.08, 0.69)


def _ride_bicycle(g: Group, turn: float = 0.0, lift: float = 0.0) -> None:
    frame = g.draw("bicycle", 0, lift, turn=turn)
    g.pose = Pose(
        frame.at(-0.12, 0.54), frame.at(0.05 + g.jitter(0.02), 0.81), frame.at(0.03, 0.12), frame.at(-0.04, 0.27)
    )
    g.pose.near_hand = g.pose.far_hand = frame.at(0.25, 0.57)


def _jump_bicycle(g: Group) -> None:
    g.prop().oval((0, 0.02), (0.34, 0.035), SHADOW, BACK)
    _ride_bicycle(g, turn=g.rng.uniform(22, 30), lift=g.rng.uniform(0.36, 0.46))


def _hold_bicycle(g: Group) -> None:
    stand(g)
    frame = g.draw("bicycle", 0.16 + g.jitter(0.04), 0, FRONT)
    g.pose.near_hand = frame.at(0.22, 0.56)
    g.pose.far_hand = frame.at(-0.1, 0.52)


def _carry_bicycle(g: Group) -> None:
    walk(g)
    g.draw("bicycle", 0, 1.06, HELD, turn=g.jitter(8), scale=0.92)
    g.reach(0.15, 0.3)
    g.reach(-0.15, 0.3, far=True)


def _repair_bicycle(g: Group) -> None:
    crouch(g)
    g.draw("bicycle", 0.5, 0.56, MIDDLE, turn=180)
    g.pose.near_hand, g.pose.far_hand = (0.33, 0.43), (0.3, 0.34)
    g.prop().line([(0.3, 0.41), (0.42, 0.5)], 0.045, (206, 206, 214), FRONT)
    g.prop().disc(0.43, 0.51, 0.04, (206, 206, 214), FRONT)


def _ride_horse(g: Group, turn: float = 0.0, lift: float = 0.0, gallop: bool = False) -> None:
    frame = g.draw("horse", 0, lift, turn=turn, gallop=gallop)
    g.pose = Pose(frame.at(-0.02, 0.75), frame.at(0.03, 1.05), frame.at(0.08, 0.36), frame.at(0.1, 0.36))
    g.pose.near_hand = g.pose.far_hand = frame.at(0.25, 0.86)
    g.prop().line([frame.at(0.25, 0.86), frame.at(0.56, 0.76)], 0.018, ROPE, FRONT)


def _jump_horse(g: Group) -> None:
    bar = g.prop()
    for x in (-0.12, 0.22):
        bar.line([(x, 0.02), (x, 0.4)], 0.04, (245, 245, 245), BACK)
    for y, color in ((0.16, (214, 50, 50)), (0.32, (245, 245, 245))):
        bar.line([(-0.16, y), (0.26, y)], 0.05, color, BACK)
    _ride_horse(g, turn=g.rng.uniform(15, 22), lift=g.rng.uniform(0.24, 0.32), gallop=True)


def _walk_horse(g: Group) -> None:
    walk(g)
    frame = g.draw("horse", -0.86, 0)
    hand = g.reach(-0.16, -0.24, far=True)
    g.prop().line([hand, frame.at(0.56, 0.76)], 0.02, ROPE, FAR)


def _feed_horse(g: Group) -> None:
    stand(g)
    frame = g.draw("horse", 0.98, 0, flip=True)
    mouth = frame.at(0.64, 0.76)
    g.pose.near_hand = g.pose.far_hand = (mouth[0] - 0.1, mouth[1] - 0.07)
    hay = g.prop()
    for slope in (-0.05, 0.0, 0.05):
        hay.line(
            [(mouth[0] - 0.11, mouth[1] - 0.07), (mouth[0] - 0.01, mouth[1] + 0.02 + slope)],
            0.034,
            (250, 140, 30),
            FRONT,
        )


def _pet_horse(g: Group) -> None:
    stand(g)
    g.draw("horse", 0.2 + g.jitter(0.03), 0, BACK)
    g.pose.near_hand = (0.3, 0.82 + g.jitter(0.02))
    g.pose.far_hand = (0.28, 0.7)


def _walk_dog(g: Group) -> None:
    walk(g)
    frame = g.draw("dog", 0.58 + g.jitter(0.05), 0)
    hand = g.reach(0.2, -0.27, far=True)
    g.prop().line([hand, (hand[0] + 0.12, hand[1] - 0.14), frame.at(0.16, 0.27)], 0.02, ROPE, FAR)


def _chase_dog(g: Group) -> None:
    _run(g)
    g.reach(0.33, 0.02)
    g.reach(0.33, -0.08, far=True)
    g.draw("dog", 0.78 + g.jitter(0.05), 0.03, run=True)
    for y in (0.3, 0.5, 0.62):
        g.prop().line([(-0.42, y), (-0.3, y)], 0.02, (245, 245, 245), BACK)


def _pet_dog(g: Group) -> None:
    crouch(g)
    frame = g.draw("dog", 0.52, 0, HELD, flip=True)
    g.pose.near_hand = frame.at(0.17, 0.42)


def _feed_dog(g: Group) -> None:
    stand(g)
    g.pose.shoulder = (0.05, 0.78)
    frame = g.draw("dog", 0.47, 0.1, MIDDLE, flip=True, turn=-48)
    mouth = frame.at(0.36, 0.34)
    g.pose.near_hand = (mouth[0] - 0.06, mouth[1] + 0.13)
    bone = g.prop()
    ends = ((mouth[0] - 0.08, mouth[1] + 0.11), (mouth[0] + 0.05, mouth[1] + 0.07))
    bone.line(ends, 0.035, (250, 248, 235), FRONT)
    for x, y in ends:
        bone.line([(x, y + 0.02), (x, y - 0.02)], 0.04, (250, 248, 235), FRONT)


def __seated(g: Group, seat: float) -> None:
    g.pose = Pose(
        hip=(-0.06, seat + 0.06),
        shoulder=(-0.08 + g.jitter(0.02), seat + 0.36),
        near_foot=(0.22, 0.03),
        far_foot=(0.15, 0.03),
    )
    g.pose.near_hand = g.pose.far_hand = (0.1, seat + 0.1)


def _sit_on_chair(g: Group) -> None:
    g.draw("chair", 0, 0)
    __seated(g, 0.28)


def _stand_on_chair(g: Group) -> None:
    g.draw("chair", 0, 0, BACK)
    g.pose = Pose((0, 0.79), (0, 1.09), (0.08, 0.35), (-0.06, 0.35))
    g.reach(0.16, 0.29)


def _hold_chair(g: Group) -> None:
    stand(g)
    frame = g.draw("chair", 0.42, 0, HELD)
    g.pose.near_hand = g.pose.far_hand = frame.at(-0.2, 0.66)


def _carry_chair(g: Group) -> None:
    walk(g)
    g.draw("chair", 0, 1.4, HELD, turn=180 + g.jitter(10))
    g.reach(0.13, 0.31)
    g.reach(-0.13, 0.31, far=True)


def _sit_on_bench(g: Group) -> None:
    g.draw("bench", g.jitter(0.15), 0, BACK)
    __seated(g, 0.27)


def _lie_on_bench(g: Group) -> None:
    g.draw("bench", 0, 0, BACK)
    g.pose = Pose((0.04, 0.38), (-0.25, 0.385), (0.5, 0.36), (0.47, 0.4))
    g.pose.near_hand, g.pose.far_hand = (-0.02, 0.44), (-0.03, 0.46)


def _ride_skateboard(g: Group) -> None:
    g.draw("skateboard", 0, 0)
    lean = g.jitter(0.03)
    g.pose = Pose((-0.05, 0.47), (0.06 + lean, 0.73), (0.16, 0.165), (-0.16, 0.165))
    g.reach(0.31, 0.05)
    g.reach(-0.32, 0.03, far=True)


def _jump_skateboard(g: Group) -> None:
    lift = g.rng.uniform(0.3, 0.4)
    g.prop().oval((0, 0.02), (0.28, 0.035), SHADOW, BACK)
    g.draw("skateboard", 0, lift, turn=g.rng.uniform(8, 20))
    g.pose = Pose((-0.03, lift + 0.36), (0.02, lift + 0.64), (0.13, lift + 0.19), (-0.13, lift + 0.11))
    g.reach(0.24, 0.25)
    g.reach(-0.26, 0.24, far=True)


def _carry_skateboard(g: Group) -> None:
    walk(g)
    x, y = g.reach(0.02, -0.32)
    g.draw("skateboard", x + 0.02, y - 0.02, HELD, turn=g.jitter(8))


def _hold_skateboard(g: Group) -> None:
    stand(g)
    frame = g.draw("skateboard", 0.33, 0.31, HELD, turn=90)
    g.pose.near_hand = frame.at(0.28, 0.1)


def _sit_on_skateboard(g: Group) -> None:
    g.draw("skateboard", 0, 0)
    g.pose = Pose((-0.13, 0.2), (-0.17, 0.49), (0.25, 0.03), (0.21, 0.03))
    g.pose.near_hand = g.pose.far_hand = (0.07, 0.33)


def _kick_sports_ball(g: Group) -> None:
    g.pose = Pose((-0.03, 0.48), (-0.1, 0.77), (0.36, 0.2), (-0.08, 0.03))
    g.reach(-0.27, -0.12)
    g.reach(0.27, -0.08, far=True)
    x, y = 0.54 + g.jitter(0.04), 0.2 + g.jitter(0.05)
    g.draw("sports_ball", x, y)


# Hand acts, on whatever stance is there -----------------------------------------------------------------------------


def _throw_sports_ball(g: Group) -> None:
    g.pose.shoulder = (g.pose.shoulder[0] - 0.03, g.pose.shoulder[1])
    x, y = g.reach(0.22, 0.26)
    g.reach(-0.25, -0.12, far=True)
    g.draw("sports_ball", x + 0.24, y + 0.15 + g.jitter(0.03))
    for dy in (-0.05, 0.03):
        g.prop().line([(x + 0.03, y + 0.04 + dy), (x + 0.11, y + 0.09 + dy)], 0.018, (245, 245, 245))


def _hold_sports_ball(g: Group) -> None:
    x, y = g.reach(0.2, -0.14, both=True)
    g.draw("sports_ball", x + 0.05, y + 0.01, HELD)


def _dribble_sports_ball(g: Group) -> None:
    g.pose = Pose((-0.08, 0.44), (0.07, 0.7), (0.08, 0.03), (-0.16, 0.03), nod=0.5)
    x, y = g.reach(0.2, -0.25)
    g.reach(-0.2, -0.2, far=True)
    ball = 0.16 + g.jitter(0.04)
    g.draw("sports_ball", x + 0.03, ball)
    for dx in (-0.05, 0.11):
        g.prop().line([(x + dx, y - 0.05), (x + dx, y - 0.12)], 0.018, (245, 245, 245))


def _read_book(g: Group) -> None:
    x, y = g.reach(0.22, -0.04, both=True)
    g.pose.nod = 0.4
    g.draw("book", x + 0.05, y + 0.06, HELD, opened=True, scale=1.08)


def _hold_book(g: Group) -> None:
    x, y = g.reach(0.09, -0.32)
    g.draw("book", x, y - 0.03, HELD, turn=g.jitter(15))


def _talk_on_cell_phone(g: Group) -> None:
    hx, hy = g.pose.head()
    g.pose.near_hand = (hx - 0.05, hy - 0.07)
    g.draw("cell_phone", hx - 0.03, hy - 0.01, FRONT, turn=-14, scale=0.92)


def _text_on_cell_phone(g: Group) -> None:
    g.pose.nod = 1.0
    x, y = g.reach(0.15, -0.2, both=True)
    g.draw("cell_phone", x + 0.03, y + 0.06, FRONT, turn=-25)


def _read_cell_phone(g: Group) -> None:
    x, y = g.reach(0.3, 0.06)
    g.draw("cell_phone", x + 0.02, y + 0.08, HELD, turn=g.jitter(6), scale=1.1)


def _hold_cell_phone(g: Group) -> None:
    x, y = g.reach(0.08, -0.32)
    g.draw("cell_phone", x + 0.02, y - 0.03, HELD, turn=g.jitter(20), scale=1.1)


def _drink_with_cup(g: Group) -> None:
    hx, hy = g.pose.head()
    g.pose.near_hand = (hx + 0.15, hy - 0.1)
    g.draw("cup", hx + 0.17, hy - 0.02, HELD, turn=58, flip=True)


def _hold_cup(g: Group) -> None:
    x, y = g.reach(0.24, -0.17 + g.jitter(0.03))
    g.draw("cup", x + 0.06, y + 0.05, HELD)


def _pour_cup(g: Group) -> None:
    x, y = g.reach(0.31, 0.0)
    g.prop().line([(x + 0.16, y - 0.02), (x + 0.18, y - 0.14), (x + 0.18, 0.08)], 0.036, (90, 170, 250), HELD)
    g.prop().oval((x + 0.18, 0.04), (0.12, 0.03), (90, 170, 250), BACK)
    g.draw("cup", x + 0.06, y + 0.04, HELD, turn=-105)


def _hold_umbrella(g: Group) -> None:
    x, y = g.reach(0.14, -0.06)
    g.draw("umbrella", x, y + 0.02, HELD, turn=g.jitter(10), opened=True, scale=1.08)


def _carry_umbrella(g: Group) -> None:
    x, y = g.reach(0.12, -0.31)
    g.draw("umbrella", x, y, HELD, turn=g.jitter(10))


def _open_umbrella(g: Group) -> None:
    x, y = g.reach(0.22, -0.12)
    g.reach(0.14, -0.17, far=True)
    g.draw("umbrella", x - 0.02, y, HELD, turn=-78 + g.jitter(8), opened=True)


def _fly_kite(g: Group) -> None:
    x, y = g.reach(0.24, 0.22, both=True)
    frame = g.draw("kite", 0.62 + g.jitter(0.12), 1.62 + g.jitter(0.1), BACK, turn=-25 + g.jitter(10))
    g.prop().line([(x, y), frame.at(0, 0.04)], 0.012, (250, 250, 250), NEAR)


def _hold_kite(g: Group) -> None:
    x, y = g.reach(0.21, -0.12, both=True)
    g.draw("kite", x + 0.06, y + 0.04, HELD, turn=g.jitter(12))


def _hold_dog(g: Group) -> None:
    x, y = g.reach(0.17, -0.24, both=True)
    g.draw("dog", x - 0.02, y - 0.05, HELD, scale=0.85)


_STANCES: tuple[Callable[[Group], None], ...] = (
    _ride_bicycle, _jump_bicycle, _hold_bicycle, _carry_bicycle, _repair_bicycle, _ride_horse, _jump_horse, _walk_horse,
    _feed_horse, _pet_horse, _walk_dog, _chase_dog, _pet_dog, _feed_dog, _sit_on_chair, _stand_on_chair, _hold_chair,
    _carry_chair, _sit_on_bench, _lie_on_bench, _ride_skateboard, _jump_skateboard, _sit_on_skateboard,
    _kick_sports_ball, _dribble_sports_ball, _carry_skateboard, _hold_skateboard,
)  # fmt: skip
_HAND_ACTS: tuple[Callable[[Group], None], ...] = (
    _throw_sports_ball, _hold_sports_ball, _read_book, _hold_book, _talk_on_cell_phone, _text_on_cell_phone,
    _read_cell_phone, _hold_cell_phone, _drink_with_cup, _hold_cup, _pour_cup, _hold_umbrella, _carry_umbrella,
    _open_umbrella, _fly_kite, _hold_kite, _hold_dog,
)  # fmt: skip


def _named(acts: tuple[Callable[[Group], None], ...]) -> dict[tuple[str, str], Callable[[Group], None]]:
    """(verb, object) read off the function names."""
    table = {}
    for function in acts:
        name = next(name for name in DRAWINGS if function.__name__.endswith(name))
        table[function.__name__.removeprefix("_").removesuffix(f"_{name}"), name] = function
    return table


STANCES = _named(_STANCES)
HAND_ACTS = _named(_HAND_ACTS)
ACTS = STANCES | HAND_ACTS

_CALM = tuple(
    k for k in HAND_ACTS if k not in {("throw", "sports_ball"), ("open", "umbrella"), ("fly", "kite"), ("pour", "cup")}
)
_ONE_HAND = tuple(k for k in _CALM if k[0] in {"talk_on", "drink_with"} or k in {("hold", "cup"), ("hold", "umbrella")})
SECOND: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("sit_on", "chair"): _CALM,
    ("sit_on", "bench"): _CALM,
    ("sit_on", "skateboard"): _ONE_HAND,
    ("walk", "dog"): _ONE_HAND,
    ("stand_on", "chair"): (("read", "book"), ("hold", "umbrella")),
}
"""Hand acts that the person of a stance can do at the same time."""
