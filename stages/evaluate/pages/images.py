"""Images of the pages: encoded into the page, with human-object pairs drawn over them as SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from hoi_distill.stages.data.image import Frame, read_image
from hoi_distill.stages.evaluate.metrics.average_precision import iou

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
"""Okabe and Ito's colours, told apart with any common colour vision; one a pair, and pairs carry numbers besides."""
SAME = 0.5
"""IoU from which two boxes show the same person or object."""
LABELLED_FROM = 0.3
"""Score from which a detector's box is drawn with its label."""
_WIDTH = 360
"""Units of a drawing's width. It is shown at about this many pixels, so that text in it has its nominal size."""
_CHIP = 17.0
"""Height of a label."""


@dataclass(frozen=True)
class Pair:
    """A human, an object and the interaction of both, to be drawn.

    Attributes:
        human_box: xyxy pixels of the original image, zero-based half-open.
        object_box: in the same format.
        verb: the word to show.
        object: the word to show.
        score: of a prediction; None for an annotation.
        matched: whether a prediction is a true positive, or an annotated pair was found; None where nobody knows.
    """

    human_box: Sequence[float]
    object_box: Sequence[float]
    verb: str
    object: str
    score: float | None = None
    matched: bool | None = None


@dataclass(frozen=True)
class NumberedPair:
    """A line of the list under a drawing: ``number`` and ``colour`` are those of its boxes in the drawing."""

    number: int
    colour: str
    pair: Pair


def load_image(source: str | Path | np.ndarray | Image.Image, frame: Frame = "upright") -> Image.Image:
    """An RGB image of a file or another uri, in the frame of its dataset's boxes, of a ``uint8 [H, W, 3]`` array or PIL's."""
    if isinstance(source, np.ndarray):
        return Image.fromarray(source).convert("RGB")
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    return read_image(source, frame)


def data_uri(image: Image.Image, longest: int = 640, quality: int = 85, lossless: int = 160) -> str:
    """The image as a ``data:`` address.

    Args:
        image: RGB.
        longest: pixels of a side, at most.
        quality: of a JPEG.
        lossless: pixels of a side up to which it is a PNG instead.
    """
    image = image.copy()
    image.thumbnail((longest, longest))
    small = max(image.size) <= lossless
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True) if small else image.save(buffer, "JPEG", quality=quality)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def numbered(pairs: Sequence[Pair], beside: Sequence[NumberedPair] = ()) -> list[NumberedPair]:
    """Number the pairs; verbs of the same two boxes share number and colour.

    Args:
        pairs: to be numbered, in this order.
        beside: the numbered pairs of another drawing of the image. A pair takes the number of the pair there that both
            of its boxes lie on, from an IoU of :data:`SAME`. The others count on from the last number there.
    """
    numbers: dict[tuple[float, ...], int] = {}
    free = {line.number: line.pair for line in reversed(beside)}
    last = max(free, default=0)
    lines = []
    for pair in pairs:
        boxes = (*map(float, pair.human_box), *map(float, pair.object_box))
        if boxes not in numbers:
            near = {number: _overlap(pair, other) for number, other in free.items()}
            number = max(near, key=lambda number: (near[number], -number), default=0)
            if near.get(number, 0) < SAME:
                number = last = last + 1
            free.pop(number, None)
            numbers[boxes] = number
        lines.append(NumberedPair(numbers[boxes], PALETTE[(numbers[boxes] - 1) % len(PALETTE)], pair))
    return lines


def _overlap(pair: Pair, other: Pair) -> float:
    """The smaller of the IoUs of humans and objects; of two pairs without an object that of the humans."""
    human, obj = (
        float(iou(np.array([a], float), np.array([b], float))[0])
        for a, b in ((pair.human_box, other.human_box), (pair.object_box, other.object_box))
    )
    return human if not (np.any(pair.object_box) or np.any(other.object_box)) else min(human, obj)


def draw_pairs(uri: str, size: tuple[int, int], lines: Sequence[NumberedPair], alt: str, *, name: str = "") -> Markup:
    """Draw an image with its pairs: human boxes solid, object boxes dashed, a line between, number and verbs beside it.

    Args:
        uri: from :func:`data_uri`; or "#" and the name of an image that another drawing of the page holds.
        size: (width, height) of the *original* image, to which the boxes refer.
        lines: the numbered pairs.
        alt: description of the drawing.
        name: by which other drawings of the page may show this one's image.
    """
    scale = _WIDTH / size[0]
    height = size[1] * scale
    shapes: list[str] = []
    chips: list[str] = []
    taken: list[tuple[float, float, float]] = []
    drawn: list[np.ndarray] = []
    for number in dict.fromkeys(line.number for line in lines):
        same = [line for line in lines if line.number == number]
        human, obj = (np.asarray(box, float) * scale for box in (same[0].pair.human_box, same[0].pair.object_box))
        human, obj = _step_inside(human, drawn), _step_inside(obj, drawn)
        shapes.append(_boxes(human, obj, same[0].colour))
        text = _said(number, list(dict.fromkeys(line.pair.verb for line in same)))
        chip = _place(text, human, obj, height, taken)
        taken.append(chip)
        chips.append(_chip(text, chip, same[0].colour))
    return Markup(  # texts are escaped in _chip and here
        f'<svg class="picture" viewBox="0 0 {_WIDTH} {height:.1f}" role="img" aria-label="{escape(alt)}">'
        f"{_image(uri, height, name)}"
        f"{''.join(shapes)}{''.join(chips)}</svg>"
    )


def _image(uri: str, height: float, name: str = "") -> str:
    """The image of a drawing, or another drawing's again."""
    if uri.startswith("#"):
        return f'<use href="{uri}"/>'
    named = f' id="{name}"' if name else ""
    return f'<image{named} href="{escape(uri)}" width="{_WIDTH}" height="{height:.1f}" preserveAspectRatio="none"/>'


def draw_boxes(uri: str, size: tuple[int, int], boxes: Sequence[Mapping[str, Any]], alt: str) -> Markup:
    """A detector's boxes over an image, the label and score of each at its corner; faint where the score is low.

    Args:
        uri: the image's address, as in :func:`draw_pairs`.
        size: (width, height) of the original, to which the boxes refer.
        boxes: ``box`` (xyxy pixels), ``score`` and ``label`` (words) of each, best first.
        alt: a description.
    """
    scale = _WIDTH / size[0]
    height = size[1] * scale
    shapes = []
    for number, each in reversed(list(enumerate(boxes))):
        x1, y1, x2, y2 = (scale * edge for edge in each["box"])
        colour, strength = PALETTE[number % len(PALETTE)], min(1.0, 0.25 + each["score"])
        outline = f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" '
        shapes.append(f'{outline}stroke="#101418" stroke-width="3" stroke-opacity="{0.5 * strength:.2f}"/>')
        shapes.append(f'{outline}stroke="{colour}" stroke-width="1.6" stroke-opacity="{strength:.2f}"/>')
        if each["score"] >= LABELLED_FROM:
            text, top = f"{each['label']} {each['score']:.2f}", min(max(y1 + 10, 10), height - 2)
            left = max(2.0, min(x1 + 2, _WIDTH - 11 / 12 * _text_width(text)))
            shapes.append(
                f'<text x="{left:.1f}" y="{top:.1f}" class="boxed" paint-order="stroke" stroke="#101418" '
                f'stroke-width="2.5" fill="#fff">{escape(text)}</text>'
            )
    return Markup(  # texts are escaped above and here
        f'<svg class="picture" viewBox="0 0 {_WIDTH} {height:.1f}" role="img" aria-label="{escape(alt)}">'
        f"{_image(uri, height)}{''.join(shapes)}</svg>"
    )


def _step_inside(box: np.ndarray, drawn: list[np.ndarray]) -> np.ndarray:
    """A box that another pair shares is drawn a little inside it, so that both colours are seen."""
    times = sum(np.allclose(box, other) for other in drawn)
    drawn.append(box)
    inset = min(4.0 * times, *((box[2:] - box[:2]) / 3))
    return box + np.array([inset, inset, -inset, -inset])


def _boxes(human: np.ndarray, obj: np.ndarray, colour: str) -> str:
    """Both boxes and the line between their middles, over a dark edge that shows on light and dark images alike."""
    (hx, hy), (ox, oy) = (human[:2] + human[2:]) / 2, (obj[:2] + obj[2:]) / 2
    drawn = []
    for stroke, width in (("#101418", 4), (colour, 2)):
        for box, dash in ((human, ""), (obj, ' stroke-dasharray="6 4"')):
            x1, y1, x2, y2 = box
            drawn.append(
                f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" rx="2" fill="none" '
                f'stroke="{stroke}" stroke-width="{width}" stroke-opacity="{0.55 if width == 4 else 1}"{dash}/>'
            )
        drawn.append(f'<path d="M{hx:.1f} {hy:.1f}L{ox:.1f} {oy:.1f}" stroke="{stroke}" stroke-width="{width - 0.5}"/>')
        drawn.append(f'<circle cx="{ox:.1f}" cy="{oy:.1f}" r="{width / 2 + 1.5}" fill="{stroke}"/>')
    return "".join(drawn)


def _place(
    text: str, human: np.ndarray, obj: np.ndarray, height: float, taken: list[tuple[float, float, float]]
) -> tuple[float, float, float]:
    """(x, y, width) of a chip: the first place about its pair that lies inside the image and on no other chip."""
    width = min(_text_width(text) + 10, _WIDTH - 4.0)
    wished = [
        (box[0], y)
        for box, ys in ((human, (human[1] - _CHIP, human[3], human[1] + 2)), (obj, (obj[1] - _CHIP, obj[3])))
        for y in ys
    ]
    wished += [(human[0], human[1] + _CHIP * k) for k in range(1, 40)] + [(human[0], _CHIP * k) for k in range(40)]
    inside = [(min(max(x, 2.0), _WIDTH - width - 2), min(max(y, 2.0), height - _CHIP - 2)) for x, y in wished]
    for x, y in inside:
        if all(x + width < a or a + w < x or abs(y - b) >= _CHIP for a, b, w in taken):
            return x, y, width
    return *inside[0], width


def _said(number: int, verbs: Sequence[str]) -> str:
    """What a chip says: as many verbs as have room in it."""
    for kept in range(len(verbs), 1, -1):
        text = f"{number} " + ", ".join(verbs[:kept]) + (" …" if kept < len(verbs) else "")
        if _text_width(text) <= _WIDTH - 14:
            return text
    text = f"{number} {verbs[0]}{' …' if len(verbs) > 1 else ''}"
    return text if _text_width(text) <= _WIDTH - 14 else f"{number} {verbs[0][: int((_WIDTH - 50) / 12.6)]}…"


def _text_width(text: str) -> float:
    """Room for bold 12-unit text in the widest of the fonts that the page may find (DejaVu Sans)."""
    narrow, middling, wide = "ijl,.;:'|! ", "tfr-()[]", "mwMW@%<>&"
    widths = {**dict.fromkeys(narrow, 4.7), **dict.fromkeys(middling, 6.0), **dict.fromkeys(wide, 12.6)}
    return sum(widths.get(character, 8.6) for character in text)


def _chip(text: str, place: tuple[float, float, float], colour: str) -> str:
    x, y, width = place
    ink = "#ffffff" if colour == "#0072B2" else "#101418"
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_CHIP - 1}" rx="3" fill="{colour}"/>'
        f'<text x="{x + 5:.1f}" y="{y + 12:.1f}" fill="{ink}" class="chip">{escape(text)}</text>'
    )
