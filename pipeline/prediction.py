"""``hoi-distill predict``: images and videos in, detections and drawings out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from hoi_distill.pipeline.console.watch import Watch, working
from hoi_distill.pipeline.detector import HOIDetector, load_image, result_of
from hoi_distill.pipeline.filling.run import refuse_absent
from hoi_distill.pipeline.prediction_inputs import is_video, named_files
from hoi_distill.pipeline.prediction_outputs import Outputs, Wanted, outputs
from hoi_distill.pipeline.video import Source, predict_video, refuse_no_video, webcam_source
from hoi_distill.stages.data.object_detections import refuse_foreign
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.quantities import duration
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.writable import refuse_unwritable, writing

if TYPE_CHECKING:
    from PIL import Image

TOGETHER = 64
"""Images in memory at a time."""


@dataclass(frozen=True)
class More:
    """What a call of ``predict`` may say beside.

    Attributes:
        detector: a detector's folder or hub id, instead of the student's own.
        wanted: what is written; its threshold is not read.
        webcam: a camera, by its number or the name of its device. It is watched until Ctrl-C.
        seconds: of each video and of the camera no more than this is read; None: all.
    """

    detector: str | None = None
    wanted: Wanted = field(default_factory=Wanted)
    webcam: str | None = None
    seconds: float | None = None


def predict_images(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    threshold: float,
    detections: Path | None = None,
    device: str | None = None,
    more: More | None = None,
) -> dict[str, str]:
    """Write ``detections.parquet``, a drawn copy of every image, ``<name>.predicted.png``, and what else is wanted.

    An image that cannot be read is named and left out. Of given files, whatever their names end in, no other file of
    their folder is opened. A video file becomes a video with boxes, ``<name>.predicted.mp4``; its frames are images
    called ``<name>#<number>``.

    Args:
        checkpoint: the folder of the student's checkpoint.
        images: see :func:`hoi_distill.pipeline.prediction_inputs.named_files`.
        out: the folder that is written to.
        threshold: triplets of a lower score are not drawn; the Parquet file holds all.
        detections: a COCO results JSON with boxes of these images by name, instead of the student's own detector.
        device: where detector, encoder and student work; default: a GPU where there is one.
        more: what else is wanted.

    Returns:
        Why an image was left out, by its name.

    Raises:
        UserError: a missing file, two images of one name, a detector or encoder other than the student was trained with, no
            such device, or an ``out`` that cannot be written, all before anything is computed; or no image can be read.
    """
    from hoi_distill.stages.student.pretrained import best_device, load_student

    device, more = device or best_device(), more or More()
    refuse_absent(device, "--device")
    refuse_unwritable("--out", out, folder=True)
    files = named_files(images)
    videos = {name: Source(str(file)) for name, file in files.items() if is_video(file)}
    stills = {name: file for name, file in files.items() if name not in videos}
    if more.webcam is not None:
        videos["webcam"] = webcam_source(more.webcam)
    if videos:
        refuse_no_video(detections)
    with working("loading the student"):
        student = load_student(checkpoint)
    detector = HOIDetector(student, checkpoint, device=device, detections=detections, detector=more.detector)
    if detections is not None:
        refuse_foreign(detections, list(stills))
    left_out: dict[str, str] = {}
    chunks = loaded_chunks(stills, left_out)
    first = next(chunks, None)
    if first is None and not videos:
        raise UserError(next(iter(left_out.values()), f"{', '.join(map(str, images))}: no images"))
    wanted = replace(more.wanted, threshold=threshold)
    with writing(f"--out {out}"), working("predicting") as watch, outputs(out, wanted) as written:
        progress = Progress(watch, len(stills))
        for chunk in chain([] if first is None else [first], chunks):
            predict_chunk(detector, chunk, written)
            progress.advance(len(chunk))
        for name, source in videos.items():
            try:
                watch(predict_video(detector, name, source, written, seconds=more.seconds, watch=watch))
            except UserError as error:
                left_out[name] = str(error)
    for name, reason in left_out.items():
        print(f"hoi-distill: {reason}" + ("; left out" if name in stills else ""), file=sys.stderr)
    print(f"{out / 'detections.parquet'}; images: {out}", file=sys.stderr if wanted.lines else sys.stdout)
    return left_out


class Progress:
    """How many images are predicted, at which pace, and how long the others take: a line after every few seconds.

    Args:
        watch: says it.
        total: images.
    """

    def __init__(self, watch: Watch, total: int) -> None:
        self.watch, self.total, self.done, self.began = watch, total, 0, time.monotonic()

    def advance(self, count: int) -> None:
        """So many images more."""
        self.done += count
        rate = self.done / max(time.monotonic() - self.began, 1e-9)
        left = duration(max(self.total - self.done, 0) / rate)
        self.watch.what = f"predicting: {self.done:,} of {self.total:,} images, {rate:.1f} a second, {left} left"


def loaded_chunks(files: Mapping[str, Path], left_out: dict[str, str]) -> Iterator[dict[str, Image.Image]]:
    """The images by their names, :data:`TOGETHER` of them at a time.

    Args:
        files: by name.
        left_out: is told why an image is left out, by name.
    """
    waiting = iter(files.items())
    while files_of_chunk := list(islice(waiting, TOGETHER)):
        chunk = {}
        for name, path in files_of_chunk:
            try:
                chunk[name] = load_image(path)
            except UserError as error:
                left_out[name] = str(error)
        if chunk:
            yield chunk


def predict_chunk(detector: HOIDetector, chunk: Mapping[str, Image.Image], written: Outputs) -> None:
    """Write the detections in some images.

    Args:
        detector: finds them.
        chunk: RGB images by name.
        written: the files.
    """
    names, words = list(chunk), detector.student.vocabulary
    with detector.predicted(list(chunk.values()), names=names, ids=names) as file:
        written.table.write_table(pq.read_table(file))
        found = read_detections(file, names, words, object_optional=True)
    for position, (name, image) in enumerate(chunk.items()):
        result = result_of(found, position, image, words, written.wanted.threshold)
        written.draw(name, result)
        written.add(name, result)
