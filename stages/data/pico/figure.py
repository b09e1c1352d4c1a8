"""Cartoon people: a pose is where the ends of the body are; knees and elbows follow by two-bone inverse kinematics."""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

from hoi_distill.stages.data.pico.sketch import BODY, FAR, NEAR, Color, Extent, Pen, Place, Point, Sketch, shade

LEG, ARM = 0.25, 0.18  # length of one bone: thigh = shin, upper arm = forearm

_SKINS: tuple[Color, ...] = (
    (255, 219, 187),
    (241, 194, 150),
    (214, 160, 112),
    (168, 112, 72),
    (122, 78, 50),
    (90, 56, 38),
)
_HAIRS: tuple[Color, ...] = ((30, 24, 22), (74, 46, 26), (122, 74, 36), (222, 186, 96), (164, 72, 34), (158, 158, 162))
_HAIR_STYLES = ("short", "long", "bun", "cap", "bald")


def vivid(rng: random.Random, low: float = 0.45, high: float = 0.95) -> Color:
    """A random saturated colour."""
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.55, 0.95), rng.uniform(low, high))
    return int(255 * r), int(255 * g), int(255 * b)


@dataclass
class Look:
    """How one person is dressed and built."""

    skin: Color
    hair: Color
    style: str
    shirt: Color
    trousers: Color
    shoes: Color
    hat: Color
    short_sleeves: bool
    short_legs: bool
    girth: float

    @classmethod
    def random(cls, rng: random.Random) -> Look:
        """Somebody."""
        dark = rng.choice(((44, 48, 66), (52, 44, 40), (36, 62, 92), (90, 80, 66), (70, 72, 76)))
        return cls(
            skin=rng.choice(_SKINS),
            hair=rng.choice(_HAIRS),
            style=rng.choice(_HAIR_STYLES),
            shirt=vivid(rng),
            trousers=dark if rng.random() < 0.6 else vivid(rng, 0.3, 0.7),
            shoes=rng.choice(((30, 28, 30), (240, 240, 240), (150, 40, 40), (70, 50, 36))),
            hat=vivid(rng),
            short_sleeves=rng.random() < 0.5,
            short_legs=rng.random() < 0.3,
            girth=rng.uniform(0.85, 1.2),
        )


@dataclass
class Pose:
    """Ends of the body in sketch units; ``None`` hands hang. Facing +x."""

    hip: Point = (0.0, 0.49)
    shoulder: Point = (0.0, 0.79)
    near_foot: Point = (0.06, 0.03)
    far_foot: Point = (-0.06, 0.03)
    near_hand: Point | None = None
    far_hand: Point | None = None
    nod: float = 0.0  # 0 looks ahead, 1 looks down
    elbow: float = -1.0  # side to which elbows bend
    knee: float = 1.0

    def head(self) -> Point:
        """Centre of the head: along the torso, drawn upright a little, forward when nodding."""
        dx, dy = self.shoulder[0] - self.hip[0], self.shoulder[1] - self.hip[1]
        norm = math.hypot(dx, dy) or 1.0
        return self.shoulder[0] + 0.135 * dx / norm + 0.015 + 0.02 * self.nod, self.shoulder[1] + 0.135 * dy / norm


def bend(a: Point, b: Point, bone: float, side: float) -> tuple[Point, Point]:
    """Joint and end of a two-bone limb from `a` towards `b`; `b` beyond reach is pulled in."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    reach = math.hypot(dx, dy) or 1e-6
    ux, uy = dx / reach, dy / reach
    length = min(reach, 1.98 * bone)
    height = side * math.sqrt(bone * bone - length * length / 4)
    joint = a[0] + ux * length / 2 - uy * height, a[1] + uy * length / 2 + ux * height
    return joint, (a[0] + ux * length, a[1] + uy * length)


def draw_person(sketch: Sketch, pose: Pose, look: Look) -> Extent:
    """Add a person to the sketch and return its extent."""
    extent = sketch.entity("person")
    pen = Pen(sketch, extent)
    g = look.girth
    shoulder = pose.shoulder
    rest = (shoulder[0] + 0.02, shoulder[1] - 0.345)
    for foot, layer, tone in ((pose.far_foot, FAR, 0.78), (pose.near_foot, BODY, 1.0)):
        knee, ankle = bend(pose.hip, foot, LEG, pose.knee)
        pen.line([knee, ankle], 0.075 * g, shade(look.skin if look.short_legs else look.trousers, tone), layer)
        pen.line([pose.hip, knee], 0.095 * g, shade(look.trousers, tone), layer)
        sx, sy = ankle[0] - knee[0], ankle[1] - knee[1]
        n = math.hypot(sx, sy) or 1.0
        toe = (ankle[0] - 0.065 * sy / n, ankle[1] + 0.065 * sx / n)
        pen.line([ankle, toe], 0.058, shade(look.shoes, tone), layer)
    pen.line([pose.hip, (shoulder[0], shoulder[1] - 0.03)], 0.17 * g, look.shirt, BODY)
    _draw_head(pen, pose, look)
    for hand, layer, tone in ((pose.far_hand or rest, FAR, 0.78), (pose.near_hand or rest, NEAR, 0.9)):
        top = (shoulder[0], shoulder[1] - 0.035)
        elbow, wrist = bend(top, hand, ARM, pose.elbow)
        pen.line(
            [elbow, wrist],
            0.056,
            shade(look.skin, tone + 0.1) if look.short_sleeves else shade(look.shirt, tone),
            layer,
        )
        pen.line([top, elbow], 0.068, shade(look.shirt, tone), layer)
        pen.disc(wrist[0], wrist[1], 0.037, shade(look.skin, min(1.0, tone + 0.1)), layer)
    return extent


def _draw_head(pen: Pen, pose: Pose, look: Look) -> None:
    x, y = pose.head()
    r = 0.093
    neck = (pose.shoulder[0] * 0.5 + x * 0.5, pose.shoulder[1] * 0.5 + y * 0.5)
    pen.line([pose.shoulder, neck], 0.07, shade(look.skin, 0.88), BODY)
    head = Pen(pen.sketch, pen.extent, Place(x, y, r, turn=-32 * pose.nod))
    if look.style == "long":
        head.polygon([(-1.05, 0.3), (-0.2, 0.6), (-0.1, -0.6), (-0.5, -1.9), (-1.25, -1.7)], look.hair)
    if look.style == "bun":
        head.disc(-1.0, 0.6, 0.48, look.hair)
    head.disc(0, 0, 1, look.skin)
    crown = [(math.cos(math.radians(a)), math.sin(math.radians(a))) for a in range(35, 216, 20)]
    if look.style == "cap":
        head.polygon([(c * 1.1, s * 1.1 + 0.08) for c, s in crown[:-1]], look.hat)
        head.line([(0.3, 0.5), (1.45, 0.45)], 0.24, shade(look.hat, 0.8))
    elif look.style != "bald":
        head.polygon([(c * 1.1, s * 1.1) for c, s in crown] + [(-0.15, 0.1)], look.hair)
    head.disc(0.5, 0.08, 0.17, (24, 20, 24))
    head.line([(0.98, -0.08), (1.08, -0.16)], 0.2, shade(look.skin, 0.85))
