"""Images as a browser gets them: decoded here and encoded anew, so that no byte of a file reaches the page as it is."""

from __future__ import annotations

import functools
import io

from markupsafe import Markup, escape
from PIL import Image

from hoi_distill.pipeline.viewer.entries import Entries
from hoi_distill.pipeline.viewer.looks import Looked
from hoi_distill.stages.data.image import read_image

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


def draw_attention(uri: str, size: tuple[int, int], over: str, looked: Looked, alt: str) -> Markup:
    """An image with an attention over it, and the boxes of the pair that it is of: the human's solid, the object's dashed.

    Args:
        uri: the image's address.
        size: (width, height) of the original, to which the boxes refer.
        over: the address of the attention's drawing.
        looked: the pair.
        alt: a description.
    """
    width, height = size
    boxes = [
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" class="{kind}"/>'
        for kind, (x1, y1, x2, y2) in (("human", looked.human_box), ("object", looked.object_box))
    ]
    image = f'width="{width}" height="{height}" preserveAspectRatio="none"/>'
    return Markup(  # texts are escaped here
        f'<svg class="picture look" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">'
        f'<image href="{escape(uri)}" {image}<image class="over" href="{escape(over)}" {image}{"".join(boxes)}</svg>'
    )
