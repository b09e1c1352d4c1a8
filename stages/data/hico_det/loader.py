"""HICO-DET (Chao et al., Learning to Detect Human-Object Interactions, WACV 2018), in whichever form it lies on disk.

Its authors' ``anno_bbox.mat`` and the two JSON forms that others made of it (:mod:`hoi_distill.stages.data.hico_det.json`)
give the same records. Image-level labels come from ``anno.mat`` beside any of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.elsewhere import ImagesElsewhere, images_of
from hoi_distill.stages.data.hico_det.json import read_hico_json
from hoi_distill.stages.data.hico_det.mat import read_anno_bbox, read_image_level
from hoi_distill.stages.data.image import header_size
from hoi_distill.stages.data.reading.raw_split import RawSplit, good_images, good_pairs, half_open
from hoi_distill.stages.data.reading.rejects import Rejects
from hoi_distill.storage.errors import UserError

_JSON_NAMES = {
    "train": ("instances_train2015*.json", "trainval_hico*.json"),
    "test": ("instances_test2015*.json", "test_hico*.json"),
}
_FOLDERS = (".", "annotations", "hico_20160224_det", "hico_20160224_det/annotations")


@dataclass(frozen=True)
class HicoDetFiles:
    """Where one split's parts are.

    Attributes:
        annotations: The annotation file.
        images: The folder of images, which may not exist.
        image_labels: The file of image-level labels, None if there is none.
    """

    annotations: Path
    images: Path
    image_labels: Path | None


def find_hico_det(path: Path, split: str, image_labels: Path | None = None) -> HicoDetFiles:
    """The files of one split.

    Args:
        path: A folder with ``anno_bbox.mat`` or a JSON pair in it, in ``annotations/`` or in ``hico_20160224_det/``; or one
            such file. A file that is the other split's by its name stands for its partner beside it.
        split: "train" or "test".
        image_labels: ``anno.mat``; by default the one beside the annotations or a folder above.

    Raises:
        UserError: If the annotations, or the ``image_labels`` that are named, are not there.
    """
    if split not in _JSON_NAMES:
        raise UserError(f"{path}: HICO-DET has the splits train and test, not {split!r}")
    file = _partner(path, split) if path.is_file() else _in_folder(path, split)
    above = (file.parent, file.parent.parent)
    images = [base / inner / f"images/{split}2015" for base in above for inner in (".", "hico_20160224_det")]
    labels = [base / inner / "anno.mat" for base in above for inner in (".", "hico_20160224_det")]
    if image_labels is not None and not image_labels.is_file():
        raise UserError(f"{image_labels}: no such file; image-level labels are HICO-DET's anno.mat")
    return HicoDetFiles(
        file,
        next((folder for folder in images if folder.is_dir()), images[0]),
        image_labels or next((labels for labels in labels if labels.is_file()), None),
    )


def _in_folder(root: Path, split: str) -> Path:
    for folder in (root / inner for inner in _FOLDERS):
        if (mat := folder / "anno_bbox.mat").is_file():
            return mat
        if (found := next(_named(folder, split), None)) is not None:
            return found
    wanted = " or ".join(pattern.replace("*", "") for pattern in _JSON_NAMES[split])
    raise UserError(
        f"{root / 'anno_bbox.mat'}: not found; HICO-DET's layout is anno_bbox.mat, anno.mat and images/, or {wanted} "
        "in place of anno_bbox.mat; give the folder or the file"
    )


def _named(folder: Path, split: str) -> Iterator[Path]:
    for pattern in _JSON_NAMES[split]:
        yield from sorted(folder.glob(pattern))


def _partner(file: Path, split: str) -> Path:
    """The file itself or, where its name is the other split's, the same form of `split` in its folder."""
    other = {"train": "test", "test": "train"}[split]
    form = next((k for k, pattern in enumerate(_JSON_NAMES[other]) if fnmatch(file.name, pattern)), None)
    if form is None:
        return file
    wanted = _JSON_NAMES[split][form]
    found = sorted(file.parent.glob(wanted))
    if not found:
        raise UserError(f"{file}: this is the {other} split; no {wanted.replace('*', '')} beside it for {split}")
    return found[0]


def load_hico_det(
    root: str | Path,
    split: str,
    *,
    limit: int | None = None,
    lenient: bool = False,
    images: bool | ImagesElsewhere = True,
    image_labels: str | Path | None = None,
) -> Annotations:
    """Read one split, from any of the three forms and the folders people keep them in (:func:`find_hico_det`).

    Sizes that the file does not know (PPDM's) are read from the images where they are there, and are 0 otherwise.
    Interactions marked ``invis`` carry no boxes and give no pairs. The classes are those of the file's own
    ``list_action``, or HICO-DET's 600 for the JSON forms.

    Args:
        root: The folder, or the annotation file itself.
        split: "train" or "test".
        limit: Read only the first so many images.
        lenient: Drop bad entries, count them and warn, instead of refusing them.
        images: Whether the image files must be there; or where they are, if not beside the annotations.
        image_labels: ``anno.mat``, where it does not lie beside the annotations. Without one ``image_hois`` is None.

    Raises:
        UserError: With the file and the entry, for unknown classes, boxes outside their image, connections to boxes that
            are not there, lists that do not fit together, duplicate or missing images and images of the other split.
    """
    files = find_hico_det(Path(root), split, None if image_labels is None else Path(image_labels))
    file = files.annotations
    if file.suffix == ".mat":
        reject = Rejects(f"{file}: bbox_{split}", lenient)
        raw = read_anno_bbox(file, split, limit, reject)
    else:
        reject = Rejects(f"{file}:", lenient)
        raw = read_hico_json(file, split, limit, reject)
    _refuse_other_split(file, split, raw.names)
    present = images_of(images, files.images, "HICO-DET's images", f"{split}2015")
    kept = good_images(raw, set(raw.names) if present is None else present, present, reject)
    sizes = _known_sizes(raw, files.images) if images is True else raw.sizes
    human_box, object_box = half_open(raw.human, raw.first_pixel), half_open(raw.object, raw.first_pixel)
    position = np.full(len(raw.names), -1)
    position[kept] = np.arange(len(kept))
    good = good_pairs(raw, sizes, human_box, object_box, reject) & (position[raw.image] >= 0)
    counts = np.bincount(position[raw.image[good]], minlength=len(kept))
    hoi = raw.hoi[good]
    verbs, objects = raw.vocabulary.hois[hoi].T
    names = [raw.names[i] for i in kept]
    image_hois = None
    if files.image_labels is not None:
        image_hois = read_image_level(files.image_labels, split, names, len(raw.vocabulary))
    reject.warn()
    return Annotations(
        name="hico-det",
        split=split,
        vocabulary=raw.vocabulary,
        image_id=np.array(names, dtype=str),
        path=[os.path.join(files.images, name) if present is None else present.path(name) for name in names],
        width=sizes[kept, 0],
        height=sizes[kept, 1],
        pair_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        human_box=human_box[good],
        object_box=object_box[good],
        object=objects.copy(),
        verb=verbs.copy(),
        hoi=hoi.astype(np.int16),
        image_hois=image_hois,
        frame="stored",
        rejected=tuple(reject.messages),
    )


def _refuse_other_split(file: Path, split: str, names: list[str]) -> None:
    other = {"train": "test", "test": "train"}[split]
    if names and all(name.startswith(f"HICO_{other}2015_") for name in names):
        raise UserError(f"{file}: its images are those of the {other} split ({names[0]}), but {split} was asked for")


def _known_sizes(raw: RawSplit, folder: Path) -> np.ndarray:
    """The file's sizes, int32 [N, 2], and from the images' headers those that it does not have."""
    sizes = raw.sizes.copy()
    for i in np.flatnonzero((sizes == 0).any(1)):
        sizes[i] = header_size(folder / raw.names[i], "stored")
    return sizes
