"""Draw the figures of this folder again: ``.venv/bin/python docs/figures/make.py``.

``pico_scenes.png``: test pictures of the pico world with their annotated pairs. Deterministic; a few seconds.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.pico.render import SIZE, Scene, render_scene
from hoi_distill.stages.data.pico.world import TEMPER, scene_seed
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.evaluate.pages.pictures import NumberedPair, Pair, numbered

COLUMNS, ROWS = 4, 2
SCALE = 3
"""Pictures are enlarged so many times, pixel by pixel."""
GAP = 16
LINE = 26
"""Pixels of a line of text."""
PAIRS = 2, 4
"""A shown scene has so many triplets, at least and at most: enough to see, few enough to read."""


def scenes() -> list[Scene]:
    """The first pictures of the default world's test split whose triplets fill a place without crowding it."""
    found: list[Scene] = []
    index = 0
    while len(found) < COLUMNS * ROWS:
        scene = render_scene(scene_seed(0, "test", index), temper=TEMPER["test"])
        if PAIRS[0] <= len(triplets(scene)) <= PAIRS[1]:
            found.append(scene)
        index += 1
    return found


def triplets(scene: Scene) -> list[NumberedPair]:
    """Every annotated triplet that is an interaction."""
    pairs = []
    for human, thing, verbs in scene.pairs:
        name = COCO_OBJECTS[scene.objects[thing]].replace("_", " ")
        boxes = (SCALE * scene.boxes[human]).tolist(), (SCALE * scene.boxes[thing]).tolist()
        pairs += [Pair(*boxes, verb.replace("_", " "), name) for verb in verbs if verb != NO_INTERACTION]
    return numbered(pairs)


def annotated(scene: Scene) -> Image.Image:
    """The enlarged picture, both boxes of every pair in its colour with a line between, and the triplets under it."""
    side = SCALE * SIZE
    canvas = Image.new("RGB", (side, side + 6 + LINE * PAIRS[1]), "white")
    canvas.paste(Image.fromarray(scene.image).resize((side, side), Image.Resampling.NEAREST), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(20)
    lines = triplets(scene)
    for line in lines:
        human, thing = line.pair.human_box, line.pair.object_box
        middles = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (human, thing)]
        for colour, width in (("#101418", 5), (line.colour, 3)):
            pen.rectangle(list(human), outline=colour, width=width)
            pen.rectangle(list(thing), outline=colour, width=width - 1)
            pen.line(middles, fill=colour, width=width - 1)
    for place, line in enumerate(lines):
        top = side + 6 + LINE * place
        for x, y in (line.pair.human_box[:2], (0, top)):
            pen.rectangle([x, y, x + 22, y + 22], fill=line.colour)
            pen.text((x + 5, y - 1), str(line.number), fill="black", font=font)
        pen.text((30, top - 1), f"{line.pair.verb} {line.pair.object}", fill="black", font=font)
    return canvas


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one size in a grid."""
    width, height = pictures[0].width + GAP, pictures[0].height + GAP
    canvas = Image.new("RGB", (COLUMNS * width + GAP, ROWS * height + GAP), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, COLUMNS)
        canvas.paste(picture, (GAP + column * width, GAP + row * height))
    return canvas


def main() -> None:
    """Draw the figures."""
    target = Path(__file__).with_name("pico_scenes.png")
    sheet([annotated(scene) for scene in scenes()]).save(target, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
