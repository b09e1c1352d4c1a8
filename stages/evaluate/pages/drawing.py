"""Predictions drawn into a copy of the image itself."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from hoi_distill.stages.evaluate.pages.images import PALETTE, Pair, numbered

LONGEST = 960
"""Pixels of the longer side: small images are enlarged so that labels can be read."""
ROW = 26
"""Pixels of a line of the list."""
DASH, GAP = 10.0, 7.0
EDGE = "#101418"


def drawn(image: Image.Image, pairs: Sequence[Pair]) -> Image.Image:
    """Draw pairs into an RGB copy of an image.

    A pair is its human box (solid), its object box (dashed) and a line between their middles that ends in a dot at the
    object. Under the image are a legend and the list of verbs. A pair whose two boxes are equal has no object.

    Args:
        image: the original.
        pairs: best first; boxes in pixels of ``image``.
    """
    scale = LONGEST / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    lines = numbered(pairs)
    font = ImageFont.load_default(18)
    canvas = Image.new("RGB", (size[0], size[1] + ROW * (len(lines) + 1) + 8), "white")
    canvas.paste(image.resize(size, Image.Resampling.LANCZOS), (0, 0))
    pen = ImageDraw.Draw(canvas)
    for line in reversed(lines):
        human, obj = ([scale * edge for edge in box] for box in (line.pair.human_box, line.pair.object_box))
        _mark(pen, human, obj, line.colour)
        pen.rectangle([human[0], human[1], human[0] + 24, human[1] + 24], fill=line.colour)
        pen.text((human[0] + 6, human[1] + 2), str(line.number), fill="black", font=font)
    _legend(pen, size[1] + 4, font, bool(lines))
    for position, line in enumerate(lines, 1):
        top = size[1] + 4 + ROW * position
        pen.rectangle([6, top + 2, 28, top + 22], fill=line.colour)
        pen.text((11, top + 2), str(line.number), fill="black", font=font)
        score = "" if line.pair.score is None else f"   {line.pair.score:.2f}"
        pen.text((36, top + 2), f"{line.pair.verb} {line.pair.object}{score}", fill="black", font=font)
    return canvas


def marked(image: Image.Image, pairs: Sequence[Pair], numbers: Sequence[int]) -> Image.Image:
    """Draw pairs into an RGB copy of a video's frame, which keeps its size.

    Boxes are as :func:`drawn` has them. What a person does stands at the person's box, and a person keeps number and colour.

    Args:
        image: the frame.
        pairs: best first; boxes in pixels of ``image``.
        numbers: of each pair's person, from 1.
    """
    canvas = image.copy()
    pen = ImageDraw.Draw(canvas)
    size = max(10, round(max(image.size) / 60))
    font, said = ImageFont.load_default(size), dict[int, int]()
    for pair, number in reversed(list(zip(pairs, numbers, strict=True))):
        _mark(pen, list(pair.human_box), list(pair.object_box), PALETTE[(number - 1) % len(PALETTE)])
    for pair, number in zip(pairs, numbers, strict=True):
        left, top = pair.human_box[0], pair.human_box[1] + said.get(number, 0) * (size + 4)
        said[number] = said.get(number, 0) + 1
        score = "" if pair.score is None else f" {pair.score:.2f}"
        text = f"{number} {pair.verb} {pair.object}{score}"
        edges = pen.textbbox((left + 3, top + 1), text, font=font)
        pen.rectangle([left, top, edges[2] + 3, top + size + 4], fill=PALETTE[(number - 1) % len(PALETTE)])
        pen.text((left + 3, top + 1), text, fill="black", font=font)
    return canvas


def _mark(pen: ImageDraw.ImageDraw, human: list[float], obj: list[float], own: str) -> None:
    """A pair's boxes and the line between them, over a dark edge that shows on light and dark images alike."""
    for colour, width in ((EDGE, 5), (own, 3)):
        pen.rectangle(human, outline=colour, width=width)
        if human != obj:
            _dashed(pen, obj, colour, width)
            (x, y), (left, top) = _middle(human), _middle(obj)
            pen.line([x, y, left, top], fill=colour, width=width - 1)
            pen.ellipse([left - width - 2, top - width - 2, left + width + 2, top + width + 2], fill=colour)


def _legend(
    pen: ImageDraw.ImageDraw, top: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, some: bool
) -> None:
    """What solid and dashed boxes are."""
    if not some:
        pen.text((6, top + 2), "no interaction found", fill="black", font=font)
        return
    pen.rectangle([7, top + 4, 43, top + 20], outline=EDGE, width=3)
    pen.text((52, top + 2), "person", fill="black", font=font)
    _dashed(pen, [127, top + 4, 163, top + 20], EDGE, 3)
    pen.text((172, top + 2), "object", fill="black", font=font)


def _dashed(pen: ImageDraw.ImageDraw, box: Sequence[float], colour: str, width: int) -> None:
    """A rectangle of dashes of the same place whatever the width, so that one lies on the other."""
    x1, y1, x2, y2 = box
    sides = (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1)))
    for (ax, ay), (bx, by) in sides:
        length = max(abs(bx - ax), abs(by - ay))
        at = 0.0
        while at < length:
            a, b = at / length, min(at + DASH, length) / length
            pen.line([ax + a * (bx - ax), ay + a * (by - ay), ax + b * (bx - ax), ay + b * (by - ay)], colour, width)
            at += DASH + GAP


def _middle(box: Sequence[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
