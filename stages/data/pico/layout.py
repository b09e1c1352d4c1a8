"""Writes annotations in HICO-DET's own files: ``anno_bbox.mat`` and ``anno.mat``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.vocabulary import Vocabulary

_HEADER = b"MATLAB 5.0 MAT-file, HICO-DET layout"


@dataclass(frozen=True)
class AnnotatedImage:
    """One image's annotation.

    Attributes:
        file_name: The image's file.
        width: In pixels.
        height: In pixels.
        boxes: int ``[n, 4]``, xyxy pixels, zero-based half-open.
        objects: int ``[n]``, COCO-80.
        triplets: (human row, object row, hoi), 0-based.
    """

    file_name: str
    width: int
    height: int
    boxes: np.ndarray
    objects: np.ndarray
    triplets: list[tuple[int, int, int]]


def write_annotations(root: Path, vocabulary: Vocabulary, splits: Mapping[str, Sequence[AnnotatedImage]]) -> None:
    """Write both files for the splits "train" and "test", the same bytes for the same input."""
    actions = _list_action(vocabulary)
    boxes: dict[str, Any] = {f"bbox_{split}": _records(images) for split, images in splits.items()}
    save_mat(root / "anno_bbox.mat", boxes | {"list_action": actions})
    labels: dict[str, Any] = {"list_action": actions}
    for split, images in splits.items():
        labels[f"anno_{split}"] = _image_labels(vocabulary, images)
        labels[f"list_{split}"] = np.array([p.file_name for p in images], object).reshape(-1, 1)
    save_mat(root / "anno.mat", labels)


def save_mat(path: Path, variables: dict[str, Any]) -> None:
    """scipy's savemat, compressed, without the time of day in the header."""
    from scipy.io import savemat

    savemat(path, variables, do_compression=True, oned_as="row")
    with path.open("r+b") as file:
        file.write(_HEADER.ljust(116))


def _struct(rows: Sequence[tuple[Any, ...]], fields: Sequence[str]) -> np.ndarray:
    """A 1 x n MATLAB struct array."""
    out = np.empty((1, len(rows)), [(name, object) for name in fields])
    for column, row in enumerate(rows):
        out[0, column] = row
    return out


def _list_action(vocabulary: Vocabulary) -> np.ndarray:
    rows = []
    for verb, name in vocabulary.hois:
        rows.append((vocabulary.objects[name], vocabulary.verbs[verb], vocabulary.verb_ing[verb], "", "", "", ""))
    return _struct(rows, ("nname", "vname", "vname_ing", "syn", "def", "synset", "ex")).T


def _records(images: Sequence[AnnotatedImage]) -> np.ndarray:
    rows = []
    for p in images:
        size = _struct([(p.width, p.height, 3)], ("width", "height", "depth"))
        rows.append((p.file_name, size, _interactions(p)))
    return _struct(rows, ("filename", "size", "hoi"))


def _interactions(image: AnnotatedImage) -> np.ndarray:
    """One entry per class present: its human boxes, its object boxes and which belong together."""
    entries = []
    for hoi in sorted({hoi for _, _, hoi in image.triplets}):
        links = [(human, obj) for human, obj, h in image.triplets if h == hoi]
        humans = sorted({human for human, _ in links})
        objs = sorted({obj for _, obj in links})
        connection = [(humans.index(human) + 1, objs.index(obj) + 1) for human, obj in links]
        entries.append((hoi + 1, _boxes(image, humans), _boxes(image, objs), np.array(connection), 0))
    return _struct(entries, ("id", "bboxhuman", "bboxobject", "connection", "invis"))


def _boxes(image: AnnotatedImage, rows: list[int]) -> np.ndarray:
    corners = image.boxes[rows].tolist()
    return _struct([(x1 + 1, x2, y1 + 1, y2) for x1, y1, x2, y2 in corners], ("x1", "x2", "y1", "y2"))


def _image_labels(vocabulary: Vocabulary, images: Sequence[AnnotatedImage]) -> np.ndarray:
    """float64 [H, N]: +1 present, -1 absent though its object is there, NaN where the object is not there."""
    labels = np.full((len(vocabulary), len(images)), np.nan)
    for column, image in enumerate(images):
        labels[np.isin(vocabulary.hois[:, 1], image.objects), column] = -1
        labels[[hoi for _, _, hoi in image.triplets], column] = 1
    return labels
