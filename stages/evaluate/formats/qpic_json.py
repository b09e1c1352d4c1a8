"""Detections from the JSON files of QPIC, CDN, GEN-VLKT and PPDM.

One entry an image: ``predictions``, its boxes ``{bbox [x1, y1, x2, y2], category_id}``, and ``hoi_prediction``, its
triplets ``{subject_id, object_id, category_id, score}`` (places in ``predictions``, and the verb). What varies:

* PPDM (``src/lib/eval/hico_eval.py``) writes a list; objects are COCO's ids 1-90 and verbs count from 1.
* QPIC and CDN (``datasets/hico_eval.py``) write a JSON *string* that holds a Python dict ``{"preds": ..., "gts": ...}``;
  objects are COCO-80 indices and verbs count from 0. The category of the persons, 1 or 0, says which of the two it is.
* GEN-VLKT (``datasets/hico_eval_triplet.py``) writes the same without categories of boxes: a triplet's ``category_id``
  is its interaction, from 0.

Boxes are inclusive. PPDM's are zero-based. QPIC and its followers compare theirs with one-based annotations without
shifting either; a file that holds these annotations (``gts``) says so by itself, and its boxes are taken in their frame,
so that the convention's figures are those that its evaluator printed.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.stages.data.reading.json_columns import integers, number_rows
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.storage.errors import UserError

FRAMES: dict[str, tuple[int, int]] = {"zero_based": (0, 1), "one_based": (-1, 0), "half_open": (0, 0)}
"""What is added to x1, y1 and to x2, y2 for zero-based half-open boxes: from inclusive ones of either kind, or none."""

_LISTS = ("predictions", "hoi_prediction")


@dataclass(frozen=True)
class _Rows:
    """Rows of all images under one key, so that a bad one can be named."""

    path: Path
    names: list[str]
    key: str
    entry: np.ndarray
    """int64 [M], the image of each row."""

    def refuse(self, bad: np.ndarray, complaint: str) -> None:
        """One line for the first row where bool [M] ``bad`` is set."""
        if bad.any():
            row = int(bad.argmax())
            entry = int(self.entry[row])
            place = row - int(np.searchsorted(self.entry, entry)) + 1
            raise UserError(f"{self.path}: entry {entry + 1} ({self.names[entry]}): {self.key} {place} {complaint}")


def read_qpic_json(path: Path, annotations: Annotations, frame: str | None = None) -> HoiDetections:
    """Read a file in any of the layouts above.

    Triplets whose verb and object are no class are left out. They rank last in these files, with a score of 0.

    Args:
        path: the file.
        annotations: the split, with its vocabulary; images are known by ``image_id``.
        frame: a key of :data:`FRAMES`; None decides as the module says, zero-based where nothing in the file tells.

    Raises:
        UserError: no such file, no JSON, another layout; an image that is not in the split or comes twice; an entry, box
            or triplet that lacks a part, points to no box, has a number that is not finite, a box that ends before it
            begins, a person that is none, or an unknown object or verb; mostly triplets of no class.
    """
    if annotations.vocabulary is None:
        raise UserError(f"{annotations.name}: without a vocabulary there is nothing to compare {path} with")
    if frame is not None and frame not in FRAMES:
        raise UserError(f"{path}: boxes are not {frame}; they are {', '.join(FRAMES)}")
    images, gts = _images(path)
    names, boxes, categories, triplets = _flattened(path, images)
    index = {str(name): i for i, name in enumerate(annotations.image_id.tolist())}
    seen: dict[str, int] = {}
    for entry, name in enumerate(names, start=1):
        if name not in index:
            raise UserError(f"{path}: entry {entry}: file_name {name!r} is no image of this split; drop the entry")
        if (earlier := seen.setdefault(name, entry)) != entry:
            raise UserError(f"{path}: entry {entry}: {name!r} is entry {earlier} already; keep one of them")
    counts = {key: np.array([len(image[key]) for image in images], np.int64) for key in _LISTS}
    of_box, of_triplet = (_Rows(path, names, key, np.repeat(np.arange(len(names)), counts[key])) for key in _LISTS)

    corners, good = number_rows(boxes, 4)
    of_box.refuse(~good, "needs bbox with four finite numbers")
    corners = box_ops.single(corners + np.repeat(FRAMES[frame or _frame(gts, annotations, index)], 2))
    of_box.refuse(~np.isfinite(corners).all(1), "needs bbox with four numbers that an image may have")
    inverted = np.any(corners[:, 2:] < corners[:, :2], axis=1)
    of_box.refuse(inverted, "ends before it begins; boxes are x1, y1, x2, y2")
    numbers, good = number_rows(triplets, 4)
    of_triplet.refuse(~good, "needs subject_id, object_id, category_id and score, all of them finite numbers")
    given = numbers[:, :3]
    broken = np.any((given != np.floor(given)) | (np.abs(given) >= 2**53), axis=1)
    of_triplet.refuse(broken, "has an id that is not a whole number")
    ids = given.astype(np.int64)
    beyond = np.any((ids[:, :2] < 0) | (ids[:, :2] >= counts["predictions"][of_triplet.entry, None]), axis=1)
    of_triplet.refuse(beyond, "points to a box that is not in predictions")
    start = (np.cumsum(counts["predictions"]) - counts["predictions"])[of_triplet.entry]
    human, target = start + ids[:, 0], start + ids[:, 1]
    if categories is None:
        hoi, last = ids[:, 2], len(annotations.vocabulary) - 1
        of_triplet.refuse((hoi < 0) | (hoi > last), f"has an unknown interaction as category_id; they are 0 to {last}")
    else:
        hoi = _interactions(
            categories, human, target, ids[:, 2],
            vocabulary=annotations.vocabulary, of_box=of_box, of_triplet=of_triplet,
        )  # fmt: skip
    kept = hoi >= 0
    if 2 * np.sum(~kept & (numbers[:, 3] > 0)) > len(kept):
        of_triplet.refuse(~kept, "and most others have a verb and an object that are no class; see to both orders")
    hoi, human, target = hoi[kept], human[kept], target[kept]
    verb, obj = annotations.vocabulary.hois[hoi].T.astype(np.int32)
    image = np.array([index[name] for name in names], np.int32)
    return HoiDetections(
        image[of_triplet.entry[kept]], corners[human], corners[target],
        obj, verb, hoi.astype(np.int32), numbers[kept, 3],
    )  # fmt: skip


def _images(path: Path) -> tuple[list[Any], list[Any]]:
    """The predictions of a file, and its copy of the annotations where it holds one."""
    expected = "it should be a detections file as PPDM, QPIC, CDN or GEN-VLKT write it"
    try:
        record: Any = json.loads(path.read_bytes())
        if isinstance(record, str):
            record = _python_text(record)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {expected}") from error
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not readable as JSON ({reason}); {expected}") from error
    gts: Any = []
    if isinstance(record, dict):
        record, gts = record.get("preds"), record.get("gts", [])
    if not isinstance(record, list):
        raise UserError(f"{path}: there is neither a list of images nor a dict with one as 'preds'; {expected}")
    return record, gts if isinstance(gts, list) else []


def _python_text(text: str) -> Any:
    """What a Python dict was that is given as its text, numpy's names of numbers left out.

    Such a text is JSON but for its quotes, unless it holds a quote itself, None, a tuple and the like. The reader of Python's
    own literals takes those too, with some hundred times the memory.

    Raises:
        ValueError, SyntaxError, RecursionError, MemoryError: it is the text of something else.
    """
    plain = re.sub(r"np\.\w+\(([^()]*)\)", r"\1", text) if "np." in text else text
    try:
        return json.loads(plain.replace("'", '"'))
    except ValueError:
        return ast.literal_eval(plain)


def _flattened(path: Path, images: list[Any]) -> tuple[list[str], list[Any], list[Any] | None, list[Any]]:
    """Names of the images; boxes and categories (None if there are none) of all of them; and their triplets."""
    for entry, image in enumerate(images, start=1):
        lists = isinstance(image, dict) and all(
            isinstance(image.get(key), list) and all(isinstance(row, dict) for row in image[key]) for key in _LISTS
        )
        if not lists or not isinstance(_name(image), str):
            raise UserError(
                f"{path}: entry {entry}: needs file_name, and lists of records as predictions and hoi_prediction"
            )
    boxes = list(chain.from_iterable(image["predictions"] for image in images))
    triplets = chain.from_iterable(image["hoi_prediction"] for image in images)
    keys = ("subject_id", "object_id", "category_id", "score")
    rows = [[row.get(key) for key in keys] for row in triplets]
    categories = [box.get("category_id") for box in boxes]
    without = all(category is None for category in categories)
    return (
        [_name(image) for image in images],
        [box.get("bbox") for box in boxes],
        None if without else categories,
        rows,
    )


def _name(image: dict[str, Any]) -> Any:
    return image.get("file_name", image.get("filename"))


def _interactions(
    categories: list[Any],
    human: np.ndarray,
    target: np.ndarray,
    verb: np.ndarray,
    *,
    vocabulary: Vocabulary,
    of_box: _Rows,
    of_triplet: _Rows,
) -> np.ndarray:
    """``int64 [D]`` class of each triplet, -1 for none, from objects and verbs that count as the file's persons do."""
    given, good = integers(categories, text=True)
    of_box.refuse(~good, "needs a whole number as category_id")
    person = int(len(human) > 0 and given[human[0]] == 1)
    of_triplet.refuse(given[human] != person, f"has a subject_id whose category is not {person}, a person")
    is_coco = person == 1 and tuple(vocabulary.objects) == COCO_OBJECTS
    numbers = COCO_CATEGORY_IDS if is_coco else range(person, person + len(vocabulary.objects))
    index = {number: i for i, number in enumerate(numbers)}
    obj = np.array([index.get(number, -1) for number in given.tolist()], np.int64)[target]
    of_triplet.refuse(obj < 0, f"has an object_id of an unknown category; they are {numbers[0]} to {numbers[-1]}")
    verb = verb - person
    last = len(vocabulary.verbs) - 1
    of_triplet.refuse(
        (verb < 0) | (verb > last), f"has an unknown verb as category_id; they are {person} to {last + person}"
    )
    return vocabulary.hoi_id()[verb, obj].astype(np.int64)


def _frame(gts: list[Any], annotations: Annotations, index: dict[str, int], most: int = 200) -> str:
    """The frame in which the file's copy of the annotations is nearest to them; zero-based without one."""
    equal = dict.fromkeys(FRAMES, 0)
    for record in gts[:most]:
        image = index.get(str(_name(record)), -1) if isinstance(record, dict) else -1
        listed = record.get("annotations") if image >= 0 else None
        if not isinstance(listed, list):
            continue
        theirs, _ = number_rows([box.get("bbox") if isinstance(box, dict) else None for box in listed], 4)
        pairs = annotations.pairs(image)
        ours = np.concatenate([annotations.human_box[pairs], annotations.object_box[pairs]])
        for name, shift in FRAMES.items():
            same = np.abs(ours[:, None] - (theirs + np.repeat(shift, 2))[None]) < 0.25
            equal[name] += int(same.all(2).any(axis=1).sum())
    return max(equal, key=lambda name: equal[name])
