"""Every bad or unusual picture: decoded right, or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stages.data.image import decode
from storage.errors import InputFailure


def _picture(mode="RGB", size=(40, 24)):
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 200, size[0] * size[1] * 3).reshape(size[1], size[0], 3) + rng.integers(0, 20, 3)
    return Image.fromarray(smooth.astype(np.uint8)).convert(mode)


def _bytes(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _array(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_common_formats_decode_to_rgb(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(_bytes(_picture(), kind, **options))
    assert image.mode == "RGB"
    assert np.abs(_array(image) - _array(_picture())).mean() < 3


def test_zero_bytes():
    with pytest.raises(InputFailure, match="empty file"):
        decode(b"")


@pytest.mark.parametrize("data", [b"hello, this is no picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_not_a_picture(data):
    with pytest.raises(InputFailure):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_truncated(kind):
    rng = np.random.default_rng(0)
    data = _bytes(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(InputFailure):
        decode(data[: int(len(data) * 0.6)])


def test_one_pixel_is_too_small_and_eight_are_enough():
    with pytest.raises(InputFailure, match="too small: 1 x 1"):
        decode(_bytes(_picture(size=(1, 1)), "PNG"))
    with pytest.raises(InputFailure, match="too small"):
        decode(_bytes(_picture(size=(40, 7)), "PNG"))
    assert decode(_bytes(_picture(size=(8, 8)), "PNG")).size == (8, 8)


@pytest.mark.parametrize("side", [12_000, 40_000, 100_000])
def test_gigapixels_are_refused_by_their_header(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(InputFailure, match="too large"):
        decode(data)


def test_max_pixels_is_a_limit():
    data = _bytes(_picture(), "PNG")
    assert decode(data, max_pixels=40 * 24).size == (40, 24)
    with pytest.raises(InputFailure, match="40 x 24 is over 959 pixels"):
        decode(data, max_pixels=40 * 24 - 1)


def test_cmyk_keeps_its_colours():
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    got = _array(decode(_bytes(red.convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(got - (220, 30, 40)).max() < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    got = _array(decode(_bytes(Image.fromarray(ramp), kind)))
    assert np.abs(got - (ramp / 257.0)[..., None]).max() <= 0.5


def test_sixteen_bit_colour_is_scaled_not_clipped():
    rows = b"".join(b"\0" + struct.pack(">3H", 65535, 32768, 257) * 8 for _ in range(8))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    assert np.abs(_array(decode(data)) - (255, 128, 1)).max() <= 1


def test_floats_of_unknown_scale_are_refused_and_unit_floats_scaled():
    unit = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    assert _array(decode(_bytes(unit, "TIFF"))).max() == 255
    wild = Image.fromarray(np.linspace(-5, 900, 256, dtype=np.float32).reshape(16, 16))
    with pytest.raises(InputFailure, match="scale is unknown"):
        decode(_bytes(wild, "TIFF"))


def test_palette_and_bilevel():
    palette = _picture().quantize(200)
    assert np.array_equal(_array(decode(_bytes(palette, "PNG"))), _array(palette.convert("RGB")))
    bilevel = _picture().convert("1")
    assert np.array_equal(_array(decode(_bytes(bilevel, "PNG"))), _array(bilevel.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode):
    clear = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    if mode == "P":
        data = _bytes(Image.new("P", (16, 16), 0), "PNG", transparency=0)
    else:
        data = _bytes(clear.convert(mode), "PNG")
    assert (_array(decode(data)) == 255).all()


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (32, 16), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 16))  # a white left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise: the left edge comes up
    got = decode(_bytes(image, "JPEG", quality=95, exif=exif))
    assert got.size == (16, 32)
    assert _array(got)[:6].mean() > 240
    assert _array(got)[12:].mean() < 15


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), color) for color in ((250, 0, 0), (0, 250, 0))]
    got = decode(_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.abs(_array(got) - (250, 0, 0)).max() < 5
