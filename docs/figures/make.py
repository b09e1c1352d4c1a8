"""Draw the figures of this folder again: ``.venv/bin/python docs/figures/make.py``.

``pico_scenes.png``: test pictures of the pico world with their annotated pairs. Deterministic; a few seconds.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from stages.data.coco import COCO_OBJECTS
from stages.data.pico.render import Scene, render_scene
from stages.data.pico.world import TEMPER, scene_seed
from stages.data.vocabulary import NO_INTERACTION
from stages.evaluate.drawing import drawn
from stages.evaluate.pictures import Pair

COLUMNS, ROWS = 4, 2
WIDTH = 400
"""Pixels of a column."""
GAP = 16
PAIRS = 2, 4
"""A shown scene has so many triplets, at least and at most: enough to see, few enough to read."""


def scenes() -> list[Scene]:
    """The first pictures of the default world's test split whose triplets fill a place without crowding it."""
    found: list[Scene] = []
    index = 0
    while len(found) < COLUMNS * ROWS:
        scene = render_scene(scene_seed(0, "test", index), temper=TEMPER["test"])
        if PAIRS[0] <= len(pairs(scene)) <= PAIRS[1]:
            found.append(scene)
        index += 1
    return found


def pairs(scene: Scene) -> list[Pair]:
    """Every annotated triplet that is an interaction."""
    return [
        Pair(scene.boxes[human].tolist(), scene.boxes[thing].tolist(), words(verb), words(name))
        for human, thing, verbs in scene.pairs
        for verb in verbs
        for name in (COCO_OBJECTS[scene.objects[thing]],)
        if verb != NO_INTERACTION
    ]


def words(name: str) -> str:
    return name.replace("_", " ")


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width in a grid, aligned at the top of their row."""
    rows = [pictures[start : start + COLUMNS] for start in range(0, len(pictures), COLUMNS)]
    heights = [max(picture.height for picture in row) for row in rows]
    size = COLUMNS * (WIDTH + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1)
    canvas = Image.new("RGB", size, "white")
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            canvas.paste(picture, (GAP + column * (WIDTH + GAP), top))
        top += height + GAP
    return canvas


def main() -> None:
    found = [drawn(Image.fromarray(scene.image), pairs(scene)) for scene in scenes()]
    small = [p.resize((WIDTH, round(p.height * WIDTH / p.width)), Image.Resampling.LANCZOS) for p in found]
    target = Path(__file__).with_name("pico_scenes.png")
    sheet(small).quantize(256, Image.Quantize.MEDIANCUT).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
