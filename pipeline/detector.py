"""A trained student in Python: an image's human-object pairs, through the detector and encoder that it was trained with.

detector = HOIDetector.from_pretrained("runs/pico/latest/checkpoint")
result = detector("photo.jpg")
result.show()
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from hoi_distill.pipeline.config.whereabouts import home_of, names_of_checkpoint
from hoi_distill.pipeline.filling.run import refuse_absent
from hoi_distill.pipeline.graph.builder import build_stage
from hoi_distill.pipeline.hoi_result import HOIResult
from hoi_distill.stages.chained import Chained
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.image import decode
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.stage import Batch, Stage, TensorOutput, fingerprint_record
from hoi_distill.stages.student.data import TestSet
from hoi_distill.stages.student.source import MemorySource
from hoi_distill.stages.student.student import Student
from hoi_distill.stages.teacher.detectors.detectron2_code import refuse_code
from hoi_distill.stages.teacher.detectors.given import DetectionsFromFile, GivenDetections
from hoi_distill.storage.digests import as_rows, fingerprint
from hoi_distill.storage.errors import InputFailure, UserError
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.shards.cells import cells
from hoi_distill.storage.shards.codecs import Codec
from hoi_distill.workers.host_copies import to_numpy

ImageInput = str | Path | Image.Image | np.ndarray
"""A file, an http(s) address, a PIL image, or ``uint8 [H, W, 3]`` RGB."""
StageKeys = tuple[str, dict[str, Any]]
"""A stage's name in configurations, and its keys."""
WAIT = 30.0
"""Seconds to wait for a server."""


class HOIDetector:
    """A student, with the stages that give it what it reads: an image's boxes and feature maps.

    Args:
        student: from :func:`hoi_distill.stages.student.pretrained.load_student`.
        checkpoint: its folder, for messages.
        device: where detector, encoder and student work.
        detections: a COCO results JSON with boxes by file name, instead of the student's own detector.
        detector: a detector's folder or hub id, instead of the student's own.
        threshold: results leave out pairs of a lower score.

    Raises:
        UserError: the student takes no boxes and is given some, or is given both kinds.
    """

    def __init__(
        self,
        student: Student,
        checkpoint: Path,
        *,
        device: str = "cpu",
        detections: Path | None = None,
        detector: str | None = None,
        threshold: float = 0.0,
    ) -> None:
        self.boxes = other_boxes(checkpoint, student, detections, detector)
        self.student, self.checkpoint, self.device, self.threshold = student, checkpoint, device, threshold
        self._stages: dict[str, Stage] = {}
        self._boxes_known = False  # whether some image had given boxes
        self._shared: dict[Any, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        device: str | None = None,
        detections: str | Path | None = None,
        detector: str | Path | None = None,
        threshold: float = 0.0,
    ) -> HOIDetector:
        """Load a checkpoint.

        Args:
            source: a checkpoint's folder, or the name of a repository on the model hub.
            revision: branch, tag or commit of a repository; default: its newest.
            device: ``cpu``, ``cuda`` or another name that torch knows; default: a GPU where there is one.
            detections: a COCO results JSON with boxes by file name, for a student whose boxes came from a file.
            detector: a detector's folder or hub id, for a student whose boxes came from a file.
            threshold: results leave out pairs of a lower score.

        Raises:
            UserError: no such checkpoint or device, or a checkpoint that is damaged or of another version.
        """
        from hoi_distill.stages.student.pretrained import best_device, checkpoint_folder, load_student

        device = device or best_device()
        refuse_absent(device, "device")
        folder = checkpoint_folder(source, revision)
        boxes, finder = (
            (None if detections is None else Path(detections)),
            (None if detector is None else str(detector)),
        )
        student = load_student(folder)
        return cls(student, folder, device=device, detections=boxes, detector=finder, threshold=threshold)

    def push_to_hub(self, repository: str, *, license_name: str, private: bool = False) -> str:
        """Upload the checkpoint to the model hub, with a card that is written from its run.

        Args:
            repository: ``organisation/name``; made where there is none.
            license_name: the hub's key of the license of these weights, such as ``apache-2.0`` or ``other``.
            private: whether a new repository is private.

        Returns:
            The address of the commit.

        Raises:
            UserError: the checkpoint is damaged, or the hub refuses or cannot be reached.
        """
        from hoi_distill.pipeline.hub import push_to_hub

        return push_to_hub(self.checkpoint, repository, license_name=license_name, private=private)

    @overload
    def __call__(self, images: ImageInput) -> HOIResult: ...

    @overload
    def __call__(self, images: list[ImageInput] | tuple[ImageInput, ...]) -> list[HOIResult]: ...

    def __call__(self, images: ImageInput | list[ImageInput] | tuple[ImageInput, ...]) -> HOIResult | list[HOIResult]:
        """The pairs of one image, or of each image of a list.

        Raises:
            UserError: an image that cannot be read, or a detector or encoder that is not there or is another one than the
                student was trained with.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            (result,) = self.stream([images])
            return result
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageInput], batch_size: int = 16) -> Iterator[HOIResult]:
        """The pairs of each image, in order. One batch of images is in memory at a time.

        Args:
            images: any number of images.
            batch_size: images that are computed together.

        Raises:
            UserError: as a call does; at the end, if boxes are given and are of none of these images.
        """
        waiting, self._boxes_known = iter(images), False
        while batch := list(islice(waiting, batch_size)):
            loaded = [load_image(image) for image in batch]
            names = [Path(image).name if isinstance(image, (str, Path)) else "" for image in batch]
            ids = [str(index) for index in range(len(batch))]
            with self.predicted(loaded, names=names, ids=ids) as file:
                found = read_detections(file, ids, self.student.vocabulary, object_optional=True)
            for index, image in enumerate(loaded):
                yield result_of(found, index, image, self.student.vocabulary, self.threshold)
        if self.boxes is not None and self.boxes[0] == "detections_file" and not self._boxes_known:
            file = self.boxes[1]["path"]
            raise UserError(f"{file}: it has no box of any of these images; it names images as their files are called")

    @contextlib.contextmanager
    def predicted(self, images: Sequence[Image.Image], *, names: Sequence[str], ids: Sequence[str]) -> Iterator[Path]:
        """A temporary Parquet file of the detections in one batch of images.

        Args:
            images: N RGB images, N >= 1.
            names: N names, by which given boxes are looked up.
            ids: N distinct names, which stand in the file.

        Raises:
            UserError: a detector or encoder that is not there, or is another one than the student was trained with.
        """
        rows = as_rows([os.urandom(16) for _ in images])  # nothing is kept, so that nobody looks for their content
        whole = Batch(rows, list(names), len(images), list(images))
        tables = {
            role: computed(self._stage(role, whole), columns, whole) for role, columns in self.student.tables().items()
        }
        identity = fingerprint({"rows": rows.tobytes().hex()})
        test = TestSet(MemorySource(tables), list(ids), lambda row: np.asarray(images[row]), identity=identity)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            yield self.student.predict(test, folder, folder, report=_silent, device=self.device)

    def _stage(self, role: str, whole: Batch) -> Stage:
        """The open stage of a table that the student reads."""
        if role not in self._stages:
            sizes = [image.size for image in whole.images]
            annotations = without_pairs(whole.keys, sizes, self.student.vocabulary)
            boxes = self.boxes if role == "detections" else None
            stage = own_stage(self.checkpoint, self.student, role, annotations, boxes)
            stage.open(self.device, self._shared)
            if isinstance(stage, GivenDetections):  # it looks boxes up by name, so it is built anew for each batch
                if isinstance(stage, DetectionsFromFile):  # it may be about others than this batch
                    stage.partial = boxes is not None or self._boxes_known
                if boxes is None and not self._boxes_known:
                    self._refuse_unknown(stage, whole.keys)
                self._boxes_known = self._boxes_known or len(stage.detections.scores) > 0
                return stage
            self._stages[role] = stage
        return self._stages[role]

    def _refuse_unknown(self, stage: GivenDetections, names: Sequence[str]) -> None:
        """Raises UserError where the file of the training has no box of any of these images: they are new to it."""
        try:
            known = len(stage.detections.scores) > 0
        except UserError:  # which several files say of images that none of them has
            known = False
        if not known:
            more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            raise UserError(
                f"{self.checkpoint}: it was trained on boxes that were given, and there are none of {names[0] or 'an image'}"
                f"{more}; name a detector with --detector (detector=), or a file of boxes with --detections (detections=)"
            )


def _silent(_: str) -> None:
    """A student's report, which its caller does not want."""


def load_image(source: ImageInput) -> Image.Image:
    """An RGB image, upright.

    Raises:
        UserError: it is missing, cannot be read, or is no array of an image.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise UserError(f"an array of {source.dtype} {list(source.shape)} is no image; give uint8 [H, W, 3], RGB")
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source).convert("RGB")
    try:
        if str(source).startswith(("http://", "https://")):
            with urllib.request.urlopen(str(source), timeout=WAIT) as answer:  # only these two kinds of address
                data = answer.read()
        else:
            data = Path(source).expanduser().read_bytes()
        return decode(data)
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror or error}") from None
    except InputFailure as error:
        raise UserError(f"{source}: {error}") from None


def result_of(
    found: HoiDetections, position: int, image: Image.Image, vocabulary: Vocabulary, threshold: float = 0.0
) -> HOIResult:
    """The pairs of one image among the detections of a batch.

    Args:
        found: the detections.
        position: the image's.
        image: the image itself.
        vocabulary: of the detections.
        threshold: pairs of a lower score are left out.
    """
    rows = np.flatnonzero((found.image == position) & (found.score >= threshold))
    rows = rows[np.argsort(-found.score[rows], kind="stable")]
    there = found.object[rows] >= 0
    return HOIResult(
        image=image,
        human_box=found.human_box[rows],
        object_box=np.where(there[:, None], found.object_box[rows], np.float32(np.nan)),
        verb=[vocabulary.verbs[verb] for verb in found.verb[rows]],
        object=[vocabulary.objects[obj] if obj >= 0 else "" for obj in found.object[rows]],
        score=found.score[rows],
    )


def without_pairs(names: Sequence[str], sizes: Sequence[tuple[int, int]], vocabulary: Vocabulary) -> Annotations:
    """Annotations of images that have none: names and sizes (width, height)."""
    width, height = (np.array(side, np.int32) for side in zip(*sizes, strict=True))
    no_box, none = np.zeros((0, 4), np.float32), np.zeros(0, np.int16)
    return Annotations(
        name="images",
        split="test",
        vocabulary=vocabulary,
        image_id=np.array(names),
        path=list(names),
        width=width,
        height=height,
        pair_offsets=np.zeros(len(names) + 1, np.int64),
        human_box=no_box,
        object_box=no_box,
        object=none,
        verb=none,
        hoi=none,
    )


def other_boxes(checkpoint: Path, student: Student, detections: Path | None, detector: str | None) -> StageKeys | None:
    """What gives a student its boxes where it is not the detector that it was trained with.

    Args:
        checkpoint: for messages.
        student: whose boxes they are.
        detections: a COCO results JSON.
        detector: a detector's folder or hub id.

    Raises:
        UserError: the student takes no boxes and is given some, or is given both kinds.
    """
    if detections is None and detector is None:
        return None
    given = "--detector" if detections is None else "--detections"
    if "detections" not in student.tables():
        raise UserError(f"{checkpoint}: a student of method {student.method} takes no boxes; leave {given} out")
    if detector is None:
        identity = student.identities["detections"]
        made = dict(identity["parameters"])
        own = identity["stage"] in ("ground_truth_boxes", "open_vocabulary_detections")
        counted = "vocabulary" if own else made.get("categories") or "coco"
        return "detections_file", {"path": str(detections), "categories": counted}
    if detections is not None:
        raise UserError("--detections and --detector both give boxes; leave one out")
    if student.vocabulary.objects != COCO_OBJECTS:
        raise UserError(f"{checkpoint}: its objects are not COCO's, which --detector finds; give --detections")
    return "detector", {"checkpoint": detector}


def own_stage(
    checkpoint: Path, student: Student, role: str, annotations: Annotations, boxes: StageKeys | None = None
) -> Stage:
    """The stage that gave the student its ``role`` table, built as it was then.

    Args:
        checkpoint: the student's folder.
        student: whose table it is.
        role: ``detections`` or ``features``.
        annotations: names and sizes of the images.
        boxes: another stage instead, from :func:`other_boxes`.

    Raises:
        UserError: it cannot be built, or has other answers than the student was trained on.
    """
    with tempfile.TemporaryDirectory() as scratch:
        memory = DigestMemory(Path(scratch) / "digests.sqlite")
        context = StageContext(student.vocabulary, {"test": annotations}, memory.digests)
        if boxes is not None:
            return build_stage(*boxes, context, f"boxes of {checkpoint}")
        return _as_then(checkpoint, role, student.identities.get(role), context)


def _as_then(checkpoint: Path, role: str, identity: Any, context: StageContext) -> Stage:
    """The stage of an identity, with the stages that it reads.

    Raises:
        UserError: it cannot be built, or has other answers than the student was trained on.
    """
    kind, given = said_stage(checkpoint, role, identity)
    relative = [name for name in names_of_checkpoint(checkpoint) if not Path(name).expanduser().is_absolute()]
    parameters = in_folder(given, home_of(checkpoint, relative))
    stage = build_stage(kind, parameters, context, f"{checkpoint}: identities.{role}")
    record = fingerprint_record(stage)
    if fingerprint(record) != identity["fingerprint"]:
        changed = [key for key in record if record[key] != identity["record"].get(key)]
        raise UserError(
            f"{checkpoint}: trained on {role} {identity['fingerprint'][:12]}, offered {fingerprint(record)[:12]}: "
            f"they differ in {', '.join(changed)}; restore {parameters.get('checkpoint', kind)}"
        )
    if not stage.inputs:
        return stage
    above = identity.get("inputs") or {}
    return Chained(stage, {up: _as_then(checkpoint, up, above.get(up), context) for up in stage.inputs})


def in_folder(parameters: Any, home: Path) -> Any:
    """A stage's parameters, in which paths that lie in a folder are absolute.

    Args:
        parameters: any nesting of dicts and lists.
        home: the folder in which relative paths are read.
    """
    if isinstance(parameters, dict):
        return {key: in_folder(value, home) for key, value in parameters.items()}
    if isinstance(parameters, list):
        return [in_folder(value, home) for value in parameters]
    if isinstance(parameters, str) and "/" in parameters and (home / parameters).exists():
        return str(home / parameters)
    return parameters


def said_stage(checkpoint: Path, role: str, identity: Any) -> tuple[str, dict[str, Any]]:
    """The stage that a checkpoint names and its parameters, of which no file runs code of its own when it is read: a checkpoint
    may be anybody's.

    Raises:
        UserError: it names none, or such a file.
    """
    try:
        kind, parameters, _ = str(identity["stage"]), dict(identity["parameters"]), identity["fingerprint"]
    except (LookupError, TypeError, ValueError):
        raise UserError(
            f"{checkpoint}/config.json: identities.{role} does not say what made that table; use a checkpoint that training wrote"
        ) from None
    if kind == "detectron2":
        try:
            refuse_code(str(parameters.get("config")), str(parameters.get("weights")))
        except UserError as error:
            raise UserError(f"{checkpoint}: identities.{role}: {error}") from None
    return kind, parameters


def computed(stage: Stage, columns: Sequence[str] | None, whole: Batch) -> dict[str, Sequence[Any]]:
    """``{column: N values}`` of all images, batch by batch, by a stage that is open.

    Args:
        stage: the stage.
        columns: C of its columns; None: all.
        whole: the images.
    """
    columns = stage.columns if columns is None else columns
    values: dict[str, list[Any]] = {column: [] for column in columns}
    for start in range(0, whole.count, stage.batch_size):
        stop = min(start + stage.batch_size, whole.count)
        batch = Batch(whole.row_ids[start:stop], whole.keys[start:stop], stop - start, whole.images[start:stop])
        for column, answers in stage.compute(batch, columns, {}).items():
            if isinstance(answers, pa.Array):
                values[column] += map(cells(answers), range(len(answers)))
            else:
                assert isinstance(stage.output, TensorOutput)
                codec = Codec(stage.output.codec, stage.output.shape)
                values[column] += list(codec.decode(codec.encode(to_numpy(answers, stage.output))))
    return dict(values)
