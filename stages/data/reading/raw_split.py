"""One split of a dataset as its file has it, and the checks that make it an ``Annotations``."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

import numpy as np

from hoi_distill.stages.data.vocabulary import Vocabulary


@dataclass(frozen=True)
class RawSplit:
    """N images and P pairs in file order, unchecked.

    Attributes:
        vocabulary: Its H classes.
        names: N file names.
        entry: int ``[N]``, the number by which errors name each image in its file.
        sizes: int32 ``[N, 2]``, width and height, 0 where the file has none.
        image: int64 ``[P]``, image of each pair, ascending.
        hoi: int64 ``[P]``, class from 0.
        human: float64 ``[P, 4]``, inclusive x1, y1, x2, y2; NaN where the file has something else.
        object: float64 ``[P, 4]``, as ``human``.
        first_pixel: 0 or 1, the number of the first pixel in these boxes.
    """

    vocabulary: Vocabulary
    names: list[str]
    entry: np.ndarray
    sizes: np.ndarray
    image: np.ndarray
    hoi: np.ndarray
    human: np.ndarray
    object: np.ndarray
    first_pixel: int


def half_open(inclusive: np.ndarray, first_pixel: int) -> np.ndarray:
    """float32 ``[P, 4]``, zero-based half-open, from inclusive corners that count pixels from ``first_pixel``.

    HICO-DET's own 1-based x1, y1, x2, y2 become x1 - 1, y1 - 1, x2, y2: all conversion of such boxes happens here.
    """
    return (inclusive.reshape(-1, 4) - (first_pixel, first_pixel, first_pixel - 1, first_pixel - 1)).astype(np.float32)


def inside(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    """bool ``[P]``: non-empty boxes, ``[P, 4]`` half-open, within ``size``, int ``[P, 2]``; a size of 0 is not known."""
    within = (box[:, :2] >= 0) & ((box[:, 2:] <= size) | (size == 0)) & np.isfinite(box[:, 2:])
    return (within & (box[:, :2] < box[:, 2:])).all(1)


def good_images(raw: RawSplit, present: Container[str], folder: object, reject: Callable[[str], None]) -> np.ndarray:
    """int64 ``[K]``: images that are named once and are ``present``; the others are rejected."""
    kept, seen = [], {}  # type: list[int], dict[str, int]
    for i, name in enumerate(raw.names):
        if (first := seen.setdefault(name, i)) != i:
            reject(f"entry {raw.entry[i]} repeats the image {name} of entry {raw.entry[first]}; remove one")
        elif name not in present:
            reject(f"entry {raw.entry[i]}: no image {folder}/{name}; unpack all images there")
        else:
            kept.append(i)
    return np.array(kept, np.int64)


def good_pairs(
    raw: RawSplit, sizes: np.ndarray, human_box: np.ndarray, object_box: np.ndarray, reject: Callable[[str], None]
) -> np.ndarray:
    """bool ``[P]``: pairs with a known class and two non-empty boxes inside their image; the others are rejected.

    Args:
        raw: The split.
        sizes: int ``[N, 2]``, width and height of each image, 0 where they are not known: then only 0 bounds its boxes.
        human_box: float32 ``[P, 4]``, half-open.
        object_box: float32 ``[P, 4]``, half-open.
        reject: Gets one reason for each other pair.
    """
    classes = len(raw.vocabulary)
    good = (raw.hoi >= 0) & (raw.hoi < classes)
    for p in np.flatnonzero(~good).tolist():
        reject(f"{_where(raw, p)}: unknown interaction {raw.hoi[p] + 1}; there are 1 to {classes}")
    limit = sizes[raw.image]
    for kind, box, corners in (("human", human_box, raw.human), ("object", object_box, raw.object)):
        fits = inside(box, limit)
        for p in np.flatnonzero(good & ~fits).tolist():
            numbers = ", ".join(f"{value:g}" for value in corners[p])
            size = f"the {limit[p][0]} x {limit[p][1]} image" if limit[p].all() else "its image"
            reject(
                f"{_where(raw, p)}: {kind} box ({numbers}) ({raw.first_pixel}-based inclusive x1, y1, x2, y2) "
                + ("is not four finite numbers" if not np.isfinite(corners[p]).all() else f"is empty or outside {size}")
            )
        good &= fits
    return good


def _where(raw: RawSplit, pair: int) -> str:
    return f"entry {raw.entry[raw.image[pair]]} ({raw.names[raw.image[pair]]})"
