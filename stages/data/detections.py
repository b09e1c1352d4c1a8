"""Detected boxes from a file in COCO's results format."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.data.coco import COCO_CATEGORY_IDS
from stages.data.records import Annotations
from storage.errors import UserError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of N pictures, by picture, within each by falling score (ties in file order).

    offsets: int64 [N + 1]. boxes: float32 [D, 4], xyxy pixels, zero-based half-open, clipped to the picture.
    scores: float32 [D]. labels: int16 [D], COCO-80 (person = 0).
    """

    offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def of(self, i: int) -> slice:
        """Rows of picture i."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))


def load_detections(
    path: str | Path, annotations: Annotations, lenient: bool = False, partial: bool = False
) -> Detections:
    """Read a JSON list of {image_id, category_id, bbox [x, y, w, h], score} for the pictures of `annotations`.

    ``image_id`` is ours (HICO-DET: the file name); ``category_id`` COCO's official 1-90. Entries of other pictures are
    passed over. Raises UserError naming file and entry for an unknown category, a box that is empty or outside its
    picture, or a file without any of these pictures (unless `partial`: one file of several); with `lenient` bad entries
    are dropped, counted and warned of.
    """
    try:
        entries = json.loads(Path(path).read_bytes())
        ids = [str(entry["image_id"]) for entry in entries]
        boxes = np.array([entry["bbox"] for entry in entries], np.float32).reshape(len(entries), 4)
        scores = np.array([entry["score"] for entry in entries], np.float32)
        categories = np.array([entry["category_id"] for entry in entries], np.int64)
    except FileNotFoundError:
        raise UserError(f"{path}: no such detections file") from None
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not a COCO results file ({error})") from error
    except KeyError as error:
        raise UserError(f"{path}: an entry lacks {error}; each needs image_id, category_id, bbox and score") from error

    row_of = {image_id: i for i, image_id in enumerate(annotations.image_id.tolist())}
    image = np.array([row_of.get(image_id, -1) for image_id in ids], np.int64)
    if len(image) and image.max() < 0 and not partial:
        raise UserError(f"{path}: none of its pictures (first {ids[0]!r}) is in {annotations.name} {annotations.split}")
    label_of = np.full(max(COCO_CATEGORY_IDS) + 1, -1, np.int16)
    label_of[list(COCO_CATEGORY_IDS)] = np.arange(len(COCO_CATEGORY_IDS))
    known = (categories >= 0) & (categories < len(label_of))
    labels = np.where(known, label_of[np.where(known, categories, 0)], -1).astype(np.int16)

    boxes[:, 2:] += boxes[:, :2]
    size = np.stack([annotations.width, annotations.height], axis=1)[image].astype(np.float32)
    size[(size == 0).any(axis=1)] = np.inf  # a picture whose size nobody could read
    clipped = np.concatenate([boxes[:, :2].clip(min=0), np.minimum(boxes[:, 2:], size)], axis=1)
    wrong_box = ~(clipped[:, :2] < clipped[:, 2:]).all(axis=1) | ~np.isfinite(scores)
    here = image >= 0
    bad = here & (wrong_box | (labels < 0))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        what = "unknown category_id" if labels[first] < 0 else "box empty or outside its picture, or no score"
        message = f"{path}: entry {first + 1} ({ids[first]}): {what}: {json.dumps(entries[first])}"
        if not lenient:
            raise UserError(message)
        _log.warning("%s; %d such entries dropped", message, int(bad.sum()))
    rows = np.flatnonzero(here & ~bad)
    rows = rows[np.lexsort((-scores[rows], image[rows]))]
    counts = np.bincount(image[rows], minlength=len(annotations))
    return Detections(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=clipped[rows],
        scores=scores[rows],
        labels=labels[rows],
    )
