"""Videos and cameras: read with PyAV, predicted a few frames at a time, followed from frame to frame, written with boxes.

Memory holds :data:`TOGETHER` frames, whatever the length of the video.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from hoi_distill.pipeline.console.watch import Watch
from hoi_distill.pipeline.detector import HOIDetector, result_of
from hoi_distill.pipeline.extras import refuse_missing_packages
from hoi_distill.pipeline.hoi_result import HOIResult
from hoi_distill.pipeline.prediction_outputs import Frame, Outputs
from hoi_distill.pipeline.tracking import WEAK, PairTracks
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.evaluate.pages.drawing import marked
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import atomic_path

TOGETHER = 16
"""Frames of a file that are predicted together. A camera's are predicted one by one."""
CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
"""By platform, how FFmpeg is asked for a camera: the format, and the name that a camera has by its number."""
USUAL = Fraction(25)
"""Frames per second of a source that does not say."""
TICKS = 90_000
"""Units of time in a second of a video that is written."""


@dataclass(frozen=True)
class Source:
    """What FFmpeg opens.

    Attributes:
        name: a file or a device.
        form: the format, where it cannot be recognised.
        live: whether frames come at their own time.
    """

    name: str
    form: str | None = None
    live: bool = False


def refuse_no_video(detections: Path | None) -> None:
    """Raises UserError where videos cannot be read, or boxes are given that know no frames."""
    if detections is not None:
        raise UserError("--detections knows images by their names, and a video's frames have none; give --detector")
    refuse_missing_packages(("av", "trackers"), "video")


def webcam_source(camera: str) -> Source:
    """A camera by its number or its device."""
    form, device = CAMERAS.get(sys.platform, CAMERAS["linux"])
    return Source(device.format(camera) if camera.isdigit() else camera, form, live=True)


def predict_video(
    detector: HOIDetector, name: str, source: Source, written: Outputs, *, seconds: float | None, watch: Watch
) -> str:
    """Write the detections in each frame, and the video with boxes, ``<name>.predicted.mp4``.

    Ctrl-C ends a camera's video. Sound is not written.

    Args:
        detector: finds them.
        name: of the video. Frames are called ``<name>#<number>``, from 0.
        source: the video.
        written: the files.
        seconds: no more than this is read; None: all.
        watch: says how far it is.

    Returns:
        A line that says how many frames there were, and how many a second were predicted.

    Raises:
        UserError: it is no video, there is no such camera, or its end cannot be read. What comes before that is written.
    """
    with contextlib.ExitStack() as stack:
        video = stack.enter_context(opened(source))
        tracks = PairTracks(float(video.rate), written.wanted.threshold)
        film = stack.enter_context(Film.beside(written.out / f"{name}.predicted.mp4", video.rate, written))
        count, last, began = 0, 0.0, time.monotonic()
        frames = video.frames(seconds)
        with contextlib.suppress(KeyboardInterrupt) if source.live else contextlib.nullcontext():
            while some := list(islice(frames, 1 if source.live else TOGETHER)):
                ids = [f"{name}#{count + position:06d}" for position in range(len(some))]
                for (moment, _), each, result in zip(some, ids, found_in(detector, some, ids, written), strict=True):
                    shown, humans, objects = tracks(result, moment)
                    written.add(each, shown, Frame(moment, humans, objects))
                    film.add(shown, humans, moment)
                count, last = count + len(some), some[-1][0]
                pace = count / max(time.monotonic() - began, 1e-9)
                watch.what = f"predicting {name}: {count:,} frames ({last:.1f} s), {pace:.1f} frames a second"
        if not count:
            raise UserError(video.damage or f"{source.name}: a video without a frame")
    if video.damage:
        raise UserError(f"{video.damage}; the {count:,} frames before ({last:.1f} s) are written")
    pace = count / max(time.monotonic() - began, 1e-9)
    return f"{name}: {count:,} frames ({last:.1f} s of video), {pace:.1f} frames a second"


def found_in(
    detector: HOIDetector, frames: list[tuple[float, Image.Image]], ids: list[str], written: Outputs
) -> Iterator[HOIResult]:
    """The pairs of some frames, those of weak scores too. They go into the Parquet file, all of them."""
    words, images = detector.student.vocabulary, [image for _, image in frames]
    with detector.predicted(images, names=ids, ids=ids) as file:
        written.table.write_table(pq.read_table(file))
        found = read_detections(file, ids, words, object_optional=True)
    for position, image in enumerate(images):
        yield result_of(found, position, image, words, WEAK * written.wanted.threshold)


class Video:
    """An open video.

    Attributes:
        rate: frames per second.
        damage: why it could not be read to its end.
    """

    damage: str | None = None

    def __init__(self, container: Any, source: Source) -> None:
        self.container, self.source = container, source
        self.stream = container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or USUAL)

    def frames(self, seconds: float | None) -> Iterator[tuple[float, Image.Image]]:
        """Its frames, upright, each with its time in seconds from the first one. One is in memory at a time.

        They end before what cannot be read.

        Args:
            seconds: frames from this time on are not read; None: all.
        """
        first: float | None = None
        try:
            for number, frame in enumerate(self.container.decode(self.stream)):
                moment = float(number / self.rate) if frame.time is None else float(frame.time)
                first = moment if first is None else first
                if seconds is not None and moment - first >= seconds:
                    return
                pixels = frame.to_ndarray(format="rgb24")
                yield (
                    moment - first,
                    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))),
                )
        except (OSError, ValueError) as error:  # of which all of PyAV's errors are one
            self.damage = f"{self.source.name}: cannot be read to its end: {error}"


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Video]:
    """Open a video or a camera."""
    import av

    try:
        container = av.open(source.name, format=source.form)
    except (OSError, ValueError) as error:
        what = "camera" if source.live else "video"
        raise UserError(f"{source.name}: no {what} that can be read: {error}") from None
    with container:
        if not container.streams.video:
            raise UserError(f"{source.name}: has no moving images")
        yield Video(container, source)


class Film:
    """A video with boxes that is being written. Where none is wanted, nothing is.

    Args:
        container: PyAV's; None where none is wanted.
        rate: frames per second.
    """

    def __init__(self, container: Any, rate: Fraction) -> None:
        self.container, self.rate, self.time = container, rate, -1
        self.stream: Any = None

    @classmethod
    @contextlib.contextmanager
    def beside(cls, path: Path, rate: Fraction, written: Outputs) -> Iterator[Film]:
        """A film that takes its place at ``path`` when the block ends without an error."""
        if not written.wanted.drawings:
            yield cls(None, rate)
            return
        import av

        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft, av.open(str(draft), "w", format="mp4") as container:
            film = cls(container, rate)
            yield film
            film.end()

    def add(self, result: HOIResult, humans: list[int], moment: float) -> None:
        """A frame with its pairs.

        Args:
            result: the pairs.
            humans: the track of each pair's person.
            moment: seconds from the beginning.
        """
        if self.container is None:
            return
        import av

        if self.stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            self.stream = self.container.add_stream(codec, rate=self.rate)
            self.stream.width, self.stream.height = (side + side % 2 for side in result.image.size)
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, TICKS)
        drawn = result.pairs()
        image = marked(result.image, [pair for _, pair in drawn], [humans[index] for index, _ in drawn])
        canvas = Image.new("RGB", (self.stream.width, self.stream.height))
        canvas.paste(image)
        frame = av.VideoFrame.from_ndarray(np.asarray(canvas), format="rgb24")
        self.time = max(round(moment * TICKS), self.time + 1)
        frame.pts, frame.time_base = self.time, Fraction(1, TICKS)
        self.container.mux(self.stream.encode(frame))

    def end(self) -> None:
        """Write what the encoder holds back."""
        if self.stream is not None:
            self.container.mux(self.stream.encode())
