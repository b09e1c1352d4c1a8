"""Annotations of one split as columns: what every dataset loader gives and everybody else reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hoi_distill.stages.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from hoi_distill.stages.data.image import Frame


@dataclass(frozen=True, eq=False)
class Annotations:
    """N images and their P human-object pairs, sorted by image.

    A pair with two verbs is two rows. A verb that is done without a (visible) object has ``object`` and ``hoi`` -1 and an
    all-zero ``object_box``.

    Attributes:
        name: The dataset's name, for people.
        split: The split's name, for people.
        vocabulary: Its classes; None for images without any.
        image_id: str ``[N]``, unique.
        path: N file paths.
        width: int32 ``[N]``, pixels, in ``frame``; 0 where neither the annotations nor the file's header tell.
        height: int32 ``[N]``, as ``width``.
        pair_offsets: int64 ``[N + 1]``; pairs of image i are rows ``pair_offsets[i]`` to ``pair_offsets[i + 1]``.
        human_box: float32 ``[P, 4]``, xyxy pixels, zero-based half-open, in ``frame``.
        object_box: float32 ``[P, 4]``, as ``human_box``.
        object: int16 ``[P]``, index into the vocabulary, or -1.
        verb: int16 ``[P]``, index into the vocabulary.
        hoi: int16 ``[P]``, index into the vocabulary; also -1 for a verb and an object that are no class together.
        image_hois: bool ``[N, H]``, interactions known to be in the image as a whole, or None.
        frame: In which boxes and sizes are counted and images are to be decoded: the stored raster, or upright by EXIF.
        rejected: What a lenient loader left out, a line each.
        listed: bool ``[N]``, the images that the annotations name, be it without a pair; None: all of them.
    """

    name: str
    split: str
    vocabulary: Vocabulary | None
    image_id: np.ndarray
    path: list[str]
    width: np.ndarray
    height: np.ndarray
    pair_offsets: np.ndarray
    human_box: np.ndarray
    object_box: np.ndarray
    object: np.ndarray
    verb: np.ndarray
    hoi: np.ndarray
    image_hois: np.ndarray | None = None
    frame: Frame = "upright"
    rejected: tuple[str, ...] = ()
    listed: np.ndarray | None = None

    @property
    def dropped(self) -> int:
        """Entries left out by a lenient loader."""
        return len(self.rejected)

    def __len__(self) -> int:
        return len(self.path)

    def pairs(self, i: int) -> slice:
        """Rows of image i's pairs."""
        return slice(int(self.pair_offsets[i]), int(self.pair_offsets[i + 1]))

    def pair_image(self) -> np.ndarray:
        """int64 ``[P]``: the image of each pair."""
        return np.repeat(np.arange(len(self)), np.diff(self.pair_offsets))

    def take(self, rows: np.ndarray) -> Annotations:
        """The images of ``rows``, int ``[M]``, in that order, with their pairs."""
        rows = np.asarray(rows, np.int64)
        counts = np.diff(self.pair_offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        pair_rows = np.repeat(self.pair_offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            self,
            image_id=self.image_id[rows],
            path=[self.path[row] for row in rows],
            width=self.width[rows],
            height=self.height[rows],
            pair_offsets=offsets,
            human_box=self.human_box[pair_rows],
            object_box=self.object_box[pair_rows],
            object=self.object[pair_rows],
            verb=self.verb[pair_rows],
            hoi=self.hoi[pair_rows],
            image_hois=None if self.image_hois is None else self.image_hois[rows],
            listed=None if self.listed is None else self.listed[rows],
        )

    def with_pairs(self, rows: np.ndarray) -> Annotations:
        """All images, with only the pairs where ``rows``, bool ``[P]``, is true."""
        counts = np.bincount(self.pair_image()[rows], minlength=len(self))
        return replace(
            self,
            pair_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            human_box=self.human_box[rows],
            object_box=self.object_box[rows],
            object=self.object[rows],
            verb=self.verb[rows],
            hoi=self.hoi[rows],
        )

    def classified(self) -> Annotations:
        """Only the pairs that are a class of the vocabulary (hoi >= 0): what a pair classifier can learn."""
        return self if (self.hoi >= 0).all() else self.with_pairs(self.hoi >= 0)

    def image_truth(self) -> np.ndarray:
        """bool ``[N, H]``: the interactions annotated in each image, by its pairs or for the whole of it."""
        assert self.vocabulary is not None, "annotated images have classes"
        truth = np.zeros((len(self), len(self.vocabulary)), bool)
        known = self.hoi >= 0
        truth[self.pair_image()[known], self.hoi[known]] = True
        return truth if self.image_hois is None else truth | self.image_hois

    def digests(self) -> np.ndarray:
        """uint64 ``[N]``: digests of each image's pairs (boxes, labels, order) and image-level labels in this vocabulary."""
        start = hashlib.blake2b((self.vocabulary.digest() if self.vocabulary else "").encode(), digest_size=8)
        boxes = np.concatenate([self.human_box, self.object_box], axis=1)
        labels = np.stack([self.object, self.verb, self.hoi], axis=1)
        out = np.empty(len(self), np.uint64)
        for i in range(len(self)):
            rows = self.pairs(i)
            record = start.copy()
            record.update(boxes[rows].tobytes())
            record.update(labels[rows].tobytes())
            if self.image_hois is not None:
                record.update(np.packbits(self.image_hois[i]).tobytes())
            out[i] = int.from_bytes(record.digest(), "little")
        return out


def contradiction(path: str | Path, stated: Sequence[int], found: Sequence[int], frame: Frame) -> str | None:
    """What to say of an image whose file has another size than its annotations state; None where the sizes agree.

    Args:
        path: The file.
        stated: Width and height as the annotations have them, 0 if they do not tell.
        found: Width and height of the file in the annotations' frame, 0 if it does not tell.
        frame: The annotations' frame.
    """
    if tuple(stated) == tuple(found) or not all(stated) or not all(found):
        return None
    told, has = (f"{width} x {height}" for width, height in (stated, found))
    how = "upright, as EXIF turns it" if frame == "upright" else "as stored, without EXIF orientation"
    return f"{path} is {has} ({how}), its annotations say {told}; restore the image that was annotated, or mend them"
