"""What a dataset on disk holds, beside what its publications say, and what is missing: no image needs to be there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.image import header_size
from hoi_distill.stages.data.open_dataset import DATASETS, open_annotations
from hoi_distill.stages.data.sampling.splits import RARE_BELOW
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.storage.errors import UserError

SPLITS = {
    "hico-det": ("train", "test"),
    "v-coco": ("train", "val", "test"),
    "swig-hoi": ("train", "val", "test"),
    "folder": ("train", "test"),
}
PUBLISHED: dict[tuple[str, str], dict[str, int]] = {
    ("hico-det", "train"): {
        "pictures": 38_118, "images with pairs": 37_633, "pairs": 117_871, "objects": 80, "verbs": 117,
        "interactions": 600, "rare interactions": 138, "non-rare interactions": 462,
    },
    ("hico-det", "test"): {
        "pictures": 9_658, "images with pairs": 9_546, "pairs": 33_405, "objects": 80, "verbs": 117,
        "interactions": 600, "interactions with pairs": 600,
    },
    ("v-coco", "train"): {"pictures": 2_533, "objects": 80, "action slots": 29},
    ("v-coco", "val"): {"pictures": 2_867, "objects": 80, "action slots": 29},
    ("v-coco", "test"): {"pictures": 4_946, "objects": 80, "action slots": 29},
    ("swig-hoi", "test"): {
        "objects": 1_000, "verbs": 407, "interactions": 14_130, "evaluated interactions": 5_539,
        "evaluated, unseen": 1_391, "evaluated, rare": 2_841, "evaluated, non-rare": 1_307,
    },
}  # fmt: skip
"""Counts that a dataset's authors, or the evaluations in use, give. HICO-DET: Chao et al., WACV 2018; V-COCO: Gupta and
Malik, 2015; SWiG-HOI: its label space. The other SWiG-HOI splits have the objects, verbs and interactions of the test."""

_KNOWN_COPIES = {
    ("hico-det", "train", "pairs", 117_654): "the copy derived from HAKE, 217 pairs short",
    ("hico-det", "train", "pictures", 37_633): "a copy without the images that have no pairs",
    ("hico-det", "test", "pictures", 9_546): "a copy without the images that have no pairs",
}
_ENOUGH_BOXES = 1000
_UNREADABLE = "cannot be opened"
_OTHER_SIZE = "are not of the annotated size"
_BEYOND = "have a box beyond their border"


@dataclass(frozen=True)
class Count:
    """One number of a split.

    Attributes:
        name: What is counted.
        found: The number here.
        published: The number that is published, None if there is none.
        agrees: Whether they are equal, None if there is nothing to compare.
        note: What a known other number is.
    """

    name: str
    found: int
    published: int | None
    agrees: bool | None
    note: str = ""


@dataclass(frozen=True)
class SplitDescription:
    """What is known of one split.

    Attributes:
        split: Its name.
        counts: What is there.
        missing: Files and images that are not there, a line each.
        problems: Bad entries and suspicions, a line each.
    """

    split: str
    counts: list[Count]
    missing: list[str]
    problems: list[str]


@dataclass(frozen=True)
class Description:
    """A dataset at a path, split by split."""

    dataset: str
    path: str
    splits: list[SplitDescription]

    def as_json(self) -> dict[str, Any]:
        """A JSON-able record."""
        return asdict(self)

    def table(self) -> str:
        """Plain text for a terminal."""
        lines = [f"{self.dataset} in {self.path}", f"{'split':<7}{'':<26}{'found':>10}{'published':>12}"]
        for split in self.splits:
            for count in split.counts:
                published = "-" if count.published is None else f"{count.published:,}"
                mark = {None: "", True: "agrees", False: "DIFFERS"}[count.agrees]
                note = f" ({count.note})" if count.note else ""
                lines.append(
                    f"{split.split:<7}{count.name:<26}{count.found:>10,}{published:>12}  {mark}{note}".rstrip()
                )
            lines += [f"{split.split:<7}missing: {line}" for line in split.missing]
            lines += [f"{split.split:<7}problem: {line}" for line in split.problems]
        return "\n".join(lines)


def describe(
    dataset: str, path: str | Path, splits: Sequence[str] = (), image_labels: str | Path | None = None
) -> Description:
    """Count what is there, compare it with what is published, and name what is missing or looks wrong.

    Bad entries are all reported and left out of the counts. The headers of all images that are there are compared with
    the annotated sizes.

    Args:
        dataset: One of :data:`DATASETS <hoi_distill.stages.data.open_dataset.DATASETS>`.
        path: The dataset's folder, or its annotation file.
        splits: By default all of the dataset.
        image_labels: As for :func:`~hoi_distill.stages.data.open_dataset.open_annotations`.

    Raises:
        UserError: For an unknown dataset, and if not even one split can be read.
    """
    if dataset not in SPLITS:
        raise UserError(f"dataset {dataset}: there are {', '.join(DATASETS)}")
    described = [_split(dataset, Path(path), split, image_labels) for split in splits or SPLITS[dataset]]
    if not any(split.counts for split in described):
        raise UserError(described[0].missing[0])
    return Description(dataset, str(path), described)


def _split(dataset: str, path: Path, split: str, image_labels: str | Path | None) -> SplitDescription:
    missing: list[str] = []
    problems: list[str] = []
    try:
        read = open_annotations(dataset, path, split, images=False, image_labels=image_labels)
    except UserError as strict:
        try:
            read = open_annotations(dataset, path, split, lenient=True, images=False, image_labels=image_labels)
        except UserError as error:
            return SplitDescription(split, [], [str(error)], [])
        problems.append(f"{read.dropped} bad entries, left out here; the first: {strict}")
        problems += [f"bad entry: {line}" for line in read.rejected[1:]]
    if dataset == "hico-det" and read.image_hois is None:
        missing.append("anno.mat, the image-level labels; known-object evaluation will go by annotated pairs")
    there = _present(read, missing)
    problems += _size_problems(read, there)
    boxes = np.concatenate([read.human_box, read.object_box[read.object >= 0]])
    if dataset != "folder" and len(boxes) >= _ENOUGH_BOXES and boxes[:, :2].min() >= 1:
        problems.append("no box begins at pixel 0: are boxes that count from 1 taken for boxes that count from 0?")
    return SplitDescription(split, _counts(dataset, split, read), missing, problems)


def _counts(dataset: str, split: str, read: Annotations) -> list[Count]:
    words = read.vocabulary
    assert words is not None  # every loader gives one
    pairs = np.bincount(read.hoi[read.hoi >= 0], minlength=len(words))
    verbs = "action slots" if dataset == "v-coco" else "verbs"
    found = {
        "pictures": len(read),
        "images with pairs": int((np.diff(read.pair_offsets) > 0).sum()),
        "pairs": len(read.hoi),
        "objects": len(words.objects),
        verbs: len(words.verbs),
        "interactions": len(words),
        "interactions with pairs": int((pairs > 0).sum()),
    }
    if (read.object < 0).any():
        found["pairs without an object"] = int((read.object < 0).sum())
    if dataset == "hico-det" and split == "train":
        found["rare interactions"] = int((pairs < RARE_BELOW).sum())
        found["non-rare interactions"] = int((pairs >= RARE_BELOW).sum())
    if dataset == "swig-hoi" and split == "test":
        from hoi_distill.stages.data.swig_hoi import swig_evaluated, swig_frequency

        found["evaluated interactions"] = int(swig_evaluated().sum())
        for frequency, name in enumerate(("unseen", "rare", "non-rare")):
            found[f"evaluated, {name}"] = int((swig_evaluated() & (swig_frequency() == frequency)).sum())
    own = dataset == "hico-det" and words != hico_vocabulary()  # a world in HICO-DET's layout, the pico world say
    published = {} if own else PUBLISHED.get((dataset, split), {})
    return [
        Count(
            name,
            number,
            published.get(name),
            number == published[name] if name in published else None,
            _KNOWN_COPIES.get((dataset, split, name, number), ""),
        )
        for name, number in found.items()
    ]


def _present(read: Annotations, missing: list[str]) -> np.ndarray:
    """int64: the images whose files are there; what is not is told in `missing`."""
    folders = {path: os.path.split(path) for path in read.path}
    listings: dict[str, set[str]] = {}
    for folder in {folder for folder, _ in folders.values()}:
        listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if not os.path.isdir(folder):
            count = sum(own == folder for own, _ in folders.values())
            missing.append(f"the folder of {count:,} images {folder}")
    there = np.array([name in listings[folder] for folder, name in folders.values()], bool)
    absent = [
        name for (folder, name), is_there in zip(folders.values(), there, strict=True)
        if not is_there and listings[folder]
    ]  # fmt: skip
    if absent:
        missing.append(f"{len(absent):,} of {len(read):,} images: {', '.join(absent[:3])}{' ...' * (len(absent) > 3)}")
    return np.flatnonzero(there)


def _size_problems(read: Annotations, there: np.ndarray) -> list[str]:
    """Images that cannot be opened or are not of the annotated size, all by name; boxes that go beyond their image."""
    found: dict[str, list[str]] = {}
    for i in there.tolist():
        size = np.array(header_size(read.path[i], read.frame))
        told = np.array([read.width[i], read.height[i]])
        boxes = np.concatenate([read.human_box[read.pairs(i)], read.object_box[read.pairs(i)]])
        beyond = (boxes[:, 2:] - size).max(initial=0)
        if not size.all():
            kind, more = _UNREADABLE, ""
        elif told.all() and (told != size).any():
            kind, more = _OTHER_SIZE, f": {size[0]} x {size[1]}, annotated {told[0]} x {told[1]}"
        elif beyond > 0:
            kind, more = _BEYOND, f", by {beyond:g} pixels (1: 0- and 1-based boxes mixed up?)"
        else:
            continue
        found.setdefault(kind, []).append(f"{read.image_id[i]}{more}")
    lines = []
    for kind, images in found.items():
        lines.append(f"{len(images)} of {len(there)} images opened {kind}; the first: {images[0]}")
        if kind != _BEYOND:  # which is a matter of the whole file
            lines += [
                f"image {image}" if kind == _OTHER_SIZE else f"image {image} {_UNREADABLE}" for image in images[1:]
            ]
    return lines
