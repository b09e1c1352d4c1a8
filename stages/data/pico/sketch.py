"""A display list in units of one person's height, so that a group can be measured before it is placed and drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from PIL import ImageDraw

Point = tuple[float, float]
Color = tuple[int, int, int]

BACK, FAR, MIDDLE, BODY, HELD, NEAR, FRONT = range(7)
"""Painting order inside a group: far limbs, a vehicle between the legs, body, what is held, the near arm."""

_CIRCLE = [(math.cos(math.tau * i / 16), math.sin(math.tau * i / 16)) for i in range(16)]


class Extent:
    """Bounding box of everything drawn for one person or object, in its sketch's units (y up)."""

    __slots__ = ("name", "x1", "x2", "y1", "y2")

    def __init__(self, name: str) -> None:
        self.name = name
        self.x1 = self.y1 = math.inf
        self.x2 = self.y2 = -math.inf

    def cover(self, points: Iterable[Point], margin: float) -> None:
        """Grow to points with a margin around each."""
        for x, y in points:
            self.x1 = min(self.x1, x - margin)
            self.x2 = max(self.x2, x + margin)
            self.y1 = min(self.y1, y - margin)
            self.y2 = max(self.y2, y + margin)


class Sketch:
    """Shapes of one group. x forward, y up, origin on the ground, 1 = the height of a standing person."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, list[Point], float, Color]] = []  # layer, points, line width (0: polygon), colour
        self.extents: list[Extent] = []

    def entity(self, name: str) -> Extent:
        """The extent of a new person or object."""
        self.extents.append(Extent(name))
        return self.extents[-1]

    def span(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) over all entities, sketch units."""
        es = self.extents
        return min(e.x1 for e in es), min(e.y1 for e in es), max(e.x2 for e in es), max(e.y2 for e in es)

    def paint(self, draw: ImageDraw.ImageDraw, x: float, y: float, size: float, mirror: bool) -> None:
        """Draw with the origin at canvas pixel (x, y), one unit = `size` canvas pixels, mirrored to face left."""
        sx = -size if mirror else size
        for _, points, width, color in sorted(self.shapes, key=lambda shape: shape[0]):
            placed = [(x + sx * px, y - size * py) for px, py in points]
            if width == 0.0:
                draw.polygon(placed, fill=color)
                continue
            w = width * size
            if len(placed) > 1:
                draw.line(placed, fill=color, width=max(1, round(w)))
            if w > 2.5:
                r = w / 2
                for px, py in placed:
                    draw.ellipse((px - r, py - r, px + r, py + r), fill=color)


class Place(NamedTuple):
    """Where the frame of a pen lies in its sketch.

    Attributes:
        x: Of its origin, in the sketch's units.
        y: Of its origin, in the sketch's units.
        scale: The sketch's units in one of its own.
        turn: Degrees, counter-clockwise.
        flip: Whether it faces -x.
    """

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    turn: float = 0.0
    flip: bool = False


AT_ORIGIN = Place()


class Pen:
    """Draws for one entity in a frame of its own.

    Args:
        sketch: What is drawn on.
        extent: The entity's; None for scenery.
        place: Where the frame lies.
        layer: The painting order of shapes that have none of their own.
    """

    def __init__(self, sketch: Sketch, extent: Extent | None, place: Place = AT_ORIGIN, layer: int = BODY) -> None:
        self.sketch, self.extent, self.layer = sketch, extent, layer
        self.x, self.y, self.scale = place.x, place.y, place.scale
        turn = math.radians(place.turn)
        self.cos, self.sin = math.cos(turn) * place.scale, math.sin(turn) * place.scale
        self.sign = -1.0 if place.flip else 1.0

    def at(self, px: float, py: float) -> Point:
        """A local point in sketch units."""
        px *= self.sign
        return self.x + self.cos * px - self.sin * py, self.y + self.sin * px + self.cos * py

    def _add(self, points: Sequence[Point], width: float, color: Color, layer: int | None) -> None:
        placed = [self.at(px, py) for px, py in points]
        width *= self.scale
        if self.extent is not None:
            self.extent.cover(placed, width / 2)
        self.sketch.shapes.append((self.layer if layer is None else layer, placed, width, color))

    def line(self, points: Sequence[Point], width: float, color: Color, layer: int | None = None) -> None:
        """A stroke with round ends and joints."""
        self._add(points, width, color, layer)

    def polygon(self, points: Sequence[Point], color: Color, layer: int | None = None) -> None:
        """A filled polygon."""
        self._add(points, 0.0, color, layer)

    def disc(self, px: float, py: float, radius: float, color: Color, layer: int | None = None) -> None:
        """A filled circle."""
        self._add([(px, py)], 2 * radius, color, layer)

    def oval(self, center: Point, radii: Point, color: Color, layer: int | None = None) -> None:
        """A filled ellipse, its axes along those of the frame."""
        (px, py), (rx, ry) = center, radii
        self._add([(px + rx * c, py + ry * s) for c, s in _CIRCLE], 0.0, color, layer)


def shade(color: Color, factor: float) -> Color:
    """A darker (< 1) or lighter (> 1) colour."""
    return min(255, int(color[0] * factor)), min(255, int(color[1] * factor)), min(255, int(color[2] * factor))
