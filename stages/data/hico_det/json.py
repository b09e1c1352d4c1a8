"""HICO-DET's annotations in the two JSON forms that others made of ``anno_bbox.mat``.

``instances_{train,test}2015.json`` (fredzzhang/hicodet, read by UPT, PViC, ADA-CM): one object of lists. Boxes are
HICO-DET's own, 1-based inclusive; all images are there. Its objects are in alphabetical order or, in copies, in
COCO's: classes are read by name, through ``correspondence``.

``trainval_hico.json`` and ``test_hico.json`` (PPDM, then QPIC, CDN, GEN-VLKT): a list of images. It differs from
HICO-DET's own file: images without pairs are left out (37,633 and 9,546 remain), no sizes, the training file's boxes
count from 0 (inclusive) and near-duplicates of a person or an object have become one box; the test file's boxes are
HICO-DET's own, 1-based, and it names no ``hoi_category_id``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.stages.data.reading.json_columns import integers, number_rows, read_json
from hoi_distill.stages.data.reading.raw_split import RawSplit
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.storage.errors import UserError, did_you_mean

_ENOUGH_BOXES = 1000  # among so many some touch the border: the smallest coordinate is that of the first pixel


def read_hico_json(file: Path, split: str, limit: int | None, reject: Callable[[str], None]) -> RawSplit:
    """Either form, told apart by what is in it.

    Raises:
        UserError: With the file and the key, if it is neither.
    """
    what = "instances_*2015.json, an object, or PPDM's *_hico.json, a list"
    document = read_json(file, object, what)
    if isinstance(document, dict):
        return _instances(file, document, limit, reject)
    if isinstance(document, list):
        return _images(document, split, limit, reject)
    raise UserError(f"{file}: holds {document!r}; it should be {what}")


def _instances(file: Path, document: dict[str, Any], limit: int | None, reject: Callable[[str], None]) -> RawSplit:
    keys = ("annotation", "filenames", "objects", "verbs", "correspondence")
    for key in keys:
        if not isinstance(document.get(key), list):
            raise UserError(f"{file}: no list {key!r}; an instances_*2015.json has {', '.join(keys)} and size")
    names, records = document["filenames"], document["annotation"]
    sizes = document.get("size") or [None] * len(names)
    if not len(names) == len(records) == len(sizes):
        raise UserError(
            f"{file}: filenames, annotation and size hold {len(names)}, {len(records)} and {len(sizes)} entries; "
            "they must be equally many"
        )
    columns: dict[str, list[Any]] = {key: [] for key in ("boxes_h", "boxes_o", "hoi", "object", "verb")}
    counts = []
    for number, record in enumerate(records[:limit], start=1):
        counts.append(0)
        try:
            lengths = {len(record[key]) for key in columns}
        except (KeyError, TypeError) as error:
            problem = f"no key {error}" if isinstance(error, KeyError) else "not an object of lists"
            reject(f"entry {number} ({names[number - 1]}): {problem}; there must be {', '.join(columns)}")
            continue
        if len(lengths) > 1:
            told = ", ".join(f"{key} {len(record[key])}" for key in columns)
            reject(f"entry {number} ({names[number - 1]}): lists of different lengths: {told}")
            continue
        counts[-1] = lengths.pop()
        for key, values in columns.items():
            values.extend(record[key])
    vocabulary = hico_vocabulary()
    classes = _classes(file, document, vocabulary)
    image = np.repeat(np.arange(len(counts)), counts)
    hoi, obj, verb = (integers(columns[key])[0] for key in ("hoi", "object", "verb"))
    known = (hoi >= 0) & (hoi < len(classes))
    for p in np.flatnonzero(~known).tolist():
        reject(
            f"entry {image[p] + 1} ({names[image[p]]}): unknown interaction {hoi[p]}; 0 to {len(classes) - 1} are there"
        )
    mixed = np.zeros(len(hoi), bool)
    mixed[known] = (classes[hoi[known], 1:] != np.stack([obj, verb], 1)[known]).any(1)
    for p in np.flatnonzero(mixed).tolist():
        _, want_object, want_verb = classes[hoi[p]]
        reject(
            f"entry {image[p] + 1} ({names[image[p]]}): hoi {hoi[p]} is object {want_object} with verb {want_verb} in "
            f"correspondence, but the pair says object {obj[p]} with verb {verb[p]}"
        )
    hoi[known] = classes[hoi[known], 0]
    rows = np.flatnonzero(known & ~mixed)
    return RawSplit(
        vocabulary, [str(name) for name in names[:limit]], np.arange(1, len(counts) + 1), _sizes(sizes[:limit]),
        image[rows], hoi[rows], _corners(columns["boxes_h"])[rows], _corners(columns["boxes_o"])[rows], first_pixel=1,
    )  # fmt: skip


def _classes(file: Path, document: dict[str, Any], vocabulary: Vocabulary) -> np.ndarray:
    """int64 [H', 3]: our class of each class of the file, by its names, and the file's own numbers of object and verb."""
    objects = {str(name).replace(" ", "_"): i for i, name in enumerate(vocabulary.objects)}
    verbs = {name: i for i, name in enumerate(vocabulary.verbs)}
    out = np.full((len(document["correspondence"]), 3), -1, np.int64)
    for row in document["correspondence"]:
        try:
            hoi, obj, verb = row
            if min(row) < 0:
                raise ValueError
            names = document["verbs"][verb].replace(" ", "_"), document["objects"][obj].replace(" ", "_")
            ours = vocabulary.hoi_id()[verbs[names[0]], objects[names[1]]]
            out[hoi] = ours, obj, verb
        except (TypeError, ValueError, IndexError):
            raise UserError(
                f"{file}: correspondence {row!r} is not [hoi, object, verb] within the file's own lists"
            ) from None
        except KeyError as error:
            near = did_you_mean(str(error.args[0]), [*verbs, *objects])
            raise UserError(
                f"{file}: correspondence {row!r} names {error}, which HICO-DET does not have{near}"
            ) from None
        if ours < 0:
            raise UserError(f"{file}: correspondence {row!r}: {' '.join(names)} is no class of HICO-DET")
    return out


def _sizes(values: Sequence[Any]) -> np.ndarray:
    """int32 [N, 2] of [width, height]; 0 for images whose size the file does not know."""
    known = [value if isinstance(value, list) and len(value) == 2 else (0, 0) for value in values]
    sides = integers([side for size in known for side in size])[0]
    return np.clip(sides, 0, np.iinfo(np.int32).max).reshape(-1, 2).astype(np.int32)


def _images(document: list[Any], split: str, limit: int | None, reject: Callable[[str], None]) -> RawSplit:
    entry, names, records = _readable(document, reject)
    order = sorted(range(len(names)), key=lambda i: names[i])[:limit]  # HICO-DET's own order is that of the names
    boxes: list[Any] = []
    categories: list[Any] = []
    links: list[tuple[Any, ...]] = []
    box_counts, link_counts = [], []
    for i in order:
        own, listed = records[i]["annotations"], records[i]["hoi_annotation"]
        try:
            row = [(p["subject_id"], p["object_id"], p["category_id"], p.get("hoi_category_id", 0)) for p in listed]
            own_boxes, own_categories = [box["bbox"] for box in own], [box["category_id"] for box in own]
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"no key {error}" if isinstance(error, KeyError) else "annotations are not lists of objects"
            reject(f"entry {entry[i]} ({names[i]}): {problem}; boxes have bbox, category_id; pairs their three ids")
            row, own_boxes, own_categories = [], [], []
        boxes.extend(own_boxes)
        categories.extend(own_categories)
        links.extend(row)
        box_counts.append(len(own_boxes))
        link_counts.append(len(row))
    subject, obj, verb, said = (integers([link[k] for link in links], text=True)[0] for k in range(4))
    pairs = _Links(np.repeat(np.arange(len(order)), link_counts), subject, obj, verb, said)
    image = pairs.image
    where = [f"entry {entry[i]} ({names[i]})" for i in order]
    own_counts, own_category = np.array(box_counts, np.int64), integers(categories, text=True)[0]
    rows, hoi = _resolve(pairs, own_counts, own_category, where, reject)
    box = _corners(boxes)
    starts = (np.cumsum(box_counts) - box_counts)[image[rows]] if len(rows) else np.zeros(0, np.int64)
    smallest = np.min(box[:, :2], where=np.isfinite(box[:, :2]), initial=np.inf)
    names = [names[i] for i in order]
    absent = [] if limit is not None else _left_out(split, names)
    sizes = np.zeros((len(names) + len(absent), 2), np.int32)
    numbers = np.array([entry[i] for i in order] + [0] * len(absent), np.int64)
    raw = RawSplit(
        hico_vocabulary(), names + absent, numbers, sizes, image[rows], hoi, box[starts + subject[rows]],
        box[starts + obj[rows]], first_pixel=_first_pixel(smallest, len(box), split),
    )  # fmt: skip
    return _sorted(raw) if absent else raw


def _readable(document: list[Any], reject: Callable[[str], None]) -> tuple[list[int], list[str], list[dict[str, Any]]]:
    """Number, file name and record of the entries that are objects with the keys of an image."""
    keys = {"file_name": str, "annotations": list, "hoi_annotation": list}
    entry, names, records = [], [], []
    for number, record in enumerate(document, start=1):
        wrong = [k for k, kind in keys.items() if not isinstance(record, dict) or not isinstance(record.get(k), kind)]
        if wrong:
            reject(f"entry {number}: no {keys[wrong[0]].__name__} {wrong[0]!r}; an image has {', '.join(keys)}")
            continue
        entry.append(number)
        names.append(record["file_name"])
        records.append(record)
    return entry, names, records


@dataclass(frozen=True)
class _Links:
    """P pairs as the file has them, int64 ``[P]`` each.

    Attributes:
        image: The pair's image.
        subject: Row of the human among the image's boxes.
        object: Row of the object among the image's boxes.
        verb: From 1.
        hoi: The class from 1; 0 if the file does not say.
    """

    image: np.ndarray
    subject: np.ndarray
    object: np.ndarray
    verb: np.ndarray
    hoi: np.ndarray


def _resolve(
    links: _Links, box_counts: np.ndarray, categories: np.ndarray, where: Sequence[str], reject: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Find the class of each pair.

    Args:
        links: The pairs.
        box_counts: int64 ``[N]``, boxes of each image.
        categories: int64, COCO's category of every box, image after image.
        where: Of each image, stands before the reason for which a pair is rejected.
        reject: Gets one reason for each pair that makes no sense.

    Returns:
        Rows of the other pairs, and their classes from 0.
    """
    vocabulary, image = hico_vocabulary(), links.image
    subject, obj, verb, said = links.subject, links.object, links.verb, links.hoi
    count = box_counts[image] if len(image) else image
    bad = np.zeros(len(image), bool)

    def refuse(wrong: np.ndarray, message: Callable[[int], str]) -> None:
        for p in np.flatnonzero(wrong & ~bad).tolist():
            reject(f"{where[image[p]]}: {message(p)}")
        bad[wrong] = True

    for name, value in (("subject_id", subject), ("object_id", obj)):
        outside = (value < 0) | (value >= count)
        refuse(outside, lambda p, n=name, v=value: f"{n} {v[p]} is none of its {count[p]} boxes")  # type: ignore[misc]
    starts = np.cumsum(box_counts) - box_counts
    index_of = np.full(max(COCO_CATEGORY_IDS) + 1, -1)
    index_of[list(COCO_CATEGORY_IDS)] = np.arange(len(COCO_OBJECTS))
    coco = index_of[np.where((categories > 0) & (categories < len(index_of)), categories, 0)]
    human, target = np.full(len(image), -1), np.full(len(image), -1)
    fine = np.flatnonzero(~bad)
    human_row, target_row = starts[image[fine]] + subject[fine], starts[image[fine]] + obj[fine]
    human[fine], target[fine] = coco[human_row], coco[target_row]
    given = np.zeros(len(image), np.int64)
    given[fine] = categories[target_row]
    refuse(human != 0, lambda p: f"subject_id {subject[p]} is not a person (category_id 1)")
    refuse(target < 0, lambda p: f"unknown category_id {given[p]}; COCO's are 1 to 90")
    verbs = len(vocabulary.verbs)
    refuse((verb < 1) | (verb > verbs), lambda p: f"unknown verb {verb[p]}; category_id of a pair is 1 to {verbs}")
    hoi = np.where(bad, -1, vocabulary.hoi_id()[np.where(bad, 0, verb - 1), np.where(bad, 0, target)]).astype(np.int64)
    refuse(
        hoi < 0, lambda p: f"{vocabulary.verbs[verb[p] - 1]} {vocabulary.objects[target[p]]} is no class of HICO-DET"
    )
    refuse(
        (said != 0) & (said != hoi + 1),
        lambda p: f"hoi_category_id {said[p]} is not its verb and object, which are class {hoi[p] + 1}",
    )
    rows = np.flatnonzero(~bad)
    return rows, hoi[rows]


def _first_pixel(smallest: float, boxes: int, split: str) -> int:
    """0 or 1, what the file counts pixels from: as its boxes show or, in a small file, as the published ones do."""
    if smallest < 1:
        return 0
    return 1 if boxes >= _ENOUGH_BOXES or split == "test" else 0


def _left_out(split: str, names: Sequence[str]) -> list[str]:
    """The images without pairs, if `names` are all the others of HICO-DET's split: they count in its evaluation."""
    absent = [f"HICO_{split}2015_{number:08d}.jpg" for number in _without_pairs()[split]]
    complete = {"train": 37_633, "test": 9_546}[split]
    return absent if len(names) == complete and not set(absent) & set(names) else []


@cache
def _without_pairs() -> dict[str, list[int]]:
    file = Path(__file__).parents[1] / "vocabularies" / "hico_without_pairs.json"
    return json.loads(file.read_text(encoding="utf-8"))


def _sorted(raw: RawSplit) -> RawSplit:
    """The same with images in the order of their names."""
    order = sorted(range(len(raw.names)), key=lambda i: raw.names[i])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    image = rank[raw.image]  # still ascending: what came in order, without gaps closed, stays in order
    names = [raw.names[i] for i in order]
    return RawSplit(
        raw.vocabulary, names, raw.entry[order], raw.sizes[order], image, raw.hoi, raw.human, raw.object,
        raw.first_pixel,
    )  # fmt: skip


def _corners(values: Sequence[Any]) -> np.ndarray:
    """float64 [n, 4]; a row of NaN for what is not four finite numbers."""
    rows, good = number_rows(values, 4)
    return np.where(good[:, None], rows, np.nan)
