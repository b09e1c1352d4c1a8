"""Picture bytes to RGB, strictly: what cannot be decoded right is refused with a reason."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from storage.errors import InputFailure

MIN_SIDE = 8
MAX_PIXELS = 100_000_000
"""Default limit: larger pictures are refused by their header, before any pixel is decoded."""
_ORIENTATION = 0x0112  # EXIF tag; values from 5 on swap width and height

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `max_pixels` decides here


def header_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of the upright picture from a file's header, EXIF orientation applied; (0, 0) if unreadable."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION, 1) >= 5 else (width, height)
    except Exception:  # whatever a broken header provokes
        return 0, 0


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture file's bytes as an RGB image, upright.

    EXIF orientation is applied, transparency laid on white, 16-bit grey scaled to 8 (65535 to 255), palettes, CMYK and
    bilevel converted; of an animation the first frame. Raises InputFailure for anything unreadable or truncated, a
    side under ``MIN_SIDE`` pixels, or more than `max_pixels` pixels.
    """
    if not data:
        raise InputFailure("empty file")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise InputFailure(f"too large: {error}") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders fail in many ways; the bytes are in memory, so it is never the disk
        raise InputFailure("not a picture in a known format") from error
    width, height = image.size
    if width * height > max_pixels:
        raise InputFailure(f"too large: {width} x {height} is over {max_pixels} pixels")
    if min(width, height) < MIN_SIDE:
        raise InputFailure(f"too small: {width} x {height}; a side needs {MIN_SIDE} pixels")
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except (InputFailure, MemoryError):
        raise
    except Exception as error:
        raise InputFailure(f"broken picture: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
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
