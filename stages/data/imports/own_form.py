"""Annotations of another program in the form of :mod:`hoi_distill.stages.data.folder`, checked against the images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.image import header_size
from hoi_distill.stages.data.imports.coco_like import read_coco
from hoi_distill.stages.data.imports.csv_rows import read_csv
from hoi_distill.stages.data.imports.cvat import read_cvat
from hoi_distill.stages.data.imports.label_studio import read_label_studio
from hoi_distill.stages.data.imports.listed import Box, ListedImage, ListedPair
from hoi_distill.stages.data.listing import images_below
from hoi_distill.stages.data.reading.json_columns import read_json
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.data.word_lists import name_of, vocabulary_of
from hoi_distill.storage.errors import UserError, did_you_mean

FORMS = "a CSV table, COCO-like JSON, or an export of Label Studio (JSON) or CVAT (XML)"
_SLACK = 1.0
"""Pixels by which a box may reach beyond its image, as programs round."""


@dataclass(frozen=True)
class Imported:
    """Annotations that are ready to be written.

    Attributes:
        pictures: The records of docs/formats.md, one for each annotated image.
        vocabulary: The classes.
    """

    pictures: list[dict[str, Any]]
    vocabulary: Vocabulary

    def images(self, split: str) -> int:
        """How many annotated images a split has."""
        return sum(record["split"] == split for record in self.pictures)

    def pairs(self) -> int:
        """How many people and objects with a verb there are, each verb once."""
        return sum(len(pair["verbs"]) for record in self.pictures for pair in record["pairs"])


def read_annotations(path: Path) -> list[ListedImage]:
    """The annotated images of a file of any form that is known (:data:`FORMS`).

    Raises:
        UserError: With the file and the place in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; annotations are {FORMS}")
    if path.suffix.lower() == ".xml":
        found = read_cvat(path)
    elif path.suffix.lower() == ".csv":
        found = read_csv(path)
    else:
        document = read_json(path, object, FORMS)
        if isinstance(document, list):
            found = read_label_studio(path, document)
        elif isinstance(document, dict) and "pictures" in document:
            raise UserError(f"{path}: in the project's own form already; name it under dataset.annotations")
        elif isinstance(document, dict) and "images" in document:
            found = read_coco(path, document)
        else:
            raise UserError(f"{path}: none of the forms that are known; annotations are {FORMS}")
    if not found:
        raise UserError(f"{path}: no image in it is annotated; annotate some, then export again")
    return found


def own_form(listed: Sequence[ListedImage], root: Path, words: Vocabulary | None, test: float) -> Imported:
    """The records of annotated images, whose names, boxes and classes are right.

    Args:
        listed: The images as a reader found them.
        root: The folder of the images.
        words: The classes; None: those that are annotated.
        test: The share of the images that becomes the test split where the file names no split at all. Their names decide,
            so that a new image moves at most one other.

    Raises:
        UserError: With the file and the place in it.
    """
    present = images_below(root)
    found: dict[str, ListedImage] = {}
    for image in listed:
        name = _present_name(image, present, root)
        if name in found:
            raise UserError(f"{image.where}: {name} is annotated at {found[name].where} too; keep one of them")
        found[name] = image
    if words is None:
        done = [(name_of(verb), name_of(pair.object)) for each in listed for pair in each.pairs for verb in pair.verbs]
        if not done:
            raise UserError(
                f"{listed[0].where}: no interaction in the whole file; annotate what people do with objects"
            )
        words = vocabulary_of(done, {}, listed[0].where)
    tested = _tested(found, test)
    pictures = []
    for name, image in found.items():
        size = header_size(root / present[name])
        pairs = [_record(pair, size, words) for pair in image.pairs]
        pictures.append({"file_name": name, "split": "test" if name in tested else "train", "pairs": pairs})
    return Imported(pictures, words)


def _present_name(image: ListedImage, present: Mapping[str, str], root: Path) -> str:
    """The name by which an image goes in its folder."""
    for name in image.names:
        if name in present:
            return name
    for name in image.names:
        alike = [known for known in present if known.rpartition("/")[2] == name.rpartition("/")[2]]
        if len(alike) == 1:
            return alike[0]
        if alike:
            raise UserError(f"{image.where}: {name} may be {' or '.join(alike[:2])} in {root}; write the path below it")
    near = did_you_mean(image.names[0], present)
    raise UserError(f"{image.where}: no image {image.names[0]} in {root}{near}; put it there, or correct the name")


def _tested(found: Mapping[str, ListedImage], share: float) -> set[str]:
    """The names of the test images: those that say so, or, where no image says anything, a share of all."""
    if any(image.split for image in found.values()):
        return {name for name, image in found.items() if image.split == "test"}
    order = sorted(found, key=lambda name: hashlib.blake2b(name.encode()).digest())
    return set(order[: round(share * len(order))])


def _record(pair: ListedPair, size: tuple[int, int], words: Vocabulary) -> dict[str, Any]:
    obj, verbs = name_of(pair.object), [name_of(verb) for verb in pair.verbs]
    for kind, name, known in (("object", obj, words.objects), *(("verb", verb, words.verbs) for verb in verbs)):
        if name not in known:
            raise UserError(f"{pair.where}: unknown {kind} {name!r}{did_you_mean(name, known)}; add it to the {kind}s")
    for verb in verbs:
        if words.hoi_id()[words.verbs.index(verb), words.objects.index(obj)] < 0:
            raise UserError(f"{pair.where}: {verb} {obj} is none of the interactions; add {obj} to the verb's line")
    return {
        "human_box": _inside(pair.human_box, size, pair.where, "the person's box"),
        "object_box": _inside(pair.object_box, size, pair.where, "the object's box"),
        "object": obj,
        "verbs": verbs,
    }


def _inside(box: Box, size: tuple[int, int], where: str, what: str) -> list[float]:
    """The box cut to its image, to a hundredth of a pixel."""
    limits = np.array([*size, *size], np.float64)
    if not limits.all():  # an image that nobody can open; decoding it will say why
        return [round(value, 2) for value in box]
    given = np.array(box)
    if (given < -_SLACK).any() or (given > limits + _SLACK).any():
        told = ", ".join(f"{value:g}" for value in box)
        raise UserError(f"{where}: {what} {told} reaches beyond the {size[0]} x {size[1]} image; correct it")
    return np.round(given.clip(0, limits), 2).tolist()
