"""HICO-DET's own files: ``anno_bbox.mat`` (boxes, pairs) and ``anno.mat`` (what each picture shows as a whole)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.data.raw_split import RawSplit
from stages.data.vocabulary import Vocabulary
from storage.errors import UserError


def read_anno_bbox(file: Path, split: str, limit: int | None, reject: Callable[[str], None]) -> RawSplit:
    """Boxes and pairs of one split, with the classes that the file's own ``list_action`` gives.

    Its boxes are 1-based inclusive; interactions marked ``invis`` have none. Raises UserError for another kind of file.
    """
    mat = _load_mat(file, ["list_action", f"bbox_{split}"])
    vocabulary = list_action(mat["list_action"], str(file))
    records = mat[f"bbox_{split}"].ravel()[:limit]
    names = [_text(name) for name in records["filename"].tolist()]
    sizes = np.array([[_number(s["width"]), _number(s["height"])] for s in records["size"]], np.int32).reshape(-1, 2)
    image: list[int] = []
    hoi: list[int] = []
    humans: list[tuple[Any, ...]] = []
    objects: list[tuple[Any, ...]] = []
    for row, entries in enumerate(records["hoi"].tolist()):
        for number, entry in enumerate(entries.ravel() if entries.size else (), start=1):
            links = entry["connection"]
            if not links.size or _number(entry["invis"]):
                continue
            people, things = _boxes(entry["bboxhuman"]), _boxes(entry["bboxobject"])
            for human, thing in links.tolist():
                if not (1 <= human <= len(people) and 1 <= thing <= len(things)):
                    reject(f"entry {row + 1}, hoi {number}: connection ({human}, {thing}) to a box that is not there")
                    continue
                image.append(row)
                hoi.append(_number(entry["id"]) - 1)
                humans.append(people[int(human) - 1])
                objects.append(things[int(thing) - 1])
    corners = [
        np.array([np.ravel(v)[0] for box in boxes for v in box], np.float64).reshape(-1, 4)
        for boxes in (humans, objects)
    ]
    return RawSplit(
        vocabulary, names, np.arange(1, len(names) + 1), sizes, np.array(image, np.int64), np.array(hoi, np.int64),
        corners[0], corners[1], first_pixel=1,
    )  # fmt: skip


def _boxes(boxes: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    if not boxes.size:
        return []
    return list(zip(*(boxes[key].ravel().tolist() for key in ("x1", "y1", "x2", "y2")), strict=True))


def read_image_level(file: Path, split: str, names: Sequence[str], classes: int) -> np.ndarray:
    """bool [N, H]: anno.mat's +1 entries (-1: absent, 0: ambiguous, NaN: not asked) for the pictures `names`."""
    mat = _load_mat(file, [f"anno_{split}", f"list_{split}"])
    labels = mat[f"anno_{split}"]
    column = {_text(name): i for i, name in enumerate(mat[f"list_{split}"].ravel().tolist())}
    if labels.shape != (classes, len(column)):
        raise UserError(f"{file}: anno_{split} is {labels.shape}, expected {(classes, len(column))}")
    missing = next((name for name in names if name not in column), None)
    if missing is not None:
        raise UserError(
            f"{file}: list_{split} lacks the picture {missing} of the annotations; is it the same dataset's?"
        )
    return (labels[:, [column[name] for name in names]] == 1).T.copy()


def list_action(table: np.ndarray, source: str) -> Vocabulary:
    """The vocabulary of a file's ``list_action``; `source` names it in errors."""
    columns = [[_text(value) for value in table[key].ravel()] for key in ("nname", "vname", "vname_ing")]
    return Vocabulary.from_actions(zip(*columns, strict=True), source)


def _load_mat(file: Path, variables: list[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        mat = loadmat(file, variable_names=variables)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except (OSError, ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{file}: not a readable MATLAB file ({error})") from error
    for variable in variables:
        if variable not in mat:
            raise UserError(f"{file}: no variable {variable}; is it HICO-DET's file?")
    return mat


def _text(value: Any) -> str:
    while isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else ""
    return str(value)


def _number(value: Any) -> int:
    while isinstance(value, np.ndarray):
        value = value.ravel()[0] if value.size else 0
    return int(value)
