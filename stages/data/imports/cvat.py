"""Annotations as CVAT exports them ("CVAT for images 1.1", XML): boxes, whose attribute ``verb`` says what is done.

CVAT has no relations. A box of an object has a text attribute ``verb`` with one verb or several, separated by commas. Who does
it is the ``person`` box of the same group, or, without a group, the only person of the image. An image without any box
counts as not looked at.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from hoi_distill.stages.data.imports.listed import Box, ListedImage, ListedPair, box_of, split_of
from hoi_distill.stages.data.word_lists import PERSON, name_of
from hoi_distill.storage.errors import UserError


def read_cvat(path: Path) -> list[ListedImage]:
    """The images that have a box.

    Raises:
        UserError: With the file, the image's name and the box's number in it, from 1.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: not readable as XML ({error}); export as CVAT for images 1.1") from None
    if root.tag != "annotations" or root.find("image") is None:
        raise UserError(f"{path}: no image under <annotations>; export as CVAT for images 1.1")
    found = []
    for number, image in enumerate(root.iter("image"), start=1):
        name = image.get("name")
        if not name:
            raise UserError(f"{path}: image {number} has no name; export as CVAT for images 1.1")
        where = f"{path}: image {name}"
        boxes = image.findall("box")
        if boxes:
            found.append(ListedImage(where, (name,), tuple(_pairs(boxes, where)), split_of(_split(image), where)))
    return found


def _split(image: ElementTree.Element) -> str | None:
    """CVAT's own subset, whose names begin with a capital."""
    subset = (image.get("subset") or "").lower()
    return subset if subset in ("train", "test") else None


def _pairs(boxes: list[ElementTree.Element], where: str) -> list[ListedPair]:
    places = [f"{where}, box {number}" for number in range(1, len(boxes) + 1)]
    corners = [_corners(box, place) for box, place in zip(boxes, places, strict=True)]
    people = [number for number, box in enumerate(boxes) if name_of(box.get("label", "")) == PERSON]
    pairs = []
    for number, (box, place) in enumerate(zip(boxes, places, strict=True)):
        said = next((each.text or "" for each in box.findall("attribute") if each.get("name") == "verb"), "")
        verbs = tuple(verb.strip() for verb in said.split(",") if verb.strip())
        if not verbs:
            continue
        group = box.get("group_id")
        others = [person for person in people if person != number]
        acting = [person for person in others if boxes[person].get("group_id") == group] if group else others
        if len(acting) != 1:
            there = f"{len(acting) or 'no'} {'person' if len(acting) == 1 else 'people'}"
            which = f"in group {group}" if group else "in the image"
            raise UserError(f"{place}: {there} {which} to {verbs[0]} it; group the box with one person")
        pairs.append(ListedPair(place, corners[acting[0]], corners[number], box.get("label", ""), verbs))
    return pairs


def _corners(box: ElementTree.Element, where: str) -> Box:
    try:
        values = [float(box.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr")]
    except ValueError:
        raise UserError(f"{where}: xtl, ytl, xbr and ybr are not four numbers; export again") from None
    if float(box.get("rotation") or 0):
        raise UserError(f"{where}: turned by {box.get('rotation')} degrees; draw it upright")
    return box_of(values, where, "the box")
