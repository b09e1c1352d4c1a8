"""V-COCO's official detections, the list of dicts that ``vsrl_eval`` reads, as JSON instead of a pickle.

One dict a detected person: ``image_id``, ``person_box`` [x1, y1, x2, y2], ``{action}_agent`` a score, and
``{action}_{role}`` [x1, y1, x2, y2, score]. Boxes there are inclusive; an empty role is a box of zeros, or of NaN or
null. An absent score, or one that is NaN or null, means that this action or role is not detected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from hoi_distill.stages.data.reading.json_columns import is_number, read_json
from hoi_distill.stages.data.v_coco.files import image_id
from hoi_distill.stages.data.v_coco.loader import ACTIONS, ROLES
from hoi_distill.stages.evaluate.detections import VCocoDetections
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import atomic_write

_AGENT_KEYS = tuple(f"{action}_agent" for action in ACTIONS)
_KEYS = frozenset(_AGENT_KEYS + ROLES)
_PICKLE_STARTS = (b"\x80", b"(lp", b"]q")
_FIRST_PIXEL_AFTER = np.array([0, 0, 1, 1], np.float32)  # from the last pixel inside to the first one outside


def read_v_coco_json(path: str | Path, image_ids: Sequence[str] | np.ndarray) -> VCocoDetections:
    """Read and check the official list; boxes become half-open.

    Args:
        path: the file.
        image_ids: str [N], decimal COCO ids of the split's images, in its order. In the file an image may be a
            number, its decimal digits or COCO's file name.

    Raises:
        UserError: the file is missing, a pickle, no JSON, no list of dicts, names none of V-COCO's actions; an image
            that is not in the split, a score that is no number, a box that is not four numbers or ends before it begins.
    """
    path = Path(path)
    _refuse_pickle(path)
    entries = read_json(path, list, "the official list of detected persons")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: entry {number} is no dict but {type(entry).__name__}; each is one person's dict")
    if entries and not any(_KEYS.intersection(entry) for entry in entries):
        raise UserError(f"{path}: no entry has a key such as {_AGENT_KEYS[0]} or {ROLES[0]}; are these V-COCO's?")
    image = _images(path, entries, image_ids)
    person = box_ops.single(_numbers(path, entries, ("person_box",), 4)[:, 0])
    _refuse(path, ~np.isfinite(person.sum(axis=1)), entries, ("person_box",), "is not four finite numbers")
    agent = _numbers(path, entries, _AGENT_KEYS, 1)[..., 0]
    _refuse(path, np.isinf(agent), entries, _AGENT_KEYS, "is not a finite score")
    roles = _numbers(path, entries, ROLES, 5)
    box, score = box_ops.single(roles[..., :4]), roles[..., 4]
    _refuse(path, np.isinf(box).any(axis=2) | np.isinf(score), entries, ROLES, "is not finite")
    unknown = np.isnan(box).sum(axis=2)
    _refuse(path, (unknown > 0) & (unknown < 4), entries, ROLES, "is a box half given; an empty role is all zeros")
    empty = (unknown == 4) | (box == 0).all(2)
    person += _FIRST_PIXEL_AFTER
    box = np.where(empty[..., None], 0, box + _FIRST_PIXEL_AFTER)
    for boxes, keys in ((person[:, None], ("person_box",)), (box, ROLES)):
        inverted = (boxes[..., 2:] < boxes[..., :2]).sum(axis=2) > 0
        _refuse(path, inverted, entries, keys, "ends before it begins; boxes are x1, y1, x2, y2")
    return VCocoDetections(image, person, agent, box, score)


def write_v_coco_json(path: str | Path, detections: VCocoDetections, image_ids: Sequence[str] | np.ndarray) -> None:
    """Write the official list, every key in every entry; what is not detected is null, an empty role a box of zeros.

    ``json.load`` gives back what ``vsrl_eval`` unpickles: its numpy arrays take null as NaN.
    """
    person = (detections.person_box - _FIRST_PIXEL_AFTER).astype(np.float64).tolist()
    agent = _nullable(detections.agent_score)
    empty = np.isnan(detections.role_box).all(2) | (detections.role_box == 0).all(2)
    boxes = np.where(empty[..., None], 0, detections.role_box - _FIRST_PIXEL_AFTER)
    roles = _nullable(np.concatenate([boxes, detections.role_score[..., None]], axis=2))
    ids = [int(name) if str(name).isdecimal() else str(name) for name in image_ids]
    with atomic_write(path, "w") as file:
        for i in range(len(detections)):
            entry: dict[str, Any] = {"image_id": ids[detections.image[i]], "person_box": person[i]}
            entry |= zip(_AGENT_KEYS, agent[i], strict=True)
            entry |= zip(ROLES, roles[i], strict=True)
            file.write(("[" if i == 0 else ",\n") + json.dumps(entry))
        file.write("]\n" if len(detections) else "[]\n")


def _refuse_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(3)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSON file of detected persons") from None
    if start.startswith(_PICKLE_STARTS):
        raise UserError(
            f"{path}: this is a pickle, which can run anything and is not opened here; if you trust it, convert it: "
            "python -c \"import json,pickle,sys; json.dump(pickle.load(open(sys.argv[1],'rb'),encoding='latin1'),"
            "open(sys.argv[2],'w'),default=lambda v:v.tolist())\" IN.pkl OUT.json"
        )


def _images(path: Path, entries: list[dict[str, Any]], image_ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """int32: the row of each entry's image."""
    rows: dict[int | str | None, int] = {str(name): row for row, name in enumerate(image_ids)}
    rows |= {int(name): row for row, name in enumerate(image_ids) if str(name).isdecimal()}
    image = np.empty(len(entries), np.int32)
    for number, entry in enumerate(entries):
        given = entry.get("image_id")
        row = rows.get(given) if isinstance(given, int | str) else None
        if row is None and isinstance(given, str):
            row = rows.get(image_id(given))
        if row is None:
            raise UserError(f"{path}: entry {number}: image_id {given!r} is no image of this split")
        image[number] = row
    return image


def _numbers(path: Path, entries: list[dict[str, Any]], keys: Sequence[str], width: int) -> np.ndarray:
    """float64 [n, keys, width]; NaN where the file has null or lacks the key."""
    absent: Any = None if width == 1 else [None] * width
    values = [[entry.get(key, absent) for key in keys] for entry in entries]
    parts = chain.from_iterable(values)
    try:
        if set(map(type, parts if width == 1 else chain.from_iterable(parts))) - {int, float, NoneType}:
            raise TypeError("no numbers")  # of which numpy would make some
        return np.array(values, np.float64).reshape(len(entries), len(keys), width)
    except (ValueError, TypeError, OverflowError):
        what = "a number" if width == 1 else f"{width} numbers"
        bad = np.array([[not _fits(value, width) for value in row] for row in values])
        _refuse(path, bad, entries, keys, f"is not {what}")
        raise


def _fits(value: Any, width: int) -> bool:
    parts = [value] if width == 1 else value
    return isinstance(parts, list) and len(parts) == width and all(p is None or is_number(p) for p in parts)


def _refuse(path: Path, bad: np.ndarray, entries: list[dict[str, Any]], keys: Sequence[str], complaint: str) -> None:
    """One line for the first of bool [n] or [n, keys]."""
    if bad.any():
        number, key = np.argwhere(bad.reshape(len(entries), -1))[0]
        raise UserError(f"{path}: entry {number}: {keys[key]} {entries[number].get(keys[key])!r} {complaint}")


def _nullable(values: np.ndarray) -> list[Any]:
    """Nested lists with None for NaN."""
    known: Any = values.astype(np.float64).astype(object)
    known[np.isnan(values)] = None
    return known.tolist()
