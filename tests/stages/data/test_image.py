"""Every bad or unusual image: decoded right, or refused with a reason."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from hoi_distill.stages.data import image as reading
from hoi_distill.stages.data.image import decode, header_size, read_header
from hoi_distill.storage.errors import InputFailure


def _image(mode="RGB", size=(40, 24)):
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
    image = decode(_bytes(_image(), kind, **options))
    assert image.mode == "RGB"
    assert np.abs(_array(image) - _array(_image())).mean() < 3


def test_zero_bytes():
    with pytest.raises(InputFailure, match="empty file"):
        decode(b"")


@pytest.mark.parametrize("data", [b"hello, this is no picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_not_a_image(data):
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
        decode(_bytes(_image(size=(1, 1)), "PNG"))
    with pytest.raises(InputFailure, match="too small"):
        decode(_bytes(_image(size=(40, 7)), "PNG"))
    assert decode(_bytes(_image(size=(8, 8)), "PNG")).size == (8, 8)


@pytest.mark.parametrize("side", [12_000, 40_000, 100_000])
def test_gigapixels_are_refused_by_their_header(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(InputFailure, match="too large"):
        decode(data)


def test_a_small_tiff_of_large_tiles_is_refused_by_its_header():
    side, values = 20_000, zlib.compress(b"\0" * 400)
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    tags += [(324, 8 + 2 + 12 * 10 + 4), (325, len(values))]
    data = b"II*\0" + struct.pack("<IH", 8, len(tags))
    data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + b"\0\0\0\0" + values
    with pytest.raises(InputFailure, match="too large: stored in tiles of 20000 x 20000"):
        decode(data)


@pytest.mark.parametrize("chunk", [b"iCCP", b"zTXt"])
@pytest.mark.parametrize("late", [False, True])
def test_a_block_beside_the_pixels_is_not_inflated_without_a_bound(chunk, late):
    data = _bytes(_image(), "PNG")
    bomb = _chunk(chunk, b"name\0\0" + zlib.compress(b"\0" * (64 << 20)))
    place = len(data) - 12 if late else 33
    with pytest.raises(InputFailure):
        decode(data[:place] + bomb + data[place:])


def test_max_pixels_is_a_limit():
    data = _bytes(_image(), "PNG")
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
    palette = _image().quantize(200)
    assert np.array_equal(_array(decode(_bytes(palette, "PNG"))), _array(palette.convert("RGB")))
    bilevel = _image().convert("1")
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


def _turned(kind, orientation, size=(40, 24), **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _bytes(_image(size=size), kind, exif=exif, **options)


def _chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _late(chunk):
    """A PNG with a chunk between its pixels and its end, where exiftool writes."""
    data = _bytes(_image(), "PNG")
    return data[:-12] + chunk + data[-12:]


def _tiff_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
ITXT = b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
TURNED = {
    **{f"{kind} {k}": (kind, k) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") for k in (0, 1, 2, 5, 6, 8, 9, 42)},
    "JPEG of several": _bytes(_image(), "MPO", save_all=True, append_images=[_image(size=(8, 9))]),
    "EXIF after a PNG's pixels": _late(_chunk(b"eXIf", _tiff_exif(6))),
    "XMP after a PNG's pixels": _late(_chunk(b"iTXt", ITXT)),
    "text after a PNG's pixels": _late(_chunk(b"tEXt", b"Comment\0nothing")),
    "XMP in a JPEG": _bytes(_image(), "JPEG", xmp=XMP),
    "XMP in a WebP": _bytes(_image(), "WEBP", xmp=XMP),
    "BMP": _bytes(_image(), "BMP"),
    "GIF": _bytes(_image(), "GIF"),
    "PPM": _bytes(_image(), "PPM"),
    "compressed TIFF": _turned("TIFF", 6, compression="tiff_deflate"),
}


@pytest.mark.parametrize("made", TURNED.values(), ids=TURNED)
def test_a_header_tells_the_size_that_decoding_gives_in_both_frames(made, tmp_path):
    if isinstance(made, tuple):
        if made[0] == "AVIF" and not features.check("avif"):
            pytest.skip("this Pillow has no AVIF")
        made = _turned(*made)
    (tmp_path / "picture").write_bytes(made)
    for frame in ("upright", "stored"):
        assert header_size(tmp_path / "picture", frame) == decode(made, frame=frame).size, frame
    assert decode(made, frame="stored").size == (40, 24)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_stored_frame_is_the_raster_as_it_is_stored(kind, orientation):
    raster = _array(_image())
    np.testing.assert_array_equal(_array(decode(_turned(kind, orientation), frame="stored")), raster)
    turns = {1: raster, 3: raster[::-1, ::-1], 6: np.rot90(raster, -1), 8: np.rot90(raster)}
    if orientation in turns:
        np.testing.assert_array_equal(_array(decode(_turned(kind, orientation))), turns[orientation])


def test_a_image_whose_exif_is_broken_can_be_read_as_stored_alone(tmp_path):
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  8\nno hexadecimal digits")
    data = _bytes(_image(), "PNG", pnginfo=text)
    (tmp_path / "picture").write_bytes(data)
    with pytest.raises(InputFailure, match="broken image: non-hexadecimal"):
        decode(data)
    assert decode(data, frame="stored").size == header_size(tmp_path / "picture", "stored") == (40, 24)
    assert header_size(tmp_path / "picture") == (0, 0)


def test_a_header_is_read_without_the_pixels(tmp_path):
    """Planning reads the headers of whole datasets: of a PNG without pixels after them, nothing is decoded."""
    data = _turned("PNG", 6)
    place = data.index(b"IDAT")
    broken = data[: place + 4] + b"\0" * (data.index(b"IEND") - 12 - place) + data[data.index(b"IEND") - 8 :]
    (tmp_path / "picture").write_bytes(broken)
    assert read_header(tmp_path / "picture") == (40, 24, 6)
    with pytest.raises(InputFailure):
        decode(broken)


def test_a_image_over_the_limit_is_not_decoded_for_its_header(tmp_path, monkeypatch):
    (tmp_path / "picture").write_bytes(_late(_chunk(b"eXIf", _tiff_exif(6))))
    monkeypatch.setattr(reading, "MAX_PIXELS", 40 * 24 - 1)
    assert read_header(tmp_path / "picture") == (40, 24, 1)


@pytest.mark.parametrize(
    "kind", ["EPS", "PDF", "ICO", "ICNS", "PSD", "TGA", "SGI", "PCX", "IM", "XBM", "MSP", "DDS", "JPEG2000", "SPIDER"]
)
def test_other_formats_are_refused_whatever_the_name_says(kind, tmp_path, monkeypatch):
    """EPS starts Ghostscript: a `gs` in the path that leaves a mark is never run."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho started >> {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    if kind == "PSD":  # Pillow does not write it
        data = b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 24, 40, 8, 3) + b"\0" * 14 + b"\x7f" * 2880
    else:
        mode = {"XBM": "1", "MSP": "1", "SPIDER": "F"}.get(kind, "RGB")
        data = _bytes(_image(mode, (32, 32)), kind)
    (tmp_path / "picture.png").write_bytes(data)
    with pytest.raises(InputFailure, match="not an image in a known format"):
        decode(data)
    assert header_size(tmp_path / "picture.png") == (0, 0)
    assert not (tmp_path / "started").exists()


MODES = {
    "P with a clear colour": lambda: _bytes(_image().quantize(20), "PNG", transparency=3),
    "P with clear colours": lambda: _bytes(_image().quantize(4), "PNG", transparency=b"\x00\x50\xa0\xff"),
    "RGB with a clear colour": lambda: _bytes(Image.new("RGB", (40, 24), (9, 9, 9)), "PNG", transparency=(9, 9, 9)),
    "RGBA": lambda: _bytes(_image("RGBA"), "PNG"),
    "LA": lambda: _bytes(_image("LA"), "PNG"),
    "CMYK": lambda: _bytes(_image("CMYK"), "TIFF"),
    "bilevel": lambda: _bytes(_image("1"), "PNG"),
    "16 bits": lambda: _bytes(Image.fromarray(np.arange(960, dtype=np.uint16).reshape(24, 40) * 67), "PNG"),
    "palette GIF": lambda: _bytes(_image().quantize(30), "GIF", transparency=2),
}


@pytest.mark.parametrize("make", MODES.values(), ids=MODES)
def test_images_are_converted_in_bands_as_they_would_be_whole(make, monkeypatch):
    whole = _array(decode(make()))
    monkeypatch.setattr(reading, "_BAND", 40 * 5)
    np.testing.assert_array_equal(_array(decode(make())), whole)


@pytest.mark.parametrize(
    ("bits", "colour", "samples"), [(16, 0, 2), (8, 6, 4), (8, 4, 2)], ids=["grey 16", "RGBA", "LA"]
)
def test_a_small_file_of_many_pixels_takes_bounded_memory(bits, colour, samples, tmp_path):
    """16 megapixels in some KB: source and result take 4 bytes a pixel each at most, conversion a few megabytes more."""
    side, packer = 4000, zlib.compressobj(1)
    pixels = b"".join(packer.compress(b"\0" * (1 + side * samples)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(data)
    code = (
        "import re, sys; from hoi_distill.stages.data.image import header_size, read_image\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "header_size(sys.argv[1]); before = peak()\n"
        "assert read_image(sys.argv[1], 'upright').size == (4000, 4000); print(peak() - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.png")]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(told.stdout) < 8 * side * side / 2**20 + 120


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), color) for color in ((250, 0, 0), (0, 250, 0))]
    got = decode(_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert np.abs(_array(got) - (250, 0, 0)).max() < 5
