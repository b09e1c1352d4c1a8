"""Image files to RGB, strictly: what cannot be decoded right is refused with a reason. All images are opened here."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageFile

from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.errors import InputFailure
from hoi_distill.storage.files.uri import is_elsewhere, read_bytes

Frame = Literal["upright", "stored"]
"""Where pixels and boxes of a dataset are counted: in the image as EXIF says it is to be held, or in its raster as it is
stored. A dataset's reader declares it (:class:`hoi_distill.stages.data.annotations.Annotations`)."""

MIN_SIDE = 8
MAX_PIXELS = 100_000_000
"""Default limit: larger images are refused by their header, before any pixel is decoded. Decoding takes at most 8 bytes a
pixel beside the file, 0.8 GB of the largest."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""The only ones that are opened, whatever a file's name says: among the others that Pillow knows one starts a program (EPS).
A JPEG may hold several images (MPO)."""
_ORIENTATION = 0x0112  # EXIF tag
_TILE = (322, 323)  # TIFF tags: width and height of the tiles that an image is stored in
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TO_STORED = _TO_UPRIGHT | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_SWAPPED = (5, 6, 7, 8)
_BAND = 1 << 22  # pixels that are converted at once: what a conversion needs besides source and result stays small

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `max_pixels` decides here


class Header(NamedTuple):
    """What a file says before its pixels are decoded. All is zero if it is no image that can be opened.

    Attributes:
        width: Of the stored raster, pixels.
        height: Of the stored raster, pixels.
        orientation: EXIF's, 1 to 8. 1 if the file has none or an unknown one, 0 if its EXIF block cannot be read.
    """

    width: int
    height: int
    orientation: int

    def size(self, frame: Frame) -> tuple[int, int]:
        """(width, height) of what `decode` gives in that frame; (0, 0) where it gives nothing."""
        if frame == "upright" and not self.orientation:
            return 0, 0
        swapped = frame == "upright" and self.orientation in _SWAPPED
        return (self.height, self.width) if swapped else (self.width, self.height)


def open_image(source: str | Path | IO[bytes]) -> ImageFile.ImageFile:
    """``Image.open`` of the formats in :data:`FORMATS` alone.

    Raises:
        Exception: Of any kind, if the bytes are no such image.
    """
    return Image.open(source, formats=FORMATS)


def read_header(path: str | Path | IO[bytes]) -> Header:
    """The header of a file, of bytes, or of what lies at any other uri (:mod:`hoi_distill.storage.files.uri`); zeros where it
    cannot be opened."""
    try:
        if isinstance(path, str) and is_elsewhere(path):
            path = io.BytesIO(read_bytes(path))
        with open_image(path) as image:
            width, height = image.size
            if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(_ORIENTATION) in _SWAPPED:
                width, height = height, width  # Pillow has turned the size already
            try:
                return Header(width, height, _orientation(image, MAX_PIXELS))
            except Exception:  # noqa: BLE001 - damaged EXIF raises anything
                return Header(width, height, 0)
    except Exception:  # noqa: BLE001 - Pillow raises anything for bytes that are no image
        return Header(0, 0, 0)


def header_size(path: str | Path, frame: Frame = "upright") -> tuple[int, int]:
    """(width, height) of an image from its file's header, that of ``decode`` in the same frame; (0, 0) if unreadable."""
    return read_header(path).size(frame)


def decode(data: bytes, max_pixels: int = MAX_PIXELS, frame: Frame = "upright") -> Image.Image:
    """An image file's bytes as an RGB image.

    Transparency is laid on white, 16-bit grey is scaled to 8 (65535 to 255), palettes, CMYK and bilevel are converted. Of
    an animation the first frame is taken.

    Args:
        data: The bytes.
        max_pixels: Larger images are refused.
        frame: The frame in which the image is wanted.

    Raises:
        InputFailure: If the image is unreadable or cut short, has a side under ``MIN_SIDE`` pixels, or is too large.
    """
    image = _opened(data)
    _refuse_size(image, max_pixels)
    try:
        orientation = _orientation_in(image, max_pixels, frame)
        image.load()
        turned_by_pillow = image.format == "TIFF"
        if turned_by_pillow != (frame == "upright") and orientation > 1:
            image = image.transpose((_TO_STORED if turned_by_pillow else _TO_UPRIGHT)[orientation])
        return _to_rgb(image)
    except (InputFailure, MemoryError):
        raise
    except Exception as error:
        raise InputFailure(f"broken image: {error}") from error


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise InputFailure("empty file")
    try:
        return open_image(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise InputFailure(f"too large: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways; the bytes are in memory, so it is never the disk
        raise InputFailure("not an image in a known format") from error


def _refuse_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InputFailure(f"too large: {width} x {height} is over {max_pixels} pixels")
    tile = [side for tag in _TILE if isinstance(side := getattr(image, "tag_v2", {}).get(tag), int)]
    if math.prod(tile) > max_pixels:  # one is decoded whole, however little of it is in the image
        raise InputFailure(f"too large: stored in tiles of {' x '.join(map(str, tile))}, over {max_pixels} pixels")
    if min(width, height) < MIN_SIDE:
        raise InputFailure(f"too small: {width} x {height}; a side needs {MIN_SIDE} pixels")


def _orientation_in(image: Image.Image, max_pixels: int, frame: Frame) -> int:
    """The orientation as :func:`_orientation` has it; 0 for a broken EXIF block, if the raster is wanted as it is stored."""
    try:
        return _orientation(image, max_pixels)
    except Exception:
        if frame == "upright":
            raise
        return 0


def read_image(path: str | Path, frame: Frame) -> Image.Image:
    """The image of a file, or of what lies at any other uri, RGB.

    Raises:
        OSError: If it cannot be read.
        InputFailure: As :func:`decode` does.
    """
    return decode(read_bytes(str(path)), frame=frame)


def as_stored(digest: bytes) -> bytes:
    """16 bytes that name the stored raster of an image whose EXIF orientation turns it, from the digest of its file's bytes.

    The upright image goes by the digest itself, and so does an image without an orientation, which is one row for all
    datasets. A turned one is two rows, one for each frame.
    """
    return digest_bytes(b"stored raster of " + digest)


def frame_of(row: bytes, digest: bytes) -> Frame | None:
    """The frame in which a file of that digest is the row; None if the row is another file's."""
    if row == digest:
        return "upright"
    return "stored" if row == as_stored(digest) else None


def _orientation(image: Image.Image, max_pixels: int) -> int:
    """1 to 8, of an opened image whose pixels are not loaded yet. Raises whatever a broken EXIF block provokes."""
    if image.format == "PNG" and not _ends_late(image):
        exif = Image.Image.getexif(image)
    elif image.width * image.height <= max_pixels:
        exif = image.getexif()  # of a PNG: decodes all of it
    else:
        return 1
    found = exif.get(_ORIENTATION, 1)
    return next((known for known in _TO_UPRIGHT if known == found), 1)


def _ends_late(image: Image.Image) -> bool:
    """Whether a PNG goes on after its pixels. What follows, EXIF say, Pillow knows only when it has decoded them."""
    file = getattr(image, "fp", None)
    assert file is not None, "not loaded yet"
    place, pixels = file.tell(), False
    try:
        file.seek(8)
        while len(chunk := file.read(8)) == 8:
            if chunk[4:] == b"IDAT":
                pixels = True
            elif pixels:
                return bool(chunk[4:] != b"IEND")
            file.seek(int.from_bytes(chunk[:4], "big") + 4, io.SEEK_CUR)
        return False
    finally:
        file.seek(place)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    out = Image.new("RGB", image.size)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        out.paste(_band_to_rgb(band), (0, top))
    return out


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _wide_grey(image).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _wide_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, of 32 when its values fit 16, or of floats in [0, 1], as 8 bits without clipping."""
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= top):
        raise InputFailure(f"grey values of mode {image.mode} outside 0 to {top:g}: their scale is unknown")
    return Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))
