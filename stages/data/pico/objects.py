"""The twelve objects as vector drawings, each in a frame with its origin on the ground (or at its grip), facing +x."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from hoi_distill.stages.data.pico.figure import vivid
from hoi_distill.stages.data.pico.sketch import Color, Pen, Point, shade

BLACK: Color = (28, 28, 32)
WHITE: Color = (246, 246, 242)


def _bicycle(pen: Pen, rng: random.Random) -> None:
    color = vivid(rng)
    for x in (-0.27, 0.27):
        ring = [
            (x + 0.175 * math.cos(a * math.tau / 14), 0.19 + 0.175 * math.sin(a * math.tau / 14)) for a in range(15)
        ]
        pen.line(ring, 0.034, BLACK)
        pen.line([(x - 0.12, 0.27), (x + 0.12, 0.11)], 0.009, (170, 170, 175))
        pen.line([(x - 0.12, 0.11), (x + 0.12, 0.27)], 0.009, (170, 170, 175))
    hub, head, seat, crank = (-0.27, 0.19), (0.19, 0.44), (-0.12, 0.42), (-0.02, 0.19)
    pen.line([hub, crank, head, seat, hub], 0.03, color)
    pen.line([crank, (-0.13, 0.48)], 0.028, color)
    pen.line([(0.27, 0.19), (0.18, 0.52), (0.25, 0.55)], 0.03, shade(color, 0.8))
    pen.line([(-0.19, 0.49), (-0.06, 0.49)], 0.045, BLACK)
    pen.disc(*crank, 0.04, (90, 90, 95))


def _horse(pen: Pen, rng: random.Random, *, gallop: bool = False, graze: bool = False) -> None:
    coat = rng.choice(((122, 78, 44), (92, 60, 40), (200, 160, 110), (66, 60, 60), (150, 96, 60), (222, 214, 202)))
    mane = shade(coat, 0.5) if coat[0] > 90 else (20, 18, 18)
    feet = (
        ((-0.50, 0.16), (-0.36, 0.1), (0.42, 0.2), (0.52, 0.3))
        if gallop
        else ((-0.3, 0.03), (-0.2, 0.03), (0.2, 0.03), (0.31, 0.03))
    )
    for (fx, fy), top, tone in zip(feet, (-0.27, -0.21, 0.2, 0.26), (0.75, 1, 0.75, 1), strict=True):
        pen.line([(top, 0.5), ((top + fx) / 2 + 0.03, (0.5 + fy) / 2), (fx, fy)], 0.07, shade(coat, tone))
        pen.disc(fx, fy, 0.038, BLACK)
    pen.line([(-0.32, 0.6), (-0.43, 0.5), (-0.45, 0.28)], 0.06, mane)
    pen.oval((0, 0.58), (0.37, 0.155), coat)
    neck: list[Point] = [(0.25, 0.62), (0.5, 0.6)] if graze else [(0.25, 0.64), (0.43, 0.88)]
    pen.line(neck, 0.15, coat)
    pen.line([(neck[0][0] - 0.05, neck[0][1] + 0.09), (neck[1][0] - 0.06, neck[1][1] + 0.07)], 0.055, mane)
    hx, hy = neck[1]
    pen.line([(hx, hy), (hx + 0.17, hy - 0.1)], 0.11, coat)
    pen.disc(hx + 0.19, hy - 0.11, 0.055, shade(coat, 0.7))
    pen.polygon([(hx - 0.05, hy + 0.03), (hx - 0.02, hy + 0.14), (hx + 0.04, hy + 0.03)], coat)
    pen.disc(hx + 0.05, hy, 0.018, (10, 10, 10))


def _dog(pen: Pen, rng: random.Random, *, run: bool = False) -> None:
    coat = rng.choice(((160, 104, 58), (70, 56, 48), (228, 218, 200), (196, 150, 92), (50, 48, 50), (184, 88, 40)))
    feet = (-0.27, -0.17, 0.18, 0.3) if run else (-0.17, -0.11, 0.1, 0.16)
    for fx, top, tone in zip(feet, (-0.15, -0.1, 0.1, 0.15), (0.75, 1, 0.75, 1), strict=True):
        pen.line([(top, 0.18), (fx, 0.02 if not run else 0.05)], 0.045, shade(coat, tone))
    pen.line([(-0.17, 0.24), (-0.28, 0.36)], 0.04, coat)
    pen.line([(-0.13, 0.22), (0.13, 0.22)], 0.135, coat)
    pen.line([(0.14, 0.24), (0.2, 0.33)], 0.09, coat)
    pen.disc(0.21, 0.35, 0.075, coat)
    pen.line([(0.24, 0.33), (0.32, 0.315)], 0.06, shade(coat, 1.12))
    pen.disc(0.335, 0.325, 0.02, BLACK)
    pen.line([(0.17, 0.39), (0.135, 0.3)], 0.05, shade(coat, 0.6))
    pen.disc(0.235, 0.37, 0.015, BLACK if coat[0] > 80 else WHITE)
    pen.line([(0.135, 0.27), (0.19, 0.235)], 0.026, (200, 40, 40))


def _chair(pen: Pen, rng: random.Random) -> None:
    color = rng.choice(((146, 92, 48), (92, 58, 36), vivid(rng), vivid(rng, 0.35, 0.7)))
    dark = shade(color, 0.72)
    for x in (-0.13, 0.17):
        pen.line([(x, 0.28), (x, 0.02)], 0.036, dark)
    pen.line([(-0.07, 0.28), (-0.07, 0.08)], 0.028, shade(color, 0.5))
    pen.line([(0.11, 0.28), (0.11, 0.08)], 0.028, shade(color, 0.5))
    pen.line([(-0.14, 0.28), (-0.19, 0.66)], 0.04, dark)
    pen.line([(-0.15, 0.29), (0.18, 0.29)], 0.062, color)
    pen.line([(-0.175, 0.46), (-0.2, 0.66)], 0.075, color)


def _bench(pen: Pen, rng: random.Random) -> None:
    color = rng.choice(((150, 100, 56), (70, 120, 70), (120, 74, 48), (110, 116, 124), vivid(rng, 0.4, 0.7)))
    for x in (-0.4, 0.4):
        pen.line([(x, 0.58), (x, 0.02)], 0.04, (54, 54, 60))
    for y in (0.43, 0.54):
        pen.line([(-0.47, y), (0.47, y)], 0.065, color)
    pen.line([(-0.49, 0.27), (0.49, 0.27)], 0.075, shade(color, 0.8))


def _book(pen: Pen, rng: random.Random, *, opened: bool = False) -> None:
    cover = vivid(rng)
    if opened:
        pen.polygon([(-0.16, 0.12), (0, 0.08), (0.16, 0.12), (0.16, -0.12), (0, -0.16), (-0.16, -0.12)], cover)
        pen.polygon([(-0.14, 0.11), (0, 0.07), (0, -0.13), (-0.14, -0.09)], WHITE)
        pen.polygon([(0.14, 0.11), (0, 0.07), (0, -0.13), (0.14, -0.09)], shade(WHITE, 0.9))
        for y in (0.06, 0.01, -0.04):
            pen.line([(-0.12, y), (-0.02, y - 0.02)], 0.01, (130, 130, 140))
            pen.line([(0.12, y), (0.02, y - 0.02)], 0.01, (130, 130, 140))
    else:
        pen.polygon([(-0.09, -0.12), (0.09, -0.12), (0.09, 0.12), (-0.09, 0.12)], cover)
        pen.polygon([(0.065, -0.11), (0.095, -0.11), (0.095, 0.11), (0.065, 0.11)], WHITE)
        pen.line([(-0.05, 0.06), (0.03, 0.06)], 0.026, shade(cover, 1.7))
        pen.line([(-0.075, -0.12), (-0.075, 0.12)], 0.02, shade(cover, 0.6))


def _cell_phone(pen: Pen, rng: random.Random) -> None:
    case = rng.choice((BLACK, (60, 60, 66), (190, 40, 60), (30, 60, 140)))
    pen.polygon([(-0.058, -0.1), (0.058, -0.1), (0.058, 0.1), (-0.058, 0.1)], case)
    pen.polygon([(-0.042, -0.068), (0.042, -0.068), (0.042, 0.08), (-0.042, 0.08)], (130, 215, 255))
    pen.line([(-0.02, 0.04), (0.02, 0.04)], 0.018, WHITE)


def _cup(pen: Pen, rng: random.Random) -> None:
    color = rng.choice((vivid(rng, 0.7, 1.0), vivid(rng, 0.6, 1.0), WHITE, (210, 50, 50)))
    pen.line([(0.06, 0.05), (0.115, 0.04), (0.105, -0.03), (0.055, -0.045)], 0.024, shade(color, 0.75))
    pen.polygon([(-0.08, 0.09), (0.08, 0.09), (0.06, -0.09), (-0.06, -0.09)], color)
    pen.polygon([(-0.074, 0.02), (0.074, 0.02), (0.068, -0.03), (-0.068, -0.03)], shade(color, 0.7))
    pen.line([(-0.075, 0.088), (0.075, 0.088)], 0.026, (84, 54, 34))


def _kite(pen: Pen, rng: random.Random) -> None:
    a, b = vivid(rng, 0.7, 1.0), vivid(rng, 0.7, 1.0)
    top, right, bottom, left = (0, 0.2), (0.14, 0.04), (0, -0.22), (-0.14, 0.04)
    pen.polygon([top, right, (0, 0.04)], a)
    pen.polygon([right, bottom, (0, 0.04)], b)
    pen.polygon([bottom, left, (0, 0.04)], a)
    pen.polygon([left, top, (0, 0.04)], b)
    pen.line([top, bottom], 0.012, BLACK)
    pen.line([left, right], 0.012, BLACK)
    pen.line([bottom, (-0.05, -0.3), (0.02, -0.37), (-0.04, -0.44)], 0.02, b)
    for x, y in ((-0.05, -0.3), (0.02, -0.37), (-0.04, -0.44)):
        pen.disc(x, y, 0.026, a)


def _skateboard(pen: Pen, rng: random.Random) -> None:
    color = vivid(rng)
    pen.line([(-0.29, 0.125), (-0.22, 0.09), (0.22, 0.09), (0.29, 0.125)], 0.046, color)
    pen.line([(-0.2, 0.1), (0.2, 0.1)], 0.016, BLACK)
    for x in (-0.17, 0.17):
        pen.disc(x, 0.04, 0.042, rng.choice(((240, 220, 80), (230, 230, 230), (240, 120, 60))))
        pen.disc(x, 0.04, 0.018, BLACK)


def _sports_ball(pen: Pen, rng: random.Random) -> None:
    kind = rng.randrange(3)
    r = 0.1
    if kind == 0:  # basketball
        pen.disc(0, 0, r, (232, 122, 36))
        pen.line([(-r * 0.9, 0), (r * 0.9, 0)], 0.014, BLACK)
        pen.line([(0, -r * 0.9), (0, r * 0.9)], 0.014, BLACK)
    elif kind == 1:  # football
        pen.disc(0, 0, r, (24, 24, 26))
        pen.disc(0, 0, r * 0.86, WHITE)
        pen.disc(0, 0, r * 0.34, BLACK)
        for a in range(5):
            pen.disc(0.72 * r * math.cos(a * 1.2566 + 0.3), 0.72 * r * math.sin(a * 1.2566 + 0.3), r * 0.2, BLACK)
    else:
        pen.disc(0, 0, r, (250, 226, 70))
        pen.line([(-0.06, 0.05), (0, -0.02), (0.07, 0.04)], 0.03, (40, 80, 190))


def _umbrella(pen: Pen, rng: random.Random, *, opened: bool = False) -> None:
    color = vivid(rng)
    if opened:  # grip at the origin, canopy above
        pen.line([(0, -0.04), (0, 0.5)], 0.024, (60, 54, 54))
        arc = [(0.36 * math.cos(math.radians(a)), 0.3 + 0.24 * math.sin(math.radians(a))) for a in range(0, 181, 15)]
        hem = [(-0.24, 0.34), (-0.12, 0.3), (0, 0.34), (0.12, 0.3), (0.24, 0.34)]
        pen.polygon(arc + hem, color)
        pen.polygon([arc[4], arc[6], arc[8], (-0.12, 0.3), (0, 0.34), (0.12, 0.3)], shade(color, 1.35))
        pen.line([(0, 0.53), (0, 0.58)], 0.02, BLACK)
    else:  # closed, grip at the origin, tip below
        pen.line([(0.06, 0.01), (0.03, 0.05), (0, 0.02), (0, -0.08)], 0.024, (84, 50, 30))
        pen.polygon(
            [(-0.028, -0.06), (0.028, -0.06), (0.05, -0.12), (0.012, -0.4), (-0.012, -0.4), (-0.05, -0.12)], color
        )
        pen.line([(0, -0.4), (0, -0.44)], 0.014, BLACK)


DRAWINGS: dict[str, Callable[..., None]] = {
    draw.__name__[1:]: draw
    for draw in (
        _bicycle, _chair, _dog, _horse, _bench, _book, _cell_phone, _cup, _kite, _skateboard, _sports_ball, _umbrella,
    )
}  # fmt: skip
"""How each object is drawn, by its name."""
