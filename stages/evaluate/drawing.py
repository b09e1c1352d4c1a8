"""Predictions drawn into a copy of the picture itself."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from stages.evaluate.pictures import Pair, numbered

LONGEST = 960
"""Pixels of the longer side: small pictures are enlarged so that labels can be read."""


def drawn(picture: Image.Image, pairs: Sequence[Pair]) -> Image.Image:
    """An RGB copy with each pair's human box (solid), object box (thin) and a line between, and under it the list of verbs.

    Args:
        pairs: best first; boxes in pixels of ``picture``.
    """
    scale = LONGEST / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    lines = numbered(pairs)
    font = ImageFont.load_default(18)
    row = 26
    canvas = Image.new("RGB", (size[0], size[1] + row * len(lines) + (8 if lines else 0)), "white")
    canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for line in reversed(lines):
        human, thing = ([scale * edge for edge in box] for box in (line.pair.human_box, line.pair.object_box))
        for colour, width in (("#101418", 5), (line.colour, 3)):
            pen.rectangle(human, outline=colour, width=width)
            pen.rectangle(thing, outline=colour, width=width - 1)
            pen.line([*_middle(human), *_middle(thing)], fill=colour, width=width - 1)
        pen.rectangle([human[0], human[1], human[0] + 24, human[1] + 24], fill=line.colour)
        pen.text((human[0] + 6, human[1] + 2), str(line.number), fill="black", font=font)
    for position, line in enumerate(lines):
        top = size[1] + 4 + row * position
        pen.rectangle([6, top + 2, 28, top + 22], fill=line.colour)
        pen.text((11, top + 2), str(line.number), fill="black", font=font)
        score = "" if line.pair.score is None else f"   {line.pair.score:.2f}"
        pen.text((36, top + 2), f"{line.pair.verb} {line.pair.object}{score}", fill="black", font=font)
    return canvas


def _middle(box: Sequence[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
