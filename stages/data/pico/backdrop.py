"""Behind and before people: rooms, streets, and things that hide a part of the scene. All in canvas pixels."""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from hoi_distill.stages.data.pico.figure import vivid
from hoi_distill.stages.data.pico.sketch import Color, shade


def _muted(rng: random.Random, low: int, high: int) -> Color:
    base = rng.randint(low, high)
    return base + rng.randint(-14, 14), base + rng.randint(-14, 14), base + rng.randint(-14, 14)


def paint_backdrop(
    image: Image.Image, rng: random.Random, *, plain: bool, horizon: tuple[float, float] = (0.46, 0.62)
) -> float:
    """Fill the square canvas.

    Args:
        image: The canvas.
        rng: All randomness comes from it.
        plain: Leave two bare areas.
        horizon: How far down it lies, as shares of the canvas: at least and at most.

    Returns:
        The y of the horizon, canvas pixels.
    """
    draw = ImageDraw.Draw(image)
    size = image.width
    level = size * rng.uniform(*horizon)
    outdoor = rng.random() < 0.65
    if outdoor:
        _sky(draw, rng, size, level)
        ground = rng.choice(
            ((96, 140, 76), (70, 112, 66), (150, 148, 144), (124, 122, 122), (176, 158, 122), (110, 98, 84))
        )
    else:
        draw.rectangle((0, 0, size, level), fill=_muted(rng, 150, 225))
        ground = rng.choice(((150, 116, 84), (126, 96, 70), (150, 140, 130), (110, 106, 116), (176, 150, 118)))
    ground = shade(ground, rng.uniform(0.8, 1.15))
    draw.rectangle((0, level, size, size), fill=ground)
    if plain:
        return level
    if outdoor:
        _street(draw, rng, size, level, ground)
    else:
        _room(draw, rng, size, level, ground)
    return level


def _sky(draw: ImageDraw.ImageDraw, rng: random.Random, size: int, horizon: float) -> None:
    top = rng.choice(
        ((104, 170, 230), (130, 190, 240), (150, 160, 176), (190, 205, 220), (232, 178, 140), (80, 110, 180))
    )
    bands = 8
    for band in range(bands):
        y = horizon * band / bands
        draw.rectangle((0, y, size, horizon), fill=shade(top, 1 + 0.035 * band))


def _street(draw: ImageDraw.ImageDraw, rng: random.Random, size: int, horizon: float, ground: Color) -> None:
    if rng.random() < 0.5:
        x, y, r = rng.uniform(0, size), rng.uniform(6, 40), rng.uniform(9, 16)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 232, 140))
    for _ in range(rng.randint(0, 3)):
        x, y = rng.uniform(0, size), rng.uniform(8, 70)
        draw.ellipse((x - 22, y - 6, x + 22, y + 6), fill=(244, 246, 250))
        draw.ellipse((x - 12, y - 11, x + 10, y + 5), fill=(244, 246, 250))
    for _ in range(rng.randint(0, 3)):
        _building(draw, rng, rng.uniform(-20, size), horizon)
    for _ in range(rng.randint(0, 3)):
        _tree(draw, rng, rng.uniform(0, size), horizon + rng.uniform(-2, 12))
    if rng.random() < 0.25:
        wood = rng.choice(((230, 230, 226), (140, 104, 72)))
        for x in range(0, size + 1, 16):
            draw.rectangle((x - 2, horizon - 20, x + 2, horizon + 3), fill=wood)
        for y in (horizon - 15, horizon - 6):
            draw.rectangle((0, y - 2, size, y + 1), fill=wood)
    if rng.random() < 0.35:
        x = rng.uniform(0.2, 0.8) * size
        draw.polygon([(x - 12, horizon), (x + 12, horizon), (x + 100, size), (x - 100, size)], fill=shade(ground, 0.84))
    for _ in range(rng.randint(2, 9)):
        x, y = rng.uniform(0, size), rng.uniform(horizon + 8, size)
        draw.ellipse((x - 5, y - 2, x + 5, y + 2), fill=shade(ground, rng.choice((0.8, 1.15))))


def _building(draw: ImageDraw.ImageDraw, rng: random.Random, x: float, horizon: float) -> None:
    width, height = rng.uniform(26, 56), rng.uniform(30, 0.95 * horizon)
    wall = _muted(rng, 100, 190)
    draw.rectangle((x, horizon - height, x + width, horizon), fill=wall)
    pane = shade(wall, rng.choice((0.65, 1.35)))
    for wx in range(int(x) + 5, int(x + width) - 6, 12):
        for wy in range(int(horizon - height) + 6, int(horizon) - 10, 14):
            draw.rectangle((wx, wy, wx + 5, wy + 7), fill=pane)


def _tree(draw: ImageDraw.ImageDraw, rng: random.Random, x: float, y: float) -> None:
    h = rng.uniform(40, 100)
    leaf = shade(rng.choice(((52, 118, 56), (84, 140, 58), (40, 92, 60), (170, 130, 50))), rng.uniform(0.8, 1.15))
    draw.rectangle((x - 3, y - 0.45 * h, x + 3, y), fill=(98, 70, 48))
    if rng.random() < 0.4:
        for k in (0, 1):
            half, low = 0.3 * h - 5 * k, y - (0.2 + 0.3 * k) * h
            draw.polygon([(x - half, low), (x + half, low), (x, y - (0.75 + 0.25 * k) * h)], fill=leaf)
    else:
        r = 0.3 * h
        draw.ellipse((x - r, y - h, x + r, y - h + 2 * r), fill=leaf)
        draw.ellipse((x - 0.5 * r, y - 0.95 * h, x + 0.3 * r, y - 0.95 * h + 0.8 * r), fill=shade(leaf, 1.12))


def _room(draw: ImageDraw.ImageDraw, rng: random.Random, size: int, horizon: float, ground: Color) -> None:
    if rng.random() < 0.5:
        x, w = rng.uniform(0, size - 70), rng.uniform(40, 70)
        draw.rectangle((x, 14, x + w, horizon - 26), fill=(240, 240, 236))
        draw.rectangle((x + 4, 18, x + w - 4, horizon - 30), fill=rng.choice(((168, 208, 240), (60, 70, 110))))
        draw.rectangle((x + w / 2 - 2, 18, x + w / 2 + 2, horizon - 30), fill=(240, 240, 236))
    for _ in range(rng.randint(0, 3)):
        x, y, w, h = rng.uniform(0, size - 30), rng.uniform(6, 50), rng.uniform(16, 40), rng.uniform(14, 32)
        draw.rectangle((x, y, x + w, y + h), fill=(70, 50, 36))
        draw.rectangle((x + 3, y + 3, x + w - 3, y + h - 3), fill=shade(vivid(rng), 0.8))
    if rng.random() < 0.5:
        x, w, h = rng.uniform(0, size - 40), rng.uniform(26, 50), rng.uniform(20, 60)
        wood = rng.choice(((110, 78, 52), (84, 92, 104), (176, 150, 116)))
        draw.rectangle((x, horizon - h, x + w, horizon + 6), fill=wood)
        for y in range(int(horizon - h) + 10, int(horizon), 16):
            draw.rectangle((x + 3, y, x + w - 3, y + 2), fill=shade(wood, 0.6))
    draw.rectangle((0, horizon - 3, size, horizon + 1), fill=shade(ground, 0.7))
    if rng.random() < 0.4:
        x, y = rng.uniform(60, size - 60), rng.uniform(horizon + 20, size - 16)
        rug = shade(vivid(rng), 0.75)
        draw.ellipse((x - 80, y - 15, x + 80, y + 15), fill=rug)
        draw.ellipse((x - 64, y - 11, x + 64, y + 11), fill=shade(rug, 1.25))
    elif rng.random() < 0.5:
        for y in range(int(horizon) + 12, size, 14):
            draw.line((0, y, size, y), fill=shade(ground, 0.88), width=1)


def paint_occluder(image: Image.Image, rng: random.Random) -> None:
    """Something thin or low before everybody: a bush, a post, a low rail or a box."""
    draw = ImageDraw.Draw(image)
    size = image.width
    kind = rng.randrange(4)
    x = rng.uniform(0, size)
    if kind == 0:
        leaf = rng.choice(((44, 98, 52), (70, 120, 60)))
        for dx in (-18, 0, 17):
            r = rng.uniform(13, 20)
            draw.ellipse((x + dx - r, size - r - 6, x + dx + r, size + r), fill=shade(leaf, rng.uniform(0.85, 1.15)))
    elif kind == 1:
        draw.rectangle((x - 4, rng.uniform(20, 90), x + 4, size - rng.uniform(0, 16)), fill=_muted(rng, 70, 130))
    elif kind == 2:
        y = size - rng.uniform(14, 34)
        draw.rectangle((0, y, size, y + 5), fill=_muted(rng, 90, 180))
        for post in range(int(x) % 60, size, 60):
            draw.rectangle((post, y, post + 5, size), fill=_muted(rng, 90, 180))
    else:
        h = rng.uniform(16, 34)
        box = rng.choice(((170, 126, 80), (120, 124, 130), (150, 80, 70)))
        draw.rectangle((x - 20, size - h, x + 20, size), fill=box)
        draw.rectangle((x - 3, size - h, x + 3, size), fill=shade(box, 0.8))
