"""Every bad picture of a folder is decoded right or becomes a failure cell with its reason; the run goes on and counts."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi_distill.storage.selection import CellSelection
from tests.fixtures.command import hoi_distill
from tests.fixtures.toy_stages import Album, plan_of, run, score_of

GREY = 101
BROKEN = {
    "truncated.jpg": "broken picture",
    "zero.jpg": "empty file",
    "text.jpg": "not a picture",
    "one.png": "too small: 1 x 1",
    "giga.png": "too large",
}
SOUND = ("cmyk.jpg", "deep.png", "palette.png", "turned.jpg", "clear.png")


def gigapixel(path: Path) -> None:
    """A header that promises 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.fixture
def gallery(album: Album) -> Album:
    """Six good pictures, five broken ones, and five odd ones of one grey."""
    folder = album.folder
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    noise.save(folder / "truncated.jpg")
    whole = (folder / "truncated.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("this is not a picture")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    gigapixel(folder / "giga.png")
    grey = Image.new("RGB", (40, 24), (GREY, GREY, GREY))
    grey.convert("CMYK").save(folder / "cmyk.jpg", quality=100)
    Image.fromarray(np.full((24, 40), GREY * 257, np.uint16)).save(folder / "deep.png")
    grey.quantize(4).save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(folder / "turned.jpg", exif=exif, quality=100)
    Image.new("RGBA", (40, 24), (0, 0, 0, 0)).save(folder / "clear.png")
    return album


def test_bad_pictures(gallery):
    workspace = gallery.workspace()
    summary = run(workspace)
    assert summary.cells == {"scores": 3 * 11, "signs": 3 * 11}
    assert summary.failures == {"scores": 3 * 5, "signs": 3 * 5}
    said = {Path(line.partition(": ")[0]).name: line.partition(": ")[2] for line in summary.reasons}
    assert said.keys() == BROKEN.keys()
    assert all(said[name].startswith(reason) for name, reason in BROKEN.items()), said

    plans = plan_of(workspace)
    assert all(one.complete() for one in plans.values())
    assert [one.counts["failed"] for one in plans.values()] == [15, 15]
    source, table = workspace.sources["images"], plans["signs"].table
    reasons = table.failures(CellSelection(source.ids, ["a"], plans["signs"].cells.inputs[:, :1]))
    assert {source.keys[row] for row, _ in reasons} == set(BROKEN)
    assert all(reason.startswith("upstream scores: ") for reason in reasons.values())

    scores = plans["scores"].table.read(CellSelection(source.ids, ["a"]))["a"].to_pylist()
    seen = dict(zip(source.keys, scores, strict=True))
    for name in SOUND:
        shade = 255 if name == "clear.png" else GREY
        assert seen[name] == pytest.approx(shade + score_of("a"), abs=1.5), name
    assert all(seen[name] is None for name in BROKEN)


def test_failures_are_final_until_retried(gallery):
    workspace = gallery.workspace()
    run(workspace)
    assert run(workspace).failures == {}
    assert run(workspace, retry_failed=True).failures == {"scores": 15, "signs": 15}


def test_mended_picture(gallery):
    """Other bytes are another row: nothing has to be retried."""
    run(gallery.workspace())
    Image.new("RGB", (40, 40), (1, 2, 3)).save(gallery.folder / "zero.jpg")
    summary = run(gallery.workspace())
    assert (summary.cells, summary.failures) == ({"scores": 3, "signs": 3}, {"scores": 0, "signs": 0})


def test_on_the_command_line(gallery):
    done = hoi_distill("run", gallery.path)
    assert done.returncode == 0, done.stderr
    assert "Recorded as failures: scores 15, signs 15." in done.stdout
    assert "zero.jpg: empty file" in done.stdout
    assert "Nothing to do" in hoi_distill("run", gallery.path).stdout
    again = hoi_distill("run", gallery.path, "--retry-failed")
    assert again.returncode == 0
    assert "Recorded as failures: scores 15, signs 15." in again.stdout


def test_mostly_broken_folder_stops(album):
    for number in range(60):
        (album.folder / f"broken-{number:02d}.jpg").write_bytes(b"no picture, number %d" % number)
    done = hoi_distill("run", album.path)
    assert done.returncode == 2
    assert "rows in a row failed" in done.stderr
