"""``hoi-distill init``: from a folder of images to a project with a configuration that runs on this machine."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2

import hoi_distill
from hoi_distill.pipeline.own_data.look import Album, Machine, look_at, this_machine
from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.stages.data.folder import load_folder
from hoi_distill.stages.data.imports.own_form import Imported, own_form, read_annotations
from hoi_distill.stages.data.object_detections import load_detections
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.stages.data.word_lists import read_word_lists
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing

STAND_IN = Path(hoi_distill.__file__).parent / "stages/teacher/pico/itm"
"""The teacher of drawings, which comes with the package."""
LEAST_STEPS = 150
"""Steps that a training is given, however few its images are."""
LEAST_EPOCHS = 10
HELD_OUT_FROM = 20
"""From so many annotated training images on some are held out for validation."""


class Given(NamedTuple):
    """What the user gave beside the images. None: nothing.

    Attributes:
        annotations: a file of annotations, in any form that is known.
        verbs: a file of verbs, one a line.
        objects: a file of objects, one a line.
        boxes: a COCO results file.
        detector: a folder or a hub id.
        teacher: a folder or a hub id of an image-text matching model.
    """

    annotations: Path | None = None
    verbs: Path | None = None
    objects: Path | None = None
    boxes: Path | None = None
    detector: str | None = None
    teacher: str | None = None


@dataclass(frozen=True)
class Boxes:
    """Where boxes come from.

    Attributes:
        kind: a file, a detector, the annotated ones, or nowhere.
        path: the file or the detector.
        categories: what ``category_id`` counts in a file.
    """

    kind: Literal["file", "detector", "annotated", "none"]
    path: str
    categories: Literal["coco", "vocabulary"]


@dataclass(frozen=True)
class Start:
    """What there is to start from.

    Attributes:
        album: the images.
        vocabulary: the classes.
        machine: what can be computed here.
        boxes: where boxes come from.
        teacher: the teacher's folder or hub id; None: none that knows photographs.
    """

    album: Album
    vocabulary: Vocabulary
    machine: Machine
    boxes: Boxes
    teacher: str | None


def start_project(project: Path, images: Path, given: Given, test: float) -> list[str]:
    """Write a project: its configuration, its vocabulary, its annotations and an example of a file of boxes.

    Everything is looked at before the first file is written.

    Args:
        project: the folder, which is made.
        images: the folder of the images.
        given: what the user gave.
        test: the share of the annotated images that is tested on, where the annotations name no test image.

    Returns:
        Lines for the user: what was found, and the next commands.

    Raises:
        UserError: the project is there already, or something of what was given is wrong.
    """
    name = project.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UserError(f"{project}: a project's name has letters, digits, '_', '-' and '.' only; choose another")
    config = project / f"{name}.yaml"
    if config.exists():
        raise UserError(f"{config}: is there already; choose another name, or change that file")
    refuse_unwritable("PROJECT", project, folder=True)
    album = look_at(images)
    words = words_of(given)
    imported = None if given.annotations is None else own_form(read_annotations(given.annotations), images, words, test)
    vocabulary = imported.vocabulary if imported is not None else words or hico_vocabulary()
    if imported is not None and not imported.images("train"):
        raise UserError(f"{given.annotations}: no training image; give some of them the split train")
    machine = this_machine()
    boxes = boxes_of(given, vocabulary, machine, annotated=imported is not None)
    remarks = refuse_bad_boxes(album, boxes, vocabulary)
    teacher = given.teacher or next(iter(machine.teachers), None)
    start = Start(album, vocabulary, machine, boxes, teacher)
    commands = next_commands(config, project, start, annotated=imported is not None)
    text = configuration(project, start, imported, commands)
    with writing(f"{project}"):
        project.mkdir(parents=True, exist_ok=True)
        vocabulary.save(project / "vocabulary.json", "hoi-distill init")
        write_atomically(project / "boxes.example.json", example_of_boxes(album, vocabulary, boxes.categories))
        if imported is not None:
            write_annotations(project / "annotations.json", imported)
        write_atomically(config, text)
    return [
        *_found(start, imported),
        *remarks,
        f"Wrote {config}. Next:",
        *(f"  {command}\n      {what}" for command, what in commands),
    ]


def words_of(given: Given) -> Vocabulary | None:
    """The vocabulary of the user's two files; None where there are none.

    Raises:
        UserError: one of the two alone, or something wrong in them.
    """
    if (given.verbs is None) != (given.objects is None):
        lacks, there = ("--objects", "--verbs") if given.objects is None else ("--verbs", "--objects")
        raise UserError(f"{there}: needs {lacks} too, a text file with one name a line")
    return None if given.verbs is None or given.objects is None else read_word_lists(given.verbs, given.objects)


def write_annotations(path: Path, imported: Imported) -> None:
    """Write annotations in the project's own form. ``vocabulary.json`` lies beside them."""
    records = ",\n".join(json.dumps(record) for record in imported.pictures)
    write_atomically(path, f'{{"vocabulary": "vocabulary.json", "pictures": [\n{records}\n]}}\n')


def boxes_of(given: Given, vocabulary: Vocabulary, machine: Machine, *, annotated: bool) -> Boxes:
    """Where boxes come from: the user's file, a detector that knows the objects, or the annotations.

    Raises:
        UserError: the user's detector cannot know the objects.
    """
    categories: Literal["coco", "vocabulary"] = "coco" if vocabulary.objects == COCO_OBJECTS else "vocabulary"
    if given.boxes is not None:
        return Boxes("file", str(given.boxes), categories)
    detector = given.detector or next(iter(machine.detectors), None)
    if detector is not None and categories == "coco":
        return Boxes("detector", detector, categories)
    if given.detector is not None:
        own = next(name for name in vocabulary.objects if name not in COCO_OBJECTS)
        raise UserError(f"--detector {given.detector}: detectors know COCO's 80 objects, not {own}; give --boxes FILE")
    return Boxes("annotated" if annotated else "none", "", categories)


def refuse_bad_boxes(album: Album, boxes: Boxes, vocabulary: Vocabulary) -> list[str]:
    """Lines on boxes that are allowed and hardly meant.

    Raises:
        UserError: a file of boxes that cannot be read.
    """
    if boxes.kind != "file":
        return []
    objects = vocabulary.objects if boxes.categories == "vocabulary" else None
    return list(load_detections(boxes.path, load_folder(album.root), objects=objects).remarks)


def example_of_boxes(album: Album, vocabulary: Vocabulary, categories: str) -> str:
    """A file of two boxes of the first image, of a person and of an object of the vocabulary."""
    ids = COCO_CATEGORY_IDS if categories == "coco" else range(1, len(vocabulary.objects) + 1)
    other = int(vocabulary.hois[0, 1])
    entries = [
        {"image_id": album.names[0], "category_id": ids[index], "bbox": box, "score": score}
        for index, box, score in ((0, [10.0, 20.0, 100.0, 280.0], 0.98), (other, [60.0, 150.0, 200.0, 160.0], 0.87))
    ]
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n"


def next_commands(config: Path, project: Path, start: Start, *, annotated: bool) -> list[tuple[str, str]]:
    """The next three commands, and what each does."""
    album, boxes = start.album, start.boxes
    typed, out = shlex.quote(str(config)), shlex.quote(f"{project}/predicted")
    plan = (f"hoi-distill plan {typed}", "says what the teacher will be asked, and how much that is")
    if not annotated:
        run = f"hoi-distill run {typed}"
        page = f"hoi-distill page {typed} --out {shlex.quote(f'{project}/page.html')}"
        return [plan, (run, "asks the teacher"), (page, "shows each image with the sentences that match it best")]
    image = shlex.quote(str(album.root / next(name for name in album.names if name not in album.broken)))
    checkpoint = shlex.quote(f"{project}/runs/{project.name}/latest/checkpoint")
    given = {"file": f" --detections {shlex.quote(str(boxes.path))}", "annotated": " --detections boxes.json"}.get(
        boxes.kind, ""
    )
    needs = f"; boxes.json is yours to make, as {project}/boxes.example.json" if boxes.kind == "annotated" else ""
    return [
        plan,
        (f"hoi-distill train {typed} --fill", "asks the teacher, trains a student, and writes its report"),
        (
            f"hoi-distill predict {checkpoint} {image} --out {out}{given}",
            f"finds interactions in an image{needs}",
        ),
    ]


def configuration(project: Path, start: Start, imported: Imported | None, commands: Sequence[tuple[str, str]]) -> str:
    """The text of the configuration.

    Args:
        project: the folder of the project.
        start: what there is to start from.
        imported: the annotations, if there are some.
        commands: the next commands, and what each does.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = lambda value: json.dumps(str(value), ensure_ascii=False)  # YAML knows JSON's texts
    trained, tested = (0, 0) if imported is None else (imported.images("train"), imported.images("test"))
    per_step, others = min(16, trained), len(start.album.names) - trained - tested
    return environment.get_template("configuration.yaml.j2").render(
        name=project.name,
        project=project,
        album=start.album,
        annotated=imported is not None,
        trained=trained,
        tested=tested,
        others=others,
        vocabulary=len(start.vocabulary),
        sentences=start.vocabulary.prompts()[:2],
        commands=commands,
        gpus=start.machine.gpus,
        boxes=start.boxes,
        teacher=start.teacher or STAND_IN,
        standing_in=start.teacher is None,
        per_step=per_step,
        others_per_step=min(3 * per_step, others) if start.boxes.kind != "annotated" else 0,
        epochs=max(LEAST_EPOCHS, math.ceil(LEAST_STEPS * per_step / max(trained, 1))),
        validation=0.2 if trained >= HELD_OUT_FROM else None,
    )


def _found(start: Start, imported: Imported | None) -> list[str]:
    """What was found, a line each."""
    album, vocabulary = start.album, start.vocabulary
    lines = [album.words()]
    lines += [f"  cannot be read: {name}: {reason}" for name, reason in list(album.broken.items())[:5]]
    if imported is not None:
        trained, tested = imported.images("train"), imported.images("test")
        others = len(album.names) - trained - tested
        lines.append(
            f"{imported.pairs():,} annotated interactions; {trained:,} images to train on, {tested:,} to test on, {others:,} "
            "without annotations"
        )
    lines.append(f"{len(vocabulary):,} interactions, such as: {'; '.join(vocabulary.prompts()[:2])}")
    boxes = {
        "file": f"boxes from {start.boxes.path}",
        "detector": f"boxes by {start.boxes.path}",
        "annotated": "no detector on this machine: the annotated boxes stand in",
        "none": "no detector on this machine: no boxes",
    }
    lines.append(boxes[start.boxes.kind])
    stand_in = (
        "no teacher of photographs on this machine: the teacher of drawings stands in, whose scores mean nothing here"
    )
    lines.append(f"teacher: {start.teacher}" if start.teacher else stand_in)
    gpus = start.machine.gpus
    lines.append(f"{gpus} GPU{'s' if gpus != 1 else ''}, {os.cpu_count()} CPU cores")
    return lines
