"""Draw the figures of this folder again: ``.venv/bin/python docs/figures/make.py [RUN]``.

``pico_scenes.png``: test images of the pico world with their annotated pairs. Deterministic; a few seconds.
``crowd_twins.png``: scenes of the crowd above their twins, with the acts of each; in a twin one act has another target.
``photo_boxes.jpg``: what a real detector found in the photographs of ``docs/photos``, by its ``boxes.json``.
``pico_predictions.png``: the same images with what the student of a run found in them (RUN, such as ``runs/pico/latest``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from hoi_distill.stages.data.coco import COCO_OBJECTS, labels_of_categories
from hoi_distill.stages.data.crowd.plan import plan_split, twins
from hoi_distill.stages.data.crowd.render import CrowdScene, render_crowd
from hoi_distill.stages.data.image import decode
from hoi_distill.stages.data.pico.render import Scene, render_scene
from hoi_distill.stages.data.pico.world import TEMPER, pico_vocabulary, scene_seed
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.evaluate.pages.images import PALETTE, NumberedPair, Pair, numbered

COLUMNS, ROWS = 4, 2
SCALE = 3
"""An image of the pico world is enlarged so many times, pixel by pixel."""
CROWD_SCALE = 2
"""The same of the crowd."""
CROWD_TWINS = 0, 1, 2, 15
"""The twins that are shown, by their place among those of the default crowd."""
GAP = 16
LINE = 26
"""Pixels of a line of text."""
PAIRS = 2, 4
"""A shown scene has so many triplets, at least and at most: enough to see, few enough to read."""
LEAST = 0.3
"""The score from which a prediction or a detector's box is drawn."""
PHOTOS = Path(__file__).parents[1] / "photos"
PHOTO = 420, 296
"""Pixels that a photograph has."""


def scenes() -> dict[str, Scene]:
    """By image id, the first images of the default world's test split whose triplets fill a place without crowding it."""
    found: dict[str, Scene] = {}
    index = 0
    while len(found) < COLUMNS * ROWS:
        scene = render_scene(scene_seed(0, "test", index), temper=TEMPER["test"])
        index += 1
        if PAIRS[0] <= len(annotated(scene)) <= PAIRS[1]:
            found[f"HICO_test2015_{index:08}.jpg"] = scene
    return found


def annotated(scene: Scene) -> list[NumberedPair]:
    """Every annotated triplet that is an interaction."""
    pairs = []
    for human, obj, verbs in scene.pairs:
        name = COCO_OBJECTS[scene.objects[obj]].replace("_", " ")
        boxes = (SCALE * scene.boxes[human]).tolist(), (SCALE * scene.boxes[obj]).tolist()
        pairs += [Pair(*boxes, verb.replace("_", " "), name) for verb in verbs if verb != NO_INTERACTION]
    return numbered(pairs)


def acts(scene: CrowdScene) -> list[NumberedPair]:
    """Every act of a scene of the crowd."""
    pairs = []
    for act in scene.relations:
        boxes = (CROWD_SCALE * scene.boxes[[act.human, act.object]]).tolist()
        pairs.append(Pair(*boxes, act.verb.replace("_", " "), act.name.replace("_", " ")))
    return numbered(pairs)


def crowd_twins() -> list[Image.Image]:
    """Scenes of the crowd, then their twins."""
    plans = plan_split(0, "test", 1000)
    rows = [twins(plans)[place] for place in CROWD_TWINS]
    shown = [render_crowd(plans[row]) for part in zip(*rows, strict=True) for row in part]
    return [drawn(scene.image, acts(scene), CROWD_SCALE) for scene in shown]


def predicted(run: Path, image_id: str) -> list[NumberedPair]:
    """The best triplets that a run found in an image, surest first, with their scores."""
    table = pq.read_table(run / "detections.parquet", filters=pc.field("image_id") == image_id)
    words = pico_vocabulary()
    pairs = []
    for row in sorted(table.to_pylist(), key=lambda row: -row["score"]):
        verb, name = words.hoi_name(row["hoi"])
        if row["score"] >= LEAST and verb != NO_INTERACTION and len(pairs) < PAIRS[1]:
            boxes = ((SCALE * np.array(row[key])).tolist() for key in ("human_box", "object_box"))
            pairs.append(Pair(*boxes, verb.replace("_", " "), f"{name.replace('_', ' ')}  {row['score']:.2f}"))
    return numbered(pairs)


def drawn(image: np.ndarray, lines: list[NumberedPair], scale: int = SCALE) -> Image.Image:
    """The enlarged image, both boxes of every pair in its colour with a line between, and the triplets under it."""
    side = scale * len(image)
    canvas = Image.new("RGB", (side, side + 6 + LINE * PAIRS[1]), "white")
    canvas.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (0, 0))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(20)
    for line in lines:
        human, obj = line.pair.human_box, line.pair.object_box
        middles = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (human, obj)]
        for colour, width in (("#101418", 5), (line.colour, 3)):
            pen.rectangle(list(human), outline=colour, width=width)
            pen.rectangle(list(obj), outline=colour, width=width - 1)
            pen.line(middles, fill=colour, width=width - 1)
    for place, line in enumerate(lines):
        top = side + 6 + LINE * place
        for x, y in (line.pair.human_box[:2], (0, top)):
            pen.rectangle([x, y, x + 22, y + 22], fill=line.colour)
            pen.text((x + 5, y - 1), str(line.number), fill="black", font=font)
        pen.text((30, top - 1), f"{line.pair.verb} {line.pair.object}", fill="black", font=font)
    return canvas


def photos() -> list[Image.Image]:
    """Every photograph with its boxes, a colour for each object, and their names and scores."""
    found = json.loads((PHOTOS / "boxes.json").read_text())
    labels = labels_of_categories()
    return [
        with_boxes(decode(path.read_bytes()), [box for box in found if box["image_id"] == path.name], labels)
        for path in sorted(PHOTOS.glob("*.jpg"))
    ]


def with_boxes(photo: Image.Image, found: list[dict[str, Any]], labels: np.ndarray) -> Image.Image:
    """A photograph made smaller, with boxes of COCO's results format; the surest are on top."""
    scale = min(PHOTO[0] / photo.width, PHOTO[1] / photo.height)
    canvas = Image.new("RGB", PHOTO, "white")
    canvas.paste(photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for box in sorted((box for box in found if box["score"] >= LEAST), key=lambda box: box["score"]):
        label = int(labels[box["category_id"]])
        x, y, width, height = (scale * side for side in box["bbox"])
        colour, text = PALETTE[label % len(PALETTE)], f"{COCO_OBJECTS[label].replace('_', ' ')} {box['score']:.2f}"
        pen.rectangle([x, y, x + width, y + height], outline="#101418", width=3)
        pen.rectangle([x, y, x + width, y + height], outline=colour, width=2)
        left, top, right, bottom = pen.textbbox((x + 2, max(y - 12, 0)), text, font=font)
        pen.rectangle([left - 2, top - 1, right + 2, bottom + 1], fill=colour)
        pen.text((x + 2, max(y - 12, 0)), text, fill="black", font=font)
    return canvas


def sheet(images: list[Image.Image]) -> Image.Image:
    """Images of one size in a grid."""
    width, height = images[0].width + GAP, images[0].height + GAP
    canvas = Image.new("RGB", (COLUMNS * width + GAP, ROWS * height + GAP), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, COLUMNS)
        canvas.paste(image, (GAP + column * width, GAP + row * height))
    return canvas


def main() -> None:
    """Draw the scenes, and the predictions of a run where one is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="the folder of a run on the pico world")
    run = parser.parse_args().run
    shown = scenes()
    figures = {"pico_scenes.png": [drawn(scene.image, annotated(scene)) for scene in shown.values()]}
    figures["crowd_twins.png"] = crowd_twins()
    figures["photo_boxes.jpg"] = photos()
    if run is not None:
        figures["pico_predictions.png"] = [drawn(scene.image, predicted(run, name)) for name, scene in shown.items()]
    for name, images in figures.items():
        target = Path(__file__).with_name(name)
        canvas = sheet(images)
        if name == "crowd_twins.png":
            canvas = canvas.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)  # a third of the bytes
        canvas.save(target, optimize=True, quality=72)
        print(target)


if __name__ == "__main__":
    main()
