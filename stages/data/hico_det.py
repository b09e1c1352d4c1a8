"""HICO-DET as its authors ship it: ``anno_bbox.mat``, ``anno.mat`` and ``images/{train,test}2015``.

Chao et al., Learning to Detect Human-Object Interactions, WACV 2018. Boxes in the file are 1-based and inclusive
(x1, x2, y1, y2); ours are zero-based half-open: (x1 - 1, y1 - 1, x2, y2).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.records import Annotations
from stages.data.rejects import Rejects
from stages.data.vocabulary import Vocabulary
from storage.errors import UserError


def load_hico_det(
    root: str | Path, split: str, limit: int | None = None, lenient: bool = False, images: bool = True
) -> Annotations:
    """Read one split of a folder in HICO-DET's layout, with the vocabulary that its own ``list_action`` gives.

    split: "train" or "test". limit: the first so many pictures. Interactions marked ``invis`` carry no boxes and give
    no pairs. Without ``anno.mat`` there are no image-level labels (``image_hois`` is None). With ``images=False`` the
    picture files need not be there.

    Raises UserError naming file and entry for unknown classes, boxes outside their picture, connections to boxes that
    are not there, duplicate or missing pictures; with `lenient` those are dropped, counted, warned of.
    """
    root = Path(root)
    if split not in ("train", "test"):
        raise UserError(f"{root}: HICO-DET has the splits train and test, not {split!r}")
    file = root / "anno_bbox.mat"
    mat = _load_mat(file, ["list_action", f"bbox_{split}"])
    vocabulary = _vocabulary(mat["list_action"], str(file))
    records = mat[f"bbox_{split}"].ravel()[:limit]
    reject = Rejects(f"{file}: bbox_{split}", lenient)

    names = [_text(name) for name in records["filename"].tolist()]
    folder = root / "images" / f"{split}2015"
    present = _listing(folder) if images else set(names)
    kept: list[int] = []
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if (first := seen.setdefault(name, i)) != i:
            reject(f"entry {i + 1} repeats the picture {name} of entry {first + 1}; remove one")
        elif name not in present:
            reject(f"entry {i + 1}: no picture {folder / name}")
        else:
            kept.append(i)
    sizes = np.array([[_number(s["width"]), _number(s["height"])] for s in records["size"]], np.int32).reshape(-1, 2)

    raw = _RawPairs.read(records, kept, reject)
    image = np.asarray(raw.image, np.int64)
    human_box, object_box = raw.boxes()
    hoi = np.asarray(raw.hoi, np.int64) - 1
    good = _check(image, hoi, human_box, object_box, sizes, names, len(vocabulary), reject)
    image, hoi = image[good], hoi[good]
    position = np.full(len(names), -1)
    position[kept] = np.arange(len(kept))
    counts = np.bincount(position[image], minlength=len(kept))
    verbs, objects = vocabulary.hois[hoi].T
    reject.warn()
    return Annotations(
        name="hico-det",
        split=split,
        vocabulary=vocabulary,
        image_id=np.array([names[i] for i in kept], dtype=str),
        path=[str(folder / names[i]) for i in kept],
        width=sizes[kept, 0],
        height=sizes[kept, 1],
        pair_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        human_box=human_box[good],
        object_box=object_box[good],
        object=objects.copy(),
        verb=verbs.copy(),
        hoi=hoi.astype(np.int16),
        image_hois=_image_level(root / "anno.mat", split, [names[i] for i in kept], len(vocabulary)),
        dropped=reject.count,
    )


@dataclass
class _RawPairs:
    """Pairs in file order, before any check: picture row, 1-based interaction, and both boxes' corners."""

    image: list[int] = field(default_factory=list)
    hoi: list[int] = field(default_factory=list)
    human: list[np.ndarray] = field(default_factory=list)
    object: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def read(cls, records: np.ndarray, rows: list[int], reject: Callable[[str], None]) -> _RawPairs:
        """Walk MATLAB's nested structs; everything numeric is left to arrays afterwards."""
        out = cls()
        for row in rows:
            entries = records[row]["hoi"]
            if not entries.size:
                continue
            for number, entry in enumerate(entries.ravel(), start=1):
                links = entry["connection"]
                if not links.size or _number(entry["invis"]):
                    continue
                humans, objects = _corners(entry["bboxhuman"]), _corners(entry["bboxobject"])
                hoi = _number(entry["id"])
                for human, thing in links.tolist():
                    if not (1 <= human <= len(humans) and 1 <= thing <= len(objects)):
                        reject(
                            f"entry {row + 1}, hoi {number}: connection ({human}, {thing}) to a box that is not there"
                        )
                        continue
                    out.image.append(row)
                    out.hoi.append(hoi)
                    out.human.extend(humans[int(human) - 1])
                    out.object.extend(objects[int(thing) - 1])
        return out

    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Human and object boxes, float32 [P, 4], zero-based half-open."""
        return _half_open(self.human), _half_open(self.object)


def _corners(boxes: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    if not boxes.size:
        return []
    x1, y1, x2, y2 = (boxes[key].ravel().tolist() for key in ("x1", "y1", "x2", "y2"))
    return list(zip(x1, y1, x2, y2, strict=True))


def _half_open(corners: list[np.ndarray]) -> np.ndarray:
    if not corners:
        return np.zeros((0, 4), np.float32)
    boxes = np.concatenate(corners, axis=None).astype(np.float32).reshape(-1, 4)
    boxes[:, :2] -= 1
    return boxes


def _check(
    image: np.ndarray,
    hoi: np.ndarray,
    human_box: np.ndarray,
    object_box: np.ndarray,
    sizes: np.ndarray,
    names: list[str],
    classes: int,
    reject: Callable[[str], None],
) -> np.ndarray:
    """bool [P]: rows with a known class and two non-empty boxes inside their picture; the others are rejected."""
    good = (hoi >= 0) & (hoi < classes)
    for p in np.flatnonzero(~good):
        reject(f"entry {image[p] + 1} ({names[image[p]]}): unknown interaction {hoi[p] + 1}; list_action has {classes}")
    limit = sizes[image]
    for kind, box in (("human", human_box), ("object", object_box)):
        inside = (box[:, :2] >= 0).all(1) & (box[:, 2:] <= limit).all(1) & (box[:, :2] < box[:, 2:]).all(1)
        for p in np.flatnonzero(good & ~inside):
            x1, y1, x2, y2 = box[p]
            width, height = limit[p]
            reject(
                f"entry {image[p] + 1} ({names[image[p]]}): {kind} box ({x1 + 1:g}, {y1 + 1:g}, {x2:g}, {y2:g}) "
                f"(1-based x1, y1, x2, y2) is empty or outside the {width} x {height} picture"
            )
        good &= inside
    return good


def _image_level(file: Path, split: str, names: list[str], classes: int) -> np.ndarray | None:
    """bool [N, H]: anno.mat's +1 entries (-1: absent, 0: ambiguous, NaN: not asked)."""
    if not file.exists():
        return None
    mat = _load_mat(file, [f"anno_{split}", f"list_{split}"])
    labels = mat[f"anno_{split}"]
    column = {_text(name): i for i, name in enumerate(mat[f"list_{split}"].ravel().tolist())}
    if labels.shape != (classes, len(column)):
        raise UserError(f"{file}: anno_{split} is {labels.shape}, expected {(classes, len(column))}")
    missing = next((name for name in names if name not in column), None)
    if missing is not None:
        raise UserError(f"{file}: list_{split} lacks the picture {missing} of anno_bbox.mat")
    return (labels[:, [column[name] for name in names]] == 1).T.copy()


def _vocabulary(list_action: np.ndarray, source: str) -> Vocabulary:
    columns = [[_text(value) for value in list_action[key].ravel()] for key in ("nname", "vname", "vname_ing")]
    return Vocabulary.from_actions(zip(*columns, strict=True), source)


def _load_mat(file: Path, variables: list[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    if not file.exists():
        raise UserError(f"{file}: not found; HICO-DET's layout is anno_bbox.mat, anno.mat and images/")
    try:
        mat = loadmat(file, variable_names=variables)
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{file}: not a readable MATLAB file ({error})") from error
    for variable in variables:
        if variable not in mat:
            raise UserError(f"{file}: no variable {variable}; is it HICO-DET's file?")
    return mat


def _listing(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        raise UserError(f"{folder}: no such folder; HICO-DET's pictures belong there") from None


def _text(value: Any) -> str:
    while isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return str(value)


def _number(value: Any) -> int:
    while isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else 0
    return int(value)
