"""Images as a browser gets them: decoded here and encoded anew, so that no byte of a file reaches the page as it is."""

from __future__ import annotations

import functools
import io

from PIL import Image

from hoi_distill.pipeline.viewer.entries import Entries
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
