"""Videos: every frame is predicted, followed and written with boxes, at its own time, and none stays in memory."""

from __future__ import annotations

import csv
import itertools
import json
import struct
import sys
from fractions import Fraction

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hoi_distill.pipeline.hoi_result import HOIResult
from hoi_distill.pipeline.prediction import More, predict_images
from hoi_distill.pipeline.prediction_outputs import Wanted
from hoi_distill.pipeline.tracking import HELD, PairTracks
from hoi_distill.pipeline.video import Source, opened, webcam_source
from hoi_distill.storage.errors import UserError
from tests.fixtures.untrained_student import film, untrained

for package in ("av", "trackers"):
    pytest.importorskip(package, exc_type=ImportError, reason="the extra video, and libGL, which OpenCV is linked with")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("student"))


def result(pairs: list[tuple[str, str, float]], shift: float = 0.0) -> HOIResult:
    """Pairs of one person with an object each, (verb, object, score)."""
    count = len(pairs)
    return HOIResult(
        Image.new("RGB", (100, 100)),
        np.tile(np.array([10, 10, 40, 90], np.float32) + shift, (count, 1)),
        np.tile(np.array([50, 50, 80, 90], np.float32) + shift, (count, 1)),
        [pair[0] for pair in pairs],
        [pair[1] for pair in pairs],
        np.array([pair[2] for pair in pairs]),
    )


def test_a_label_stays_through_a_frame_without_it_and_goes_in_the_end():
    tracks, shown = PairTracks(10, 0.3), []
    for number in range(20):
        there = number < 8 and number != 4
        found, humans, objects = tracks(result([("ride", "bicycle", 0.9)] if there else [], number), number / 10)
        shown.append((len(found), *humans, *objects))
    assert shown[0] == (0,)  # one frame may be a mistake
    assert set(shown[1:8]) == {(1, 1, 2)}
    assert shown[8 + round(HELD * 10) + 1 :] == [(0,)] * (12 - round(HELD * 10) - 1)
    assert not tracks.pairs


def test_a_score_that_jumps_about_a_threshold_does_not_blink():
    tracks, raw, smooth = PairTracks(30, 0.5), [], []
    for number in range(60):
        score = 0.62 if number % 2 else 0.42
        found, _, _ = tracks(result([("ride", "bicycle", score)]), number / 30)
        raw.append(score >= 0.5)
        smooth.append(len(found) == 1)
    changes = [sum(a != b for a, b in itertools.pairwise(states)) for states in (raw, smooth)]
    assert changes[0] == 59
    assert changes[1] <= 1


def test_what_is_remembered_does_not_grow_with_the_video():
    tracks = PairTracks(10, 0.3)
    for number in range(300):
        tracks(result([("ride", "bicycle", 0.9)], 100.0 * number), number / 10)
    assert len(tracks.pairs) <= 6
    assert len(tracks.numbers) <= 2 * 51


def test_a_video_becomes_one_with_boxes_at_the_same_times(checkpoint, tmp_path, capsys):
    import av

    clip = film(tmp_path / "clip.avi", 21)
    more = More(wanted=Wanted(csv=True, coco=True, lines=True))
    assert predict_images(checkpoint, [clip], tmp_path / "out", threshold=0.2, more=more) == {}
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["image"] for line in lines] == [f"clip.avi#{number:06d}" for number in range(21)]
    assert [line["seconds"] for line in lines] == pytest.approx([number / 10 for number in range(21)], abs=2e-3)
    assert "clip.avi: 21 frames (2.0 s of video), " in said.err
    with av.open(str(tmp_path / "out/clip.avi.predicted.mp4")) as written:
        stream = written.streams.video[0]
        assert stream.average_rate == Fraction(10)
        frames = [(frame.time, frame.width, frame.height) for frame in written.decode(stream)]
    assert [time for time, _, _ in frames] == pytest.approx([number / 10 for number in range(21)], abs=2e-3)
    assert {frame[1:] for frame in frames} == {(160, 128)}
    with open(tmp_path / "out/detections.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(json.loads((tmp_path / "out/detections.coco.json").read_text())) > 0
    assert {row["human_track"] for row in rows} <= {str(number) for number in range(1, 12)}
    assert set(pq.read_table(tmp_path / "out/detections.parquet")["image_id"].to_pylist()) <= {
        line["image"] for line in lines
    }


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_frames(checkpoint, tmp_path):
    used = []
    for frames in (48, 48, 480):
        clip = film(tmp_path / f"{len(used)}.avi", frames)
        predict_images(checkpoint, [clip], tmp_path / f"out{len(used)}", threshold=0.3)
        used.append(psutil.Process().memory_info().rss)
    assert used[2] - used[1] < 20 << 20  # 432 frames of 160 x 128 RGB alone are 26 MB


def test_seconds_end_a_video(checkpoint, tmp_path, capsys):
    more = More(seconds=0.5, wanted=Wanted(drawings=False))
    predict_images(checkpoint, [film(tmp_path / "clip.avi", 21)], tmp_path / "out", threshold=0.2, more=more)
    assert "clip.avi: 5 frames" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["detections.parquet"]


def test_a_video_that_is_none_is_named_and_left_out(checkpoint, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    given = [tmp_path / "broken.mp4", film(tmp_path / "clip.avi", 3)]
    left_out = predict_images(checkpoint, given, tmp_path / "out", threshold=0.2)
    assert list(left_out) == ["broken.mp4"]
    assert "no video that can be read" in left_out["broken.mp4"]
    assert "\n" not in left_out["broken.mp4"]
    assert (tmp_path / "out/clip.avi.predicted.mp4").exists()
    assert not (tmp_path / "out/broken.mp4.predicted.mp4").exists()


def test_a_video_that_is_damaged_is_written_up_to_the_damage(checkpoint, tmp_path, capsys):
    import av

    path = tmp_path / "damaged.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "rgb24"
        for number in range(21):
            pixels = np.full((128, 160, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    parts = path.read_bytes().split(b"\x89PNG")
    path.write_bytes(b"\x89PNG".join([*parts[:19], b"broken" + parts[19][6:], *parts[20:]]))
    wanted = More(wanted=Wanted(lines=True))
    left_out = predict_images(checkpoint, [path], tmp_path / "out", threshold=0.2, more=wanted)
    said = capsys.readouterr()
    assert "cannot be read to its end" in left_out["damaged.avi"]
    assert left_out["damaged.avi"].endswith("; the 18 frames before (1.7 s) are written")
    assert "left out" not in said.err
    assert len(said.out.splitlines()) == 18
    with av.open(str(tmp_path / "out/damaged.avi.predicted.mp4")) as written:
        assert sum(1 for _ in written.decode(video=0)) == 18


def test_a_camera_that_is_not_there_is_one_line(checkpoint, tmp_path, monkeypatch):
    left_out = predict_images(checkpoint, [], tmp_path / "out", threshold=0.2, more=More(webcam="77"))
    assert "77: no camera that can be read" in left_out["webcam"]
    monkeypatch.setattr(sys, "platform", "win32")
    assert webcam_source("USB Camera").name == "USB Camera"


def test_without_its_packages_a_video_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"^av: .*; install the extra: pip install 'hoi-distill\[video\]'$"):
        predict_images(tmp_path, [film_less(tmp_path)], tmp_path / "out", threshold=0.2)


def film_less(folder):
    (folder / "clip.mp4").write_bytes(b"")
    return folder / "clip.mp4"


def test_a_phone_s_video_is_read_upright(tmp_path):
    """An MP4 file says in its track's matrix that a viewer should turn it by 90 degrees to the right."""
    import av

    path = tmp_path / "phone.mp4"
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48, 0] = 255  # the left half is red, which will be the upper one
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30)
    path.write_bytes(data)
    with opened(Source(str(path))) as video:
        ((_, image),) = video.frames(None)
    assert image.size == (64, 96)
    upper, lower = np.asarray(image)[:40], np.asarray(image)[56:]
    assert upper[..., 0].min() > 150 > 100 > lower[..., 0].max()
