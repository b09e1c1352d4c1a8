"""Images as a browser gets them: decoded here and encoded anew, so that no byte of a file reaches the page as it is."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape
from PIL import Image

from hoi_distill.pipeline.viewer.entries import Entries
from hoi_distill.stages.data.image import read_image
from hoi_distill.stages.evaluate.pages.images import PALETTE

THUMB, LONGEST = 240, 1280
"""Pixels of the longer side of a grid's image, and of an image's page."""
KEPT = 512
"""Encoded grid images that stay in memory, about 10 kB each."""
SMALL = 160
"""Pixels up to which an image is sent without loss."""


class Encoded:
    """The images of a dataset, encoded for a page."""

    def __init__(self, entries: Entries) -> None:
        """
        Args:
            entries: the images.
        """
        self._entries = entries
        self.thumb = functools.lru_cache(maxsize=KEPT)(self._thumb)

    def _thumb(self, entry: int) -> tuple[bytes, str]:
        return self.encoded(entry, THUMB)

    def encoded(self, entry: int, longest: int) -> tuple[bytes, str]:
        """The bytes and media type of an image, in the frame of its boxes, at most ``longest`` pixels a side.

        Raises:
            OSError: the file cannot be read.
            InputFailure: it cannot be decoded.
        """
        annotations = self._entries.of(entry)
        image = read_image(annotations.path[int(self._entries.record[entry])], annotations.frame)
        return encode(image, longest)


def encode(image: Image.Image, longest: int = LONGEST) -> tuple[bytes, str]:
    """The bytes and media type of an image: PNG when small, JPEG otherwise."""
    image = image.convert("RGB")
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(buffer, "PNG")
        return buffer.getvalue(), "image/png"
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue(), "image/jpeg"


def png(image: Image.Image) -> bytes:
    """A drawn map, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def draw_boxes(uri: str, size: tuple[int, int], boxes: Sequence[Mapping[str, Any]], alt: str) -> Markup:
    """A detector's boxes over an image, the label and score of each at its corner; faint where the score is low.

    Args:
        uri: the image's address.
        size: (width, height) of the original, to which the boxes refer.
        boxes: of :func:`hoi_distill.pipeline.viewer.shown.boxes_of`.
        alt: a description.
    """
    width = 360
    scale = width / size[0]
    height = size[1] * scale
    shapes = []
    for number, each in reversed(list(enumerate(boxes))):
        x1, y1, x2, y2 = (scale * edge for edge in each["box"])
        colour, strength = PALETTE[number % len(PALETTE)], min(1.0, 0.25 + each["score"])
        outline = f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" '
        shapes.append(f'{outline}stroke="#101418" stroke-width="3" stroke-opacity="{0.5 * strength:.2f}"/>')
        shapes.append(f'{outline}stroke="{colour}" stroke-width="1.6" stroke-opacity="{strength:.2f}"/>')
        if each["score"] >= 0.3:
            text, top = f"{each['label']} {each['score']:.2f}", min(max(y1 + 10, 10), height - 2)
            shapes.append(
                f'<text x="{x1 + 2:.1f}" y="{top:.1f}" class="boxed" paint-order="stroke" stroke="#101418" '
                f'stroke-width="2.5" fill="#fff">{escape(text)}</text>'
            )
    return Markup(  # texts are escaped above and here
        f'<svg class="picture" viewBox="0 0 {width} {height:.1f}" role="img" aria-label="{escape(alt)}">'
        f'<image href="{escape(uri)}" width="{width}" height="{height:.1f}" preserveAspectRatio="none"/>'
        f"{''.join(shapes)}</svg>"
    )
