"""Detected boxes from a file in COCO's results format."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.coco import labels_of_categories
from hoi_distill.stages.data.reading.json_columns import integers, number_rows, numbers, read_json
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.storage.errors import UserError

_KEYS = ("image_id", "category_id", "bbox", "score")
_SLACK = 1.0
"""Pixels by which a box may reach beyond its image without a remark: detectors round."""
_SETTLED = 2_000_000_000
"""Nanoseconds after which a file that changes has another time."""


@dataclass(frozen=True, eq=False)
class ObjectDetections:
    """Boxes of N images, by image, within each by falling score (ties in file order).

    Attributes:
        offsets: int64 ``[N + 1]``; boxes of image i are rows ``offsets[i]`` to ``offsets[i + 1]``.
        boxes: float32 ``[D, 4]``, xyxy pixels, zero-based half-open, clipped to the image.
        scores: float32 ``[D]``, 0 to 1.
        labels: int16 ``[D]``, from 0: COCO-80 (person = 0), or the vocabulary's own objects.
        remarks: A line each on what is allowed and hardly meant, with the file's name.
    """

    offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    remarks: tuple[str, ...] = ()

    def of(self, i: int) -> slice:
        """Rows of image i."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))


def load_detections(
    path: str | Path,
    annotations: Annotations,
    *,
    lenient: bool = False,
    partial: bool = False,
    objects: Sequence[str] | None = None,
) -> ObjectDetections:
    """Read a JSON list of ``{image_id, category_id, bbox [x, y, w, h], score}``.

    ``image_id`` is ours (HICO-DET: the file name). ``score`` is a probability. Entries of other images are passed over.

    Args:
        path: The file.
        annotations: Whose images are wanted.
        lenient: Drop bad entries, and count them in a remark, instead of refusing them.
        partial: The file is one of several, and may hold none of these images.
        objects: Names that ``category_id`` counts, from 1. By default it is COCO's official 1-90.

    Raises:
        UserError: With the file and the entry, for a category that is none, a score outside 0 to 1, a box that is not
            finite, empty or outside its image, and a file without any entry or any of these images.
    """
    found = _read(path)
    ids = found.ids
    row_of = {image_id: i for i, image_id in enumerate(annotations.image_id.tolist())}
    image = np.array([row_of.get(image_id, -1) for image_id in ids], np.int64)
    if image.max() < 0 and not partial:
        raise UserError(f"{path}: none of its images (first {ids[0]!r}) is in {annotations.name} {annotations.split}")
    size = np.stack([annotations.width, annotations.height], axis=1)[image].astype(np.float32)
    size[(size == 0).any(axis=1)] = np.inf  # an image whose size nobody could read

    given, category, score = found.boxes, found.category, found.score
    label_of = labels_of_categories(objects)
    whose = "COCO's" if objects is None else "the vocabulary's"
    labels = label_of[np.where((category > 0) & (category < len(label_of)), category, 0)]
    corners = box_ops.single(given)
    with np.errstate(over="ignore"):
        corners[:, 2:] += corners[:, :2]
    clipped = np.concatenate([corners[:, :2].clip(min=0), np.minimum(corners[:, 2:], size)], axis=1)
    complaints = {
        "bbox is not four finite numbers": ~found.finite | ~np.logical_and.reduce(np.isfinite(corners), axis=1),
        "box empty or outside its image": ~np.logical_and.reduce(clipped[:, :2] < clipped[:, 2:], axis=1),
        "category_id is no whole number": ~found.whole,
        f"unknown category_id, {whose} are 1 to {len(label_of) - 1}": labels < 0,
        "score is no number": np.isnan(score),
        "score is not in 0 to 1, give a probability": (score < 0) | (score > 1),
    }
    here = image >= 0
    bad = here & np.logical_or.reduce(list(complaints.values()))
    remarks = []
    if bad.any():
        first = int(bad.argmax())
        what = next(said for said, wrong in complaints.items() if wrong[first])
        entry = json.dumps(_entries(path)[first])[:200]
        message = f"{path}: entry {first + 1} ({ids[first]}): {what}: {entry}"
        if not lenient or (bad == here).all():
            raise UserError(message)
        remarks.append(f"{message}; {bad.sum():,} such entries dropped")
    rows = np.flatnonzero(here & ~bad)
    remarks += _doubts(path, given[rows], size[rows], clipped[rows])
    kept = score[rows].astype(np.float32)
    order = np.lexsort((-kept, image[rows]))
    rows = rows[order]
    counts = np.bincount(image[rows], minlength=len(annotations))
    return ObjectDetections(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=clipped[rows],
        scores=kept[order],
        labels=labels[rows],
        remarks=tuple(remarks),
    )


def refuse_foreign(path: str | Path, names: Sequence[str]) -> None:
    """Raises UserError where no entry of a file is of an image of these names, or the file is none."""
    ids = _read(path).ids
    if not set(ids) & set(names):
        among = f" (first {names[0]!r})" if names else ""
        raise UserError(f"{path}: none of its images (first {ids[0]!r}) is among those asked for{among}")


class _File(NamedTuple):
    """The D entries of a file, as they stand there.

    Attributes:
        ids: whose they are.
        boxes: float64 ``[D, 4]``, x, y, width, height.
        finite: bool ``[D]``, whether they are four finite numbers.
        category: int64 ``[D]``.
        whole: bool ``[D]``, whether the category is a whole number.
        score: float64 ``[D]``, NaN where it is no number.
    """

    ids: list[str]
    boxes: np.ndarray
    finite: np.ndarray
    category: np.ndarray
    whole: np.ndarray
    score: np.ndarray


def _read(path: str | Path) -> _File:
    """A file. It is parsed once as long as it is the same, for a caller that asks for a few images at a time."""
    with contextlib.suppress(OSError):
        stat = Path(path).stat()
        if time.time_ns() - stat.st_ctime_ns > _SETTLED:  # one written just now may change within a tick of its clock
            return _remembered(str(path), (stat.st_ino, stat.st_ctime_ns, stat.st_size))
    return _parsed(str(path))


@functools.lru_cache(maxsize=4)
def _remembered(path: str, _: tuple[int, ...]) -> _File:
    return _parsed(path)


def _parsed(path: str) -> _File:
    ids, categories, boxes, scores = _columns(path, _entries(path))
    return _File(ids, *number_rows(boxes, 4), *integers(categories), numbers(scores))


def _entries(path: str | Path) -> list[Any]:
    entries: list[Any] = read_json(Path(path), list, "a COCO results file, a list of boxes")
    if not entries:
        raise UserError(f"{path}: an empty list; a detector's boxes of these images should be in it")
    return entries


def _columns(path: str | Path, entries: list[Any]) -> tuple[list[str], list[Any], list[Any], list[Any]]:
    """Each key's values, the images' names as text."""
    try:
        ids, *others = [[entry[key] for entry in entries] for key in _KEYS]
    except (KeyError, TypeError, IndexError):
        number, entry = next(
            (number, entry)
            for number, entry in enumerate(entries, 1)
            if not isinstance(entry, dict) or not entry.keys() >= set(_KEYS)
        )
        lacks = next(key for key in _KEYS if not isinstance(entry, dict) or key not in entry)
        raise UserError(
            f"{path}: not a COCO results file: entry {number} lacks {lacks!r}; each needs {', '.join(_KEYS)}"
        ) from None
    return [sys.intern(str(image_id)) for image_id in ids], *others  # type: ignore[return-value]


def _doubts(path: str | Path, given: np.ndarray, size: np.ndarray, clipped: np.ndarray) -> Iterator[str]:
    """A line each on boxes that are allowed and hardly what is meant by them.

    Args:
        path: The file.
        given: float64 ``[D, 4]``, as in the file.
        size: float32 ``[D, 2]``, width and height of their images.
        clipped: float32 ``[D, 4]``, xyxy, cut to their images.
    """
    if not len(given):
        return
    if given.max() <= 1 + 1e-3:
        yield f"{path}: no box is a pixel wide; bbox is x, y, width, height in pixels, not in fractions of the image"
        return
    beyond = ~_fit(box_ops.xywh_to_xyxy(given), size)
    if beyond.any():
        said = f"{path}: {beyond.sum():,} of {len(given):,} boxes reach beyond their images and are cut"
        others = {"x1, y1, x2, y2": given, "the middle, width and height": box_ops.cxcywh_to_xyxy(given)}
        meant = next((name for name, boxes in others.items() if _fit(boxes, size).all()), None)
        yield said if meant is None else f"{said}; none would if they were {meant}, but bbox is x, y, width, height"
    narrow = np.logical_or.reduce(clipped[:, 2:] - clipped[:, :2] < 1, axis=1)
    if narrow.any():
        yield f"{path}: {narrow.sum():,} of {len(given):,} boxes are less than a pixel wide or high"


def _fit(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """bool ``[D]``: upright boxes, xyxy, inside their images."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.logical_and.reduce((low < high) & (low >= -_SLACK) & (high <= size + _SLACK), axis=1)
