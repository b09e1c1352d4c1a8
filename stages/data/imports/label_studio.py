"""Annotations as Label Studio exports them (JSON): rectangles, and relations between them whose labels are verbs.

A relation joins a rectangle labelled ``person`` with another rectangle. Between two people it goes from the one who acts. A
task without a completed annotation counts as not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hoi_distill.stages.data.imports.listed import Box, ListedImage, ListedPair, box_of, split_of
from hoi_distill.stages.data.reading.json_columns import is_number
from hoi_distill.stages.data.word_lists import PERSON, name_of
from hoi_distill.storage.errors import UserError

_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file."""


def read_label_studio(path: Path, tasks: Sequence[Any]) -> list[ListedImage]:
    """The images that were annotated.

    Args:
        path: The file, for errors.
        tasks: Its content.

    Raises:
        UserError: With the file and the task's number in it, from 1.
    """
    found = []
    for number, task in enumerate(tasks, start=1):
        where = f"{path}: task {number}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise UserError(f"{where}: no 'data'; export as JSON (not JSON-MIN)")
        done = [
            each for each in task.get("annotations") or [] if isinstance(each, dict) and not each.get("was_cancelled")
        ]
        if not done:
            continue
        if len(done) > 1:
            raise UserError(f"{where}: {len(done)} annotations of one image; keep one of them and export again")
        names = _names(task["data"], where)
        split = split_of(task["data"].get("split"), where)
        found.append(ListedImage(where, names, tuple(_pairs(done[0].get("result") or [], where)), split))
    return found


def _names(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """What the image may be called: the path of a local file, an uploaded file's name with and without what was put before."""
    address = data.get("image") or next((value for value in data.values() if isinstance(value, str)), None)
    if not isinstance(address, str):
        raise UserError(f"{where}: no address of an image under 'data'; name it 'image'")
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    whole = local[0] if local else unquote(parts.path)
    name = whole.rpartition("/")[2]
    return tuple(dict.fromkeys((whole.lstrip("/"), name, _UPLOADED.sub("", name, count=1))))


def _pairs(result: Sequence[Any], where: str) -> list[ListedPair]:
    boxes: dict[Any, tuple[str, Box]] = {}
    for region in result:
        if isinstance(region, dict) and region.get("type") == "rectanglelabels":
            boxes[region.get("id")] = _rectangle(region, f"{where}, region {region.get('id')}")
    pairs = []
    for relation in result:
        if not isinstance(relation, dict) or relation.get("type") != "relation":
            continue
        ends = relation.get("from_id"), relation.get("to_id")
        place = f"{where}, relation {ends[0]} to {ends[1]}"
        verbs = tuple(str(label) for label in relation.get("labels") or ())
        if not verbs:
            raise UserError(f"{place}: no label; label it with a verb")
        if lost := [end for end in ends if end not in boxes]:
            raise UserError(f"{place}: {lost[0]} is no rectangle with a label; draw one, or remove the relation")
        if relation.get("direction") == "left":
            ends = ends[::-1]
        (first, first_box), (second, second_box) = (boxes[end] for end in ends)
        if PERSON not in (first, second):
            raise UserError(f"{place}: it joins a {first} and a {second}; one of the two is labelled person")
        if first == PERSON:
            pairs.append(ListedPair(place, first_box, second_box, second, verbs))
        else:
            pairs.append(ListedPair(place, second_box, first_box, first, verbs))
    return pairs


def _rectangle(region: Mapping[str, Any], where: str) -> tuple[str, Box]:
    value = region.get("value")
    value = value if isinstance(value, dict) else {}
    labels = value.get("rectanglelabels")
    if not isinstance(labels, list) or len(labels) != 1:
        raise UserError(f"{where}: labels {labels!r}; a rectangle has one label, the object's name")
    if value.get("rotation"):
        raise UserError(f"{where}: turned by {value['rotation']} degrees; draw it upright")
    parts = [value.get(key) for key in ("x", "y", "width", "height")]
    size = [region.get(key) for key in ("original_width", "original_height")]
    if not all(is_number(part) for part in [*parts, *size]):
        raise UserError(f"{where}: x, y, width, height, original_width or original_height is no number; export again")
    x, y, width, height = (part * side / 100 for part, side in zip(parts, size * 2, strict=True))  # type: ignore[operator]
    return name_of(str(labels[0])), box_of([x, y, x + width, y + height], where, "the rectangle")
