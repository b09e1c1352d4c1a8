"""Human-object interactions in pictures that no cache has seen: the same stages, computed into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hoi_distill.pipeline.console.watch import working
from hoi_distill.pipeline.filling.run import refuse_absent
from hoi_distill.pipeline.graph.builder import build_stage
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.image import decode
from hoi_distill.stages.data.listing import readable
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.evaluate.pages.drawing import drawn
from hoi_distill.stages.evaluate.pages.pictures import Pair
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.stage import Batch, Stage, TensorOutput, fingerprint_record
from hoi_distill.stages.student.data import TestSet
from hoi_distill.stages.student.source import MemorySource
from hoi_distill.stages.student.student import Student
from hoi_distill.stages.teacher.detectors.detectron2_code import refuse_code
from hoi_distill.storage.digests import as_rows, digest_bytes, fingerprint
from hoi_distill.storage.errors import InputFailure, UserError
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.files.atomic import atomic_write, write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing
from hoi_distill.storage.shards.cells import cells
from hoi_distill.storage.shards.codecs import Codec
from hoi_distill.workers.loading import to_numpy

if TYPE_CHECKING:
    from PIL import Image

DRAWN = 12
"""At most so many triplets are drawn into a picture."""


def predict_pictures(
    checkpoint: Path,
    images: Sequence[Path],
    out: Path,
    *,
    threshold: float,
    detections: Path | None = None,
    device: str | None = None,
) -> Path:
    """Write ``detections.parquet`` and a drawn copy of every picture, ``<name>.predicted.png``.

    Whatever the pictures' names end in, no other file is opened than these pictures.

    Args:
        checkpoint: the folder of the student's checkpoint.
        images: the picture files, no two of one name.
        out: the folder that is written to.
        threshold: triplets of a lower score are not drawn; the file holds all.
        detections: a COCO results JSON with boxes of these pictures (by file name) instead of the student's own source.
        device: where detector, encoder and student work; default: a GPU where there is one.

    Returns:
        The Parquet file.

    Raises:
        UserError: a missing or unreadable picture, a detector or encoder other than the student was trained with, no such
            device, or an ``out`` that cannot be written; all before anything is computed.
    """
    from hoi_distill.stages.student.pretrained import best_device, load_student

    device = device or best_device()
    refuse_absent(device, "--device")
    refuse_unwritable("--out", out, folder=True)
    with working("loading the student"):
        student = load_student(checkpoint)
    if detections is not None and "detections" not in student.tables():
        raise UserError(f"{checkpoint}: a student of method {student.method} takes no boxes; leave --detections out")
    pictures, data = [], []
    for path in images:
        try:
            data.append(path.read_bytes())
            pictures.append(decode(data[-1]))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except InputFailure as error:
            raise UserError(f"{path}: {error}") from None
    annotations = given_pictures(images, [picture.size for picture in pictures], student)
    whole = Batch(
        as_rows([digest_bytes(d) for d in data]), [str(name) for name in annotations.image_id], len(images), pictures
    )
    tables: dict[str, dict[str, Sequence[Any]]] = {}
    shared: dict[Any, Any] = {}
    for role, columns in student.tables().items():
        with working(f"computing {role}"):
            stage = own_stage(checkpoint, student, role, annotations, detections)
            tables[role] = computed(stage, stage.columns if columns is None else columns, whole, shared, device)
    test = TestSet(
        MemorySource(tables),
        list(whole.keys),
        lambda row: np.asarray(pictures[row]),
        identity=fingerprint({"rows": whole.row_ids.tobytes().hex()}),
    )
    with working("predicting"), tempfile.TemporaryDirectory() as scratch:
        made = student.predict(test, Path(scratch), Path(scratch), device=device)
        found = made.read_bytes()
    target = out / "detections.parquet"
    with writing(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(target, found)
        draw(target, dict(zip(whole.keys, pictures, strict=True)), student.vocabulary, threshold)
    print(f"{target}; pictures: {out}")
    return target


def given_pictures(paths: Sequence[Path], sizes: Sequence[tuple[int, int]], student: Student) -> Annotations:
    """Annotations without pairs, pictures named by their file names."""

    names = [readable(path.name) for path in paths]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice}: two pictures of this name; predict them in two calls")
    width, height = (np.array(side, np.int32) for side in zip(*sizes, strict=True))
    no_box, none = np.zeros((0, 4), np.float32), np.zeros(0, np.int16)
    return Annotations(
        name="pictures",
        split="test",
        vocabulary=student.vocabulary,
        image_id=np.array(names),
        path=[str(path) for path in paths],
        width=width,
        height=height,
        pair_offsets=np.zeros(len(paths) + 1, np.int64),
        human_box=no_box,
        object_box=no_box,
        object=none,
        verb=none,
        hoi=none,
    )


def own_stage(
    checkpoint: Path, student: Student, role: str, annotations: Annotations, detections: Path | None
) -> Stage:
    """The stage that gave the student its ``role`` table, built as it was then; another teacher's answers are refused."""

    identity: Any = student.identities.get(role)
    if role == "detections" and detections is not None:
        made = dict(identity["parameters"])
        counted = "vocabulary" if identity["stage"] == "ground_truth_boxes" else made.get("categories") or "coco"
        kind, parameters = "detections_file", {"path": str(detections), "categories": counted}
    else:
        kind, parameters = said_stage(checkpoint, role, identity)
    with tempfile.TemporaryDirectory() as scratch:
        memory = DigestMemory(Path(scratch) / "digests.sqlite")
        context = StageContext(student.vocabulary, {"test": annotations}, memory.digests)
        stage = build_stage(kind, parameters, context, f"{checkpoint}: identities.{role}")
    record = fingerprint_record(stage)
    if (role != "detections" or detections is None) and fingerprint(record) != identity["fingerprint"]:
        changed = [key for key in record if record[key] != identity["record"].get(key)]
        raise UserError(
            f"{checkpoint}: trained on {role} {identity['fingerprint'][:12]}, offered {fingerprint(record)[:12]}: "
            f"they differ in {', '.join(changed)}; restore {parameters.get('checkpoint', kind)}"
        )
    return stage


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


def computed(
    stage: Stage, columns: Sequence[str], whole: Batch, shared: dict[Any, Any], device: str
) -> dict[str, Sequence[Any]]:
    """``{column: N values}`` of all pictures, batch by batch."""

    stage.open(device, shared)
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


def draw(detections: Path, pictures: Mapping[str, Image.Image], vocabulary: Vocabulary, threshold: float) -> None:
    """Write beside a detections file a copy of every picture with its best triplets.

    Args:
        detections: the Parquet file. Copies are named ``<name>.predicted.png``.
        pictures: RGB, by name.
        vocabulary: of the detections.
        threshold: triplets of a lower score are not drawn.
    """

    found = read_detections(detections, np.array(list(pictures)), vocabulary, object_optional=True)
    for image, (name, picture) in enumerate(pictures.items()):
        rows = np.flatnonzero((found.image == image) & (found.score >= threshold))
        best = rows[np.argsort(-found.score[rows], kind="stable")][:DRAWN]
        pairs = [
            Pair(
                found.human_box[row].tolist(),
                (found.object_box if found.object[row] >= 0 else found.human_box)[row].tolist(),
                vocabulary.verbs[found.verb[row]].replace("_", " "),
                vocabulary.objects[found.object[row]].replace("_", " ") if found.object[row] >= 0 else "",
                float(found.score[row]),
            )
            for row in best
            if vocabulary.verbs[found.verb[row]] != "no_interaction"
        ]
        with atomic_write(detections.with_name(f"{name}.predicted.png")) as file:
            drawn(picture, pairs).save(file, "PNG")
