"""Annotations as COCO's instances, with a list of interactions beside them::

    {"images": [{"id": 1, "file_name": "ship.jpg", "split": "train"}],
     "categories": [{"id": 1, "name": "person"}, {"id": 9, "name": "boat"}],
     "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [108, 254, 28, 73]},
                     {"id": 8, "image_id": 1, "category_id": 9, "bbox": [0, 132, 585, 149]}],
     "interactions": [{"subject_id": 7, "object_id": 8, "verb": "wave"}]}

``bbox`` is x, y, width, height. ``subject_id`` and ``object_id`` are ids of annotations of one image; the subject is a person.
``split`` may be left out. Other keys are passed over. An image without any annotation counts as not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hoi_distill.stages.data.imports.listed import Box, ListedImage, ListedPair, box_of, split_of
from hoi_distill.stages.data.word_lists import PERSON, name_of
from hoi_distill.storage.errors import UserError


def read_coco(path: Path, document: Mapping[str, Any]) -> list[ListedImage]:
    """The images that have an annotation (form: this module's docstring).

    Args:
        path: The file, for errors.
        document: Its content.

    Raises:
        UserError: With the file, the list and the number in it, from 1.
    """
    names = {key: name_of(str(each["name"])) for key, each, _ in _by_id(path, document, "categories", ("name",))}
    images = {key: (each, where, []) for key, each, where in _by_id(path, document, "images", ("file_name",))}  # type: dict[Any, tuple[dict[str, Any], str, list[ListedPair]]]
    boxes: dict[Any, tuple[Any, str, Box]] = {}
    for key, each, where in _by_id(path, document, "annotations", ("image_id", "category_id", "bbox")):
        if each["image_id"] not in images:
            raise UserError(f"{where}: image_id {each['image_id']!r} is no id of images; add the image")
        if each["category_id"] not in names:
            raise UserError(f"{where}: category_id {each['category_id']!r} is no id of categories; add the category")
        boxes[key] = each["image_id"], names[each["category_id"]], _corners(each["bbox"], where)
    if "interactions" not in document:
        raise UserError(
            f"{path}: no list 'interactions'; it holds {{subject_id, object_id, verb}} by ids of annotations"
        )
    for number, each in enumerate(_list(path, document, "interactions"), start=1):
        where = f"{path}: interactions, entry {number}"
        _refuse_lacking(each, ("subject_id", "object_id", "verb"), where)
        for key in ("subject_id", "object_id"):
            if each[key] not in boxes:
                raise UserError(f"{where}: {key} {each[key]!r} is no id of annotations; correct it")
        (image, human, human_box), (other, obj, object_box) = boxes[each["subject_id"]], boxes[each["object_id"]]
        if human != PERSON:
            raise UserError(
                f"{where}: the subject {each['subject_id']!r} is a {human}; a person acts, swap the two ids"
            )
        if image != other:
            raise UserError(
                f"{where}: subject {each['subject_id']!r} and object {each['object_id']!r} are of two images"
            )
        images[image][2].append(ListedPair(where, human_box, object_box, obj, (str(each["verb"]),)))
    looked_at = {image for image, _, _ in boxes.values()}
    return [
        ListedImage(where, (str(each["file_name"]),), tuple(pairs), split_of(each.get("split"), where))
        for key, (each, where, pairs) in images.items()
        if key in looked_at
    ]


def _by_id(path: Path, document: Mapping[str, Any], key: str, needed: tuple[str, ...]) -> list[tuple[Any, Any, str]]:
    """(id, entry, where it stands) of a list whose ids are each there once."""
    found, seen = [], {}  # type: list[tuple[Any, Any, str]], dict[Any, int]
    for number, each in enumerate(_list(path, document, key), start=1):
        where = f"{path}: {key}, entry {number}"
        _refuse_lacking(each, ("id", *needed), where)
        if not isinstance(each["id"], int | str):
            raise UserError(f"{where}: id {each['id']!r}; a number or a text is wanted")
        if (first := seen.setdefault(each["id"], number)) != number:
            raise UserError(f"{where}: id {each['id']!r} is that of entry {first}; give each its own")
        found.append((each["id"], each, where))
    return found


def _list(path: Path, document: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(document.get(key), list):
        raise UserError(f"{path}: {key} is no list; see docs/own-data.md")
    return list(document[key])


def _refuse_lacking(each: Any, keys: tuple[str, ...], where: str) -> None:
    lacks = next((key for key in keys if not isinstance(each, dict) or key not in each), None)
    if lacks is not None:
        raise UserError(f"{where}: lacks {lacks!r}; it needs {', '.join(keys)}")


def _corners(box: Any, where: str) -> Box:
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
        raise UserError(f"{where}: bbox is {box!r}; x, y, width, height in pixels are wanted")
    x, y, width, height = box
    return box_of([x, y, x + width, y + height], where, "bbox")
