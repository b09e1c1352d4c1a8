"""``hoi-distill predict``: files and folders of images in, detections and drawings out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from hoi_distill.pipeline.console.watch import working
from hoi_distill.pipeline.detector import HOIDetector, load_image, result_of
from hoi_distill.pipeline.filling.run import refuse_absent
from hoi_distill.stages.data.listing import images_below, readable
from hoi_distill.stages.evaluate.formats.parquet import detections_writer, read_detections
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import atomic_write
from hoi_distill.storage.files.writable import refuse_unwritable, writing

if TYPE_CHECKING:
    from PIL import Image

TOGETHER = 64
"""Images in memory at a time."""


def predict_images(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    threshold: float,
    detections: Path | None = None,
    device: str | None = None,
) -> dict[str, str]:
    """Write ``detections.parquet`` and a drawn copy of every image, ``<name>.predicted.png``.

    An image that cannot be read is named and left out. Of given files, whatever their names end in, no other file of
    their folder is opened.

    Args:
        checkpoint: the folder of the student's checkpoint.
        images: image files, and folders of images. An image of a folder has the path below it as its name.
        out: the folder that is written to.
        threshold: triplets of a lower score are not drawn; the file holds all.
        detections: a COCO results JSON with boxes of these images by name, instead of the student's own detector.
        device: where detector, encoder and student work; default: a GPU where there is one.

    Returns:
        Why an image was left out, by its name.

    Raises:
        UserError: a missing file, two images of one name, a detector or encoder other than the student was trained with, no
            such device, or an ``out`` that cannot be written, all before anything is computed; or no image can be read.
    """
    from hoi_distill.stages.student.pretrained import best_device, load_student

    device = device or best_device()
    refuse_absent(device, "--device")
    refuse_unwritable("--out", out, folder=True)
    with working("loading the student"):
        student = load_student(checkpoint)
    detector = HOIDetector(student, checkpoint, device=device, detections=detections)
    left_out: dict[str, str] = {}
    chunks = loaded_chunks(named_files(images), left_out)
    first = next(chunks, None)
    if first is None:
        raise UserError(next(iter(left_out.values()), f"{', '.join(map(str, images))}: no images"))
    target = out / "detections.parquet"
    with writing(f"--out {out}"), working("predicting") as watch:
        out.mkdir(parents=True, exist_ok=True)
        with detections_writer(target) as writer:
            count = 0
            for chunk in chain([first], chunks):
                writer.write_table(predict_chunk(detector, chunk, out, threshold))
                count += len(chunk)
                watch.phase(f"predicting, {count:,} images so far")
    for reason in left_out.values():
        print(f"hoi-distill: {reason}; left out", file=sys.stderr)
    print(f"{target}; images: {out}")
    return left_out


def named_files(given: Sequence[Path]) -> dict[str, Path]:
    """The image files by their names: a file's own, an image's path below a folder that was given.

    Raises:
        UserError: a file that is missing, a folder without images, or two images of one name.
    """
    found: dict[str, Path] = {}
    for path in given:
        if path.is_dir():
            here = {name: path / file for name, file in images_below(path).items()}
        else:
            here = {readable(path.name): path}
        if not here:
            raise UserError(f"{path}: no images in this folder")
        for name, file in here.items():
            if not file.exists():
                raise UserError(f"{file}: cannot be read: No such file or directory")
            if name in found:
                raise UserError(f"{name}: two images of this name; predict them in two calls")
            found[name] = file
    return found


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


def predict_chunk(detector: HOIDetector, chunk: Mapping[str, Image.Image], out: Path, threshold: float) -> pa.Table:
    """The detections in some images, which are drawn into copies.

    Args:
        detector: finds them.
        chunk: RGB images by name.
        out: the folder of the copies, ``<name>.predicted.png``.
        threshold: triplets of a lower score are not drawn.
    """
    names = list(chunk)
    with detector.predicted(list(chunk.values()), names=names, ids=names) as file:
        table = pq.read_table(file)
        found = read_detections(file, names, detector.student.vocabulary, object_optional=True)
    for position, (name, image) in enumerate(chunk.items()):
        target = out / f"{name}.predicted.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as drawing:
            result_of(found, position, image, detector.student.vocabulary).plot(threshold).save(drawing, "PNG")
    return table
