"""SWiG-HOI (Wang et al., Discovering Human Interactions with Large-Vocabulary Objects, ICCV 2021), as its authors ship it.

``swig_{train,val,trainval,test}_1000.json`` is a list of images: file_name, img_id, height, width, box_annotations
[{bbox, category_id, aux_category_id}], hoi_annotations [{subject_id, object_id, action_id}], where the ids of subject and
object count the image's boxes. Boxes are xyxy pixels; the published loader and evaluator take width as x2 - x1, so they
are half-open as ours. ``aux_category_id``, what other annotators called the object, counts for neither.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.elsewhere import Elsewhere, ImagesElsewhere, images_of
from hoi_distill.stages.data.listing import Listing
from hoi_distill.stages.data.reading.json_columns import integers, number_rows, read_json
from hoi_distill.stages.data.reading.rejects import Rejects
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError

_SPLITS = ("train", "val", "trainval", "test")
_VOCABULARY = Path(__file__).parent / "vocabularies" / "swig_hoi.json"


@cache
def swig_vocabulary() -> Vocabulary:
    """1,000 objects of its own (person = 0), 407 actions, 14,130 interactions."""
    return Vocabulary.load(_VOCABULARY)


@cache
def swig_frequency() -> np.ndarray:
    """int8 [14130], read-only: 0 an interaction unseen in training, 1 rare, 2 non-rare."""
    return _digits("frequency")


@cache
def swig_evaluated() -> np.ndarray:
    """bool [14130], read-only: the 5,539 interactions that are evaluated."""
    return _digits("evaluation").view(bool)


def _digits(key: str) -> np.ndarray:
    record = json.loads(_VOCABULARY.read_text(encoding="utf-8"))
    return np.frombuffer(bytes(map(int, record[key])), np.int8)


def load_swig_hoi(
    root: str | Path,
    split: str | None = None,
    *,
    limit: int | None = None,
    lenient: bool = False,
    images: bool | ImagesElsewhere = True,
) -> Annotations:
    """Read one split of a folder in SWiG-HOI's layout, or one of its annotation files.

    ``image_id`` is the file name. Boxes are clipped to their image, as in the published loader.

    Args:
        root: A folder with ``annotations/swig_{split}_1000.json`` (or the file right in it) and ``images_512``; or the
            file.
        split: train, val, trainval or test; by default what the file's name says, for a folder test.
        limit: Read only the first so many images.
        lenient: Drop bad entries, count them and warn, instead of refusing them.
        images: Whether the image files must be there; or where they are, if not beside the annotations.

    Raises:
        UserError: With the file and the entry, for unknown classes, boxes that are no boxes, interactions of boxes that
            are not there, duplicate or missing images.
    """
    file, split, folder = _place(Path(root), split)
    records = read_json(file, list, "SWiG-HOI's list of images")[:limit]
    reject = Rejects(f"{file}:", lenient)
    present = images_of(images, folder, "SWiG-HOI's images (images_512.zip)", "images_512")
    names, sizes, owners = _images(records, present, reject)

    boxes: list[Any] = []
    categories: list[Any] = []
    hois: list[tuple[int, Any, Any, Any]] = []  # image, subject and object among all boxes (-1: not there), action
    for position, number in enumerate(owners):
        start, count = len(boxes), len(records[number].get("box_annotations") or ())
        for box in records[number].get("box_annotations") or ():
            boxes.append(box.get("bbox"))
            categories.append(box.get("category_id"))
        for hoi in records[number].get("hoi_annotations") or ():
            ends = (hoi.get("subject_id"), hoi.get("object_id"))
            there = all(isinstance(end, int) and 0 <= end < count for end in ends)
            if there:
                hois.append((position, start + ends[0], start + ends[1], hoi.get("action_id")))
            else:
                reject(f"entry {number} ({names[position]}): interaction of the boxes {ends}; the image has {count}")
    columns = [np.array(column, np.int64) for column in ([h[k] for h in hois] for k in range(3))]
    image, human, obj = columns
    box, good_box = number_rows(boxes, 4)
    category, _ = integers(categories)
    action, _ = integers([h[3] for h in hois])

    vocabulary = swig_vocabulary()
    known = (category >= 0) & (category < len(vocabulary.objects))
    kind = np.where(known, category, -1)[obj]
    named = (kind >= 0) & (action >= 0) & (action < len(vocabulary.verbs))
    hoi_id = np.where(named, vocabulary.hoi_id()[np.where(named, action, 0), np.where(named, kind, 0)], -1)
    humans, objs = (_clip(box[end], sizes[image]) for end in (human, obj))
    whole = [good_box[end] & (b[:, 2:] > b[:, :2]).all(axis=1) for end, b in ((human, humans), (obj, objs))]
    good = (hoi_id >= 0) & whole[0] & whole[1]
    for p in np.flatnonzero(~good):
        where = f"entry {owners[image[p]]} ({names[image[p]]})"
        if hoi_id[p] < 0:
            reject(
                f"{where}: action {hois[p][3]!r} with object {categories[obj[p]]!r} is none of the 14,130 interactions"
            )
        else:
            end = human[p] if not whole[0][p] else obj[p]
            width, height = sizes[image[p]]
            reject(f"{where}: bbox {boxes[end]!r} is empty, outside the {width} x {height} image or not four numbers")
    reject.warn()
    counts = np.bincount(image[good], minlength=len(names))
    return Annotations(
        name="swig-hoi",
        split=split,
        vocabulary=vocabulary,
        image_id=np.array(names, dtype=str),
        path=[str(folder / name) if present is None else present.path(name) for name in names],
        width=sizes[:, 0],
        height=sizes[:, 1],
        pair_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        human_box=humans[good],
        object_box=objs[good],
        object=kind[good].astype(np.int16),
        verb=action[good].astype(np.int16),
        hoi=hoi_id[good].astype(np.int16),
        frame="stored",
        rejected=tuple(reject.messages),
    )


def _place(root: Path, split: str | None) -> tuple[Path, str, Path]:
    """The annotation file, the split and the folder of images."""
    if root.is_file():
        named = next((part for part in _SPLITS if f"_{part}_" in root.name), None)
        if named and split not in (None, named):
            raise UserError(f"{root}: this is the file of the split {named}, not of {split}; give the one or the other")
        split = named or split or "test"
        file, parents = root, list(root.parents)[:3]
    else:
        split = split or "test"
        if split not in _SPLITS:
            raise UserError(f"{root}: SWiG-HOI has the splits {', '.join(_SPLITS)}, not {split!r}")
        name = f"swig_{split}_1000.json"
        places = [root / folder / name for folder in ("annotations", "", "swig_hoi/annotations", "swig_hoi")]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UserError(f"{root}: no {name} in {', '.join(str(place.parent) for place in places)}")
        file, parents = found, [found.parent, *found.parent.parents][:3]
    folders = [parent / "images_512" for parent in parents]
    return file, split, next((folder for folder in folders if folder.is_dir()), folders[min(1, len(folders) - 1)])


def _images(
    records: list[Any], present: Listing | Elsewhere | None, reject: Rejects
) -> tuple[list[str], np.ndarray, list[int]]:
    """Names, sizes (int32 ``[N, 2]``) and record numbers of the images to keep."""
    rows: dict[str, int] = {}
    sizes = []
    for number, record in enumerate(records):
        name = record.get("file_name") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name:
            reject(f"entry {number} has no file_name; is it an image?")
        elif name in rows:
            reject(f"entry {number} repeats the image {name} of entry {rows[name]}; remove one")
        elif present is not None and name not in present:
            reject(f"entry {number}: no image {present.path(name)}")
        elif not all(isinstance(record.get(key), int) and 0 < record[key] < 2**31 for key in ("width", "height")):
            reject(f"entry {number} ({name}): width and height are not whole numbers of pixels")
        elif not all(_dicts(record.get(key, [])) for key in ("box_annotations", "hoi_annotations")):
            reject(f"entry {number} ({name}): box_annotations and hoi_annotations are not lists of dicts")
        else:
            rows[name] = number
            sizes.append((record["width"], record["height"]))
    return list(rows), np.array(sizes, np.int32).reshape(-1, 2), list(rows.values())


def _dicts(entries: Any) -> bool:
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def _clip(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.clip(boxes, 0, np.tile(size, 2)).astype(np.float32)
