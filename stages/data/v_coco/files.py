"""V-COCO's files: where people have them, and their content as columns, not yet put together."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, OBJECT_INDEX
from hoi_distill.stages.data.elsewhere import Elsewhere, ImagesElsewhere
from hoi_distill.stages.data.reading.json_columns import integers, number_rows, read_json
from hoi_distill.storage.errors import UserError, did_you_mean

Reject = Callable[[str], None]

_FOLDERS = (
    "", "data", "data/vcoco", "vcoco", "data/splits", "splits", "annotations", "data/annotations", "coco_instances",
    "coco/annotations", "coco-data/annotations", "data/coco/annotations",
)  # fmt: skip
_IMAGES = ("", "images", "coco/images", "coco", "mscoco2014", "data/images", "coco-data", "coco-data/images")
_OBJECT = np.full(91, -1, np.int16)
_OBJECT[list(COCO_CATEGORY_IDS)] = np.arange(len(COCO_CATEGORY_IDS))


def split_files(roots: list[Path], pattern: str, split: str) -> list[Path]:
    """The split's file, or both halves of trainval, in the first of the folders where people have it; [] if nowhere."""
    for parts in [[split], ["train", "val"]] if split == "trainval" else [[split]]:
        names = [pattern.format(part) for part in parts]
        for folder in (root / place for root in roots for place in _FOLDERS):
            if all((folder / name).is_file() for name in names):
                return [folder / name for name in dict.fromkeys(names)]
    return []


def require(roots: list[Path], patterns: list[str], split: str, what: str) -> list[Path]:
    """:func:`split_files` of the first pattern that is there.

    Raises:
        UserError: With what was looked for, if none is there.
    """
    for pattern in patterns:
        if files := split_files(roots, pattern, split):
            return files
    names = " or ".join(pattern.format(split) for pattern in patterns)
    looked = ", ".join(folder or "." for folder in _FOLDERS)
    raise UserError(f"{roots[0]}: V-COCO's {what} are missing: no {names} in {looked}")


def split_images(files: list[Path], wanted: np.ndarray, reject: Reject) -> np.ndarray:
    """int64, sorted: the images of ``vcoco_*.ids`` that the verbs (`wanted`) have too; others are rejected."""
    try:
        listed = np.unique([int(word) for file in files for word in file.read_text().split()]).astype(np.int64)
    except ValueError as error:
        raise UserError(f"{files[0]}: not a list of image numbers, one a line ({error})") from error
    for image in np.setxor1d(listed, wanted):
        has, lacks = ("the verbs", files[0]) if image in wanted else (files[0], "the verbs")
        reject(f"image {image} is in {has} but not in {lacks}; are they of one split?")
    return np.intersect1d(listed, wanted)


def image_paths(roots: list[Path], names: list[str], elsewhere: ImagesElsewhere | None = None) -> list[str]:
    """Paths of COCO images (``COCO_train2014_....jpg`` in ``train2014``), under the first root that has the folder. A name
    may bring that folder along, or be absolute. Where they lie elsewhere, their uris there."""
    if elsewhere is not None:
        folders = {part: Elsewhere(elsewhere, part) for part in set(map(_part, names))}
        return [folders[_part(name)].path(str(_without_part(name))) for name in names]
    paths = {}
    for part in sorted({_part(name) for name in names}):
        places = [root / folder / part for root in roots for folder in _IMAGES]
        paths[part] = next((place for place in places if place.is_dir()), places[0])
    return [str(paths[_part(name)] / _without_part(name)) for name in names]


def _part(name: str) -> str:
    pieces = Path(name).name.split("_")
    return pieces[1] if len(pieces) >= 3 else ""


def _without_part(name: str) -> Path:
    path = Path(name)
    return Path(path.name) if str(path.parent) == _part(name) else path


@dataclass(frozen=True)
class Verbs:
    """The verbs files: M persons that were annotated with verbs.

    Attributes:
        image: int64 ``[M]``, COCO id of the image.
        person: int64 ``[M]``, COCO id of the person's annotation.
        actions: bool ``[M, 26]``.
        roles: int64 ``[M, 25]``, COCO annotation ids, 0 where there is none.
    """

    image: np.ndarray
    person: np.ndarray
    actions: np.ndarray
    roles: np.ndarray

    def take(self, rows: np.ndarray) -> Verbs:
        """The persons of int ``rows``."""
        return Verbs(self.image[rows], self.person[rows], self.actions[rows], self.roles[rows])


def read_verbs(files: list[Path], action_roles: dict[str, tuple[str, ...]], reject: Reject) -> Verbs:
    """``vcoco_*.json``: lists of 26 actions, each with all persons.

    Raises:
        UserError: If a file is not that.
    """
    parts = [_read_verbs(file, action_roles, reject) for file in files]
    return Verbs(*(np.concatenate([getattr(part, name) for part in parts]) for name in Verbs.__annotations__))


def _read_verbs(file: Path, action_roles: dict[str, tuple[str, ...]], reject: Reject) -> Verbs:
    record = read_json(file, list, "V-COCO's list of 26 actions")
    if len(record) != len(action_roles):
        raise UserError(f"{file}: lists {len(record)} actions; V-COCO has {len(action_roles)}")
    ids: dict[str, np.ndarray] = {}
    labels: list[np.ndarray] = []
    roles: list[np.ndarray] = []
    for (action, names), entry in zip(action_roles.items(), record, strict=True):
        columns = _action(file, action, ["agent", *names], entry)
        for key in ("image_id", "ann_id"):
            if not np.array_equal(ids.setdefault(key, columns[key]), columns[key]):
                raise UserError(f"{file}: action {action}: {key} is not that of the first action; all list the same")
        labels.append(columns["label"])
        roles.extend(columns["role_object_id"][1:])
    label, role = np.array(labels).T, np.array(roles).T
    person = ids["ann_id"]
    keep = np.zeros(len(person), bool)
    keep[np.unique(person, return_index=True)[1]] = True
    for row in np.flatnonzero(~keep):
        reject(f"{file}: entry {row} repeats the person {person[row]}; remove one")
    for row, action in np.argwhere((label != 0) & (label != 1)):
        reject(
            f"{file}: action {list(action_roles)[action]}, entry {row}: label {label[row, action]} is neither 0 nor 1"
        )
    return Verbs(ids["image_id"][keep], person[keep], (label == 1)[keep], role[keep])


def _action(file: Path, action: str, roles: list[str], entry: Any) -> dict[str, np.ndarray]:
    if not isinstance(entry, dict) or entry.get("action_name") != action or entry.get("role_name") != roles:
        raise UserError(f"{file}: action {action} with the roles {', '.join(roles)} is not at its place in the list")
    columns = {}
    for key in ("image_id", "ann_id", "label", "role_object_id"):
        values = entry.get(key)
        if not isinstance(values, list):
            raise UserError(f"{file}: action {action}: no list {key}; is it V-COCO's file?")
        columns[key], good = integers(values)
        if not good.all():
            raise UserError(
                f"{file}: action {action}: {key} {good.argmin()} is no whole number ({values[good.argmin()]!r})"
            )
        wanted = len(entry["ann_id"]) * (len(roles) if key == "role_object_id" else 1)
        if len(values) != wanted:
            raise UserError(
                f"{file}: action {action}: {len(values)} entries in {key}, not {wanted}; the file is cut or mixed"
            )
    columns["role_object_id"] = columns["role_object_id"].reshape(len(roles), -1)
    return columns


@dataclass(frozen=True)
class Instances:
    """COCO's images and boxes.

    Attributes:
        image: int64 ``[N]`` ids, sorted.
        name: N file names.
        size: int32 ``[N, 2]``, width and height.
        box_image: int64 ``[B]``, rows of images.
        box_id: int64 ``[B]``.
        object: int16 ``[B]``, COCO-80.
        box: float32 ``[B, 4]``, xyxy pixels, zero-based half-open, inside the image and not empty.
        invalid: Ids of boxes that were left out because the official evaluation leaves them out.
    """

    image: np.ndarray
    name: list[str]
    size: np.ndarray
    box_image: np.ndarray
    box_id: np.ndarray
    object: np.ndarray
    box: np.ndarray
    invalid: frozenset[int]

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """int64, the shape of ``ids``: the row of the box with that id, -1 where there is none."""
        order = np.argsort(self.box_id, kind="stable")
        at = order[np.searchsorted(self.box_id[order], ids).clip(0, len(order) - 1)]
        return np.where(self.box_id[at] == ids, at, -1)

    def why_not(self, box_id: int) -> str:
        """What to say of an id without a row."""
        return "has an empty box" if box_id in self.invalid else "has no box among COCO's instances"


def read_instances(files: list[Path], wanted: np.ndarray, reject: Reject) -> Instances:
    """COCO instance files, of which only the images `wanted` (int64 ids, sorted) are kept, in that order."""
    images: dict[int, dict[str, Any]] = {}
    entries: list[tuple[dict[str, Any], Path]] = []
    ids = frozenset(wanted.tolist())
    for file in files:
        record = read_json(file, dict, "COCO's instances")
        try:
            images.update((image["id"], image) for image in record["images"] if image["id"] in ids)
            entries += [(e, file) for e in record["annotations"] if e["image_id"] in ids and not e.get("ignore")]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: not COCO's instances ({error!r}); images and annotations belong in it") from error
    source = " and ".join(map(str, files))
    for missing in sorted(ids - images.keys()):
        reject(f"{source}: no image {missing}; is it of another split?")
    kept = np.array([i for i in wanted.tolist() if i in images], np.int64)
    try:
        names = [str(images[i]["file_name"]) for i in kept.tolist()]
        size = np.array([[images[i]["width"], images[i]["height"]] for i in kept.tolist()], np.int32).reshape(-1, 2)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: an image without file_name, width or height ({error!r})") from error

    entries = [(entry, file) for entry, file in entries if entry["image_id"] in images]
    bare, good = number_rows([entry.get("bbox") for entry, _ in entries], 4)
    category, _ = integers([entry.get("category_id") for entry, _ in entries])
    known = (category > 0) & (category < len(_OBJECT))
    objs = np.where(known, _OBJECT[np.where(known, category, 0)], -1)
    box_id, numbered = integers([entry.get("id") for entry, _ in entries])
    for row in np.flatnonzero(~good | ~numbered | (objs < 0)):
        entry, file = entries[row]
        reject(
            f"{file}: annotation {entry.get('id')}: bbox {entry.get('bbox')} of category {entry.get('category_id')} "
            "is not four numbers of one of COCO's 80 categories"
        )
    box_image = np.searchsorted(kept, [entry["image_id"] for entry, _ in entries])
    area = np.array([entry.get("area", 1) for entry, _ in entries], np.float64)
    box, whole = _half_open(bare, size[box_image])
    good &= numbered & (objs >= 0)
    keep = np.flatnonzero(good & whole & (area > 0))
    keep = keep[np.argsort(box_image[keep], kind="stable")]
    if not len(keep):
        raise UserError(f"{source}: no boxes of the split's images in it; is it of another split?")
    invalid = frozenset(box_id[good & ~(whole & (area > 0))].tolist())
    return Instances(kept, names, size, box_image[keep], box_id[keep], objs[keep], box[keep], invalid)


def _half_open(boxes: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's (x, y, w, h), float64 [B, 4], as V-COCO's evaluation cleans them, and bool [B]: something is left.

    Inclusive corners (x, y, x + w - 1, y + h - 1) are clipped to the image's pixels, then one is added to the lower
    right ones. A box of one pixel's width or height or less is nothing.
    """
    low, last = boxes[:, :2], size - 1.0
    high = (low + (boxes[:, 2:] - 1).clip(0)).clip(0, last)
    low = low.clip(0, last)
    return np.concatenate([low, high + 1], axis=1).astype(np.float32), (high > low).all(1)


@dataclass(frozen=True)
class PairTable:
    """N images and their P pairs, sorted by image.

    Attributes:
        image: int64 ``[N]``, COCO ids.
        name: N file names.
        size: int32 ``[N, 2]``, width and height.
        pair_image: int64 ``[P]``, row of each pair's image.
        human_box: float32 ``[P, 4]``, xyxy half-open.
        object_box: float32 ``[P, 4]``, xyxy half-open.
        object: int16 ``[P]``, -1 for a pair without object.
        slot: int16 ``[P]``.
    """

    image: np.ndarray
    name: list[str]
    size: np.ndarray
    pair_image: np.ndarray
    human_box: np.ndarray
    object_box: np.ndarray
    object: np.ndarray
    slot: np.ndarray


def is_pair_file(file: Path) -> bool:
    """Whether it is Zhang's, not COCO instances of the same name: he lists classes, COCO categories."""
    record = read_json(file, dict, "V-COCO's pairs or COCO's instances")
    return "classes" in record and "categories" not in record


def read_pairs(files: list[Path], slots: tuple[str, ...], reject: Reject) -> PairTable:
    """Zhang's ``instances_vcoco_*.json``: boxes are xyxy half-open there, objects counted from background = 0."""
    columns: dict[str, list[Any]] = {"boxes_h": [], "boxes_o": [], "actions": [], "objects": []}
    names: dict[int, str] = {}
    owner: list[int] = []
    for file in files:
        record = read_json(file, dict, "V-COCO's pairs")
        entries = record.get("annotations")
        if not isinstance(entries, list):
            raise UserError(f"{file}: no list of annotations in it; is it V-COCO's?")
        ours = {
            "actions": _numbering(file, record, "classes", {slot: i for i, slot in enumerate(slots)}),
            "objects": _numbering(file, record, "objects", {"background": -1} | OBJECT_INDEX),
        }
        for number, entry in enumerate(entries):
            image = _entry(f"{file}: entry {number}", entry, names, columns.keys(), reject)
            if image is not None:
                names[image] = entry["file_name"]
                owner += [image] * len(entry["actions"])
                columns["boxes_h"] += entry["boxes_h"]
                columns["boxes_o"] += entry["boxes_o"]
                for key, table in ours.items():
                    columns[key] += [table.get(value, -2) if isinstance(value, int) else -2 for value in entry[key]]
    human, human_good = number_rows(columns["boxes_h"], 4)
    obj, object_good = number_rows(columns["boxes_o"], 4)
    slot, kind = (np.array(columns[key], np.int16) for key in ("actions", "objects"))
    checks = {"human box": human_good & _upright(human), "object box": object_good & _upright(obj)}
    checks |= {"action": slot >= 0, "object": kind >= 0}
    good = np.logical_and.reduce(list(checks.values()))
    for p in np.flatnonzero(~good):
        wrong = next(name for name, passed in checks.items() if not passed[p])
        reject(f"{files[0]}: {names[owner[p]]}: the {wrong} of a pair is unknown, empty or not four numbers; remove it")
    image_ids = np.array(sorted(names), np.int64)
    at = np.searchsorted(image_ids, np.array(owner, np.int64))
    keep = np.flatnonzero(good)
    keep = keep[np.argsort(at[keep], kind="stable")]
    return PairTable(
        image_ids, [names[i] for i in image_ids.tolist()], np.zeros((len(names), 2), np.int32), at[keep],
        human[keep].astype(np.float32), obj[keep].astype(np.float32), kind[keep], slot[keep],
    )  # fmt: skip


def _entry(where: str, entry: Any, seen: Container[int], keys: Iterable[str], reject: Reject) -> int | None:
    """The image's number of a sound entry; others are rejected. ``where`` stands before the reason."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    image = image_id(name) if isinstance(name, str) else None
    if image is None:
        reject(f"{where} has no file_name with a COCO number ({name!r})")
        return None
    if image in seen:
        reject(f"{where} repeats the image {name}; remove one")
        return None
    lists = [entry.get(key) for key in keys]
    if not all(isinstance(column, list) for column in lists) or len({len(column) for column in lists}) != 1:
        reject(f"{where} ({name}): {', '.join(keys)} are not lists of one length")
        return None
    return image


def _upright(boxes: np.ndarray) -> np.ndarray:
    return np.logical_and.reduce((boxes[:, :2] >= 0) & (boxes[:, 2:] > boxes[:, :2]), axis=1)


def _numbering(file: Path, record: dict[str, Any], key: str, known: dict[str, int]) -> dict[int, int]:
    """The file's own numbers of names to ours."""
    names = record.get(key)
    if not isinstance(names, list):
        raise UserError(f"{file}: no list of {key} in it; is it V-COCO's?")
    for name in names:
        if str(name).replace(" ", "_") not in known:
            near = did_you_mean(str(name).replace(" ", "_"), known)
            raise UserError(f"{file}: {key} names {name!r}, which V-COCO does not have{near}")
    return {number: known[name.replace(" ", "_")] for number, name in enumerate(names)}


def image_id(name: str) -> int | None:
    """The COCO number of "COCO_val2014_000000000165.jpg", "000000000165.jpg" or "165"; None for other names."""
    found = re.search(r"(?:^|_|/)(\d{1,12})(?:\.\w+)?$", name)
    return int(found.group(1)) if found else None
