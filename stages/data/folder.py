"""A plain folder of photographs as a dataset: with nothing else, or with annotations of one's own.

Annotations are a JSON object; boxes are x1, y1, x2, y2 in pixels, zero-based half-open::

    {"vocabulary": "vocabulary.json",
     "pictures": [
       {"file_name": "harbour/01.jpg", "split": "test", "width": 640, "height": 480,
        "pairs": [{"human_box": [8, 20, 120, 300], "object_box": [60, 150, 260, 310],
                   "object": "bicycle", "verbs": ["ride", "hold"]},
                  {"human_box": [300, 30, 380, 310], "verbs": ["stand"]}]}]}

No other keys are allowed, and an image is listed once. ``vocabulary`` is a file of ``Vocabulary.save`` beside the
JSON (by default HICO-DET's 600 interactions); ``split`` is "train" unless it says "test"; ``width`` and ``height``
may be left out, and ``pairs`` where there are none; a pair without ``object`` is a verb done without one. Sizes and boxes
are those of the upright image: EXIF orientation is applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hoi_distill.stages.data.annotations import Annotations, contradiction
from hoi_distill.stages.data.elsewhere import ImagesElsewhere
from hoi_distill.stages.data.image import header_size
from hoi_distill.stages.data.listing import SUFFIXES, below, images_below
from hoi_distill.stages.data.reading.json_columns import integers, number_rows, read_json
from hoi_distill.stages.data.reading.raw_split import inside
from hoi_distill.stages.data.reading.rejects import Rejects
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.storage.errors import UserError, did_you_mean

KEYS = {
    "annotations": ("vocabulary", "pictures"),
    "picture": ("file_name", "split", "width", "height", "pairs"),
    "pair": ("human_box", "object_box", "object", "verbs"),
}
"""The keys of each kind of JSON object."""


def load_folder(
    root: str | Path | ImagesElsewhere, vocabulary: str | Path | None = None, limit: int | None = None
) -> Annotations:
    """All images under a folder (:func:`hoi_distill.stages.data.listing.images_below`), sorted by path. No pairs.

    Sizes are read from the headers, EXIF orientation applied. A file with an unreadable header stays, with size 0; decoding
    it will say why. Images elsewhere have size 0 until they are named by their bytes.

    Args:
        root: The folder; or the images, where they are no files of a folder, in their own order.
        vocabulary: A file of ``Vocabulary.save``; by default HICO-DET's 600 interactions.
        limit: Only the first so many images.

    Raises:
        UserError: If the folder is not there, or has no images.
    """
    words = Vocabulary.load(vocabulary) if vocabulary is not None else hico_vocabulary()
    files = _Files([], [], np.zeros((0, 2), np.int32))
    if isinstance(root, ImagesElsewhere):
        files.add(dict(islice(root.all().items(), limit)), opened=False)
    else:
        root = Path(root)
        files.add({name: str(root / path) for name, path in islice(images_below(root).items(), limit)})
        if not files.names:
            raise UserError(f"{root}: no images in it ({', '.join(sorted(SUFFIXES))})")
    return _annotations("all", words, files, _Pairs(), np.zeros(0, np.int64))


def load_annotated_folder(
    annotations: str | Path,
    split: str | None = None,
    *,
    root: str | Path | None = None,
    vocabulary: str | Path | None = None,
    limit: int | None = None,
    lenient: bool = False,
    images: bool | ImagesElsewhere = True,
) -> Annotations:
    """The images and pairs of an annotation file (format: this module's docstring), in its order.

    Args:
        annotations: The JSON file.
        split: "train" or "test"; None is the test images or, where the file names none, all.
        root: The images' folder, by default the file's own.
        vocabulary: A file to use instead of the one that the annotations name.
        limit: Only the first so many images.
        lenient: Drop bad entries, count them and warn, instead of refusing them.
        images: Whether the images must be there, whatever their suffix and however the file writes their path. Then sizes
            come from their headers, and other images under ``root`` follow in "train", without pairs. Images elsewhere
            are not opened here: the file has to state the size of each that has pairs.

    Raises:
        UserError: With the file and the entry, for unknown keys and names, a verb and an object that are no class together,
            sizes that are not the image's, boxes empty or outside their image, missing images, and images listed
            twice, be it in two splits.
    """
    file = Path(annotations)
    root = file.parent if root is None else Path(root)
    document = read_json(file, dict, "annotations of a folder (see docs/formats.md)")
    if (unknown := _unknown_key("annotations", document)) is not None:
        raise UserError(f"{file}: {unknown}")
    if not isinstance(document.get("pictures"), list):
        raise UserError(f"{file}: no list 'pictures'; see docs/formats.md")
    if split not in (None, "train", "test"):
        raise UserError(f"{file}: there are the splits train and test, not {split!r}")
    named = file.parent / str(document["vocabulary"]) if "vocabulary" in document else None
    words = Vocabulary.load(vocabulary or named) if vocabulary or named else hico_vocabulary()  # type: ignore[arg-type]
    reject = Rejects(f"{file}:", lenient)
    read = _readable(document["pictures"], root, reject)
    if split is None and any(entry.record.get("split") == "test" for entry in read):
        split = "test"
    entries = [entry for entry in read if split in (None, entry.record.get("split", "train"))]
    present: Mapping[str, str] = {}
    if isinstance(images, ImagesElsewhere):
        entries, files = _present_elsewhere(entries, images, reject, limit)
        present = images.all() if images.is_listed else {}
    elif images:
        present = images_below(root)
        entries, files = _present(entries, present, root, reject, limit)
    else:
        entries = entries[:limit]
        files = _Files([entry.name for entry in entries], [str(root / e.name) for e in entries], _stated(entries))
    if split == "train":
        listed = {
            below(root, str(record.get("file_name"))) for record in document["pictures"] if isinstance(record, dict)
        }
        others = [name for name in present if name not in listed]
        others = others[: None if limit is None else limit - len(entries)]
        away = isinstance(images, ImagesElsewhere)
        files.add({name: present[name] if away else str(root / present[name]) for name in others}, opened=not away)
    raw = _Pairs()
    for position, entry in enumerate(entries):
        raw.read(position, f"entry {entry.number} ({entry.name})", entry.record.get("pairs") or [], reject)
    good = raw.check(words, files.sizes, reject)
    reject.warn()
    by_file = np.arange(len(files.names)) < len(entries)
    return _annotations(split or "all", words, files, raw, good, rejected=reject.messages, listed=by_file)


class _Entry(NamedTuple):
    """An image's record in the file, and its number there."""

    number: int
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.record["file_name"]


@dataclass
class _Files:
    """N images: names, paths or other uris, and sizes, int32 ``[N, 2]``, 0 where they are not known."""

    names: list[str]
    paths: list[str]
    sizes: np.ndarray

    def add(self, paths: Mapping[str, str], *, opened: bool = True) -> None:
        """Append images by their names. Sizes are read from the headers, unless they are not opened."""
        self.names += paths
        self.paths += paths.values()
        sizes = np.array([header_size(path) if opened else (0, 0) for path in paths.values()], np.int32)
        self.sizes = np.concatenate([self.sizes, sizes.reshape(-1, 2)])


@dataclass
class _Pairs:
    """One row for each verb of each pair, in file order. :meth:`check` fills the arrays.

    Attributes:
        image: The pair's image, counted among those that are kept.
        where: Where the pair stands in the file, for errors.
        verb_name: The verb.
        object_name: The object, None for a verb that is done without one.
        human: The human's box as the file has it.
        obj: The object's box as the file has it.
        human_box: float32 ``[P, 4]``, xyxy half-open.
        object_box: float32 ``[P, 4]``, all zero without object.
        labels: int16 ``[P, 3]``, object, verb and hoi, as in :class:`Annotations`.
    """

    image: list[int] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    verb_name: list[str] = field(default_factory=list)
    object_name: list[str | None] = field(default_factory=list)
    human: list[Any] = field(default_factory=list)
    obj: list[Any] = field(default_factory=list)
    human_box: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    object_box: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int16))

    def read(self, position: int, where: str, pairs: Any, reject: Rejects) -> None:
        """Note the pairs of one image."""
        if not isinstance(pairs, list):
            reject(f"{where}: pairs {pairs!r} is not a list")
            return
        for number, pair in enumerate(pairs, start=1):
            verbs = pair.get("verbs") if isinstance(pair, dict) else None
            if not isinstance(verbs, list) or not verbs or "human_box" not in pair:
                reject(f"{where}, pair {number}: a pair has human_box and a list of verbs, and may have an object")
                continue
            if (unknown := _unknown_key("pair", pair)) is not None:
                reject(f"{where}, pair {number}: {unknown}")
                continue
            obj = pair.get("object")
            if (obj is None) != (pair.get("object_box") is None):
                reject(f"{where}, pair {number}: object and object_box go together; give both or neither")
                continue
            for verb in verbs:
                self.image.append(position)
                self.where.append(f"{where}, pair {number}")
                self.verb_name.append(str(verb))
                self.object_name.append(None if obj is None else str(obj))
                self.human.append(pair["human_box"])
                self.obj.append([0, 0, 0, 0] if obj is None else pair["object_box"])

    def check(self, words: Vocabulary, sizes: np.ndarray, reject: Rejects) -> np.ndarray:
        """int64 ``[K]``: the rows whose names and boxes are right; the others are rejected."""
        verbs = {name: i for i, name in enumerate(words.verbs)}
        objects = {name: i for i, name in enumerate(words.objects)}
        verb = np.array([verbs.get(name.replace(" ", "_"), -1) for name in self.verb_name], np.int64)
        obj = np.array(
            [-1 if name is None else objects.get(name.replace(" ", "_"), -2) for name in self.object_name], np.int64
        )
        hoi = np.where((verb >= 0) & (obj >= 0), words.hoi_id()[verb, np.maximum(obj, 0)], -1)
        human_box, human_is = number_rows(self.human, 4)
        object_box, object_is = number_rows(self.obj, 4)
        size = sizes[np.array(self.image, np.int64)]
        human_is &= inside(human_box, size)
        object_is &= inside(object_box, size) | (obj == -1)
        good = (verb >= 0) & (obj != -2) & ((hoi >= 0) | (obj == -1)) & human_is & object_is
        for p in np.flatnonzero(~good).tolist():
            if verb[p] < 0:
                problem = _unknown("verb", self.verb_name[p], words.verbs)
            elif obj[p] == -2:
                problem = _unknown("object", str(self.object_name[p]), words.objects)
            elif human_is[p] and object_is[p]:
                pair = f"{self.verb_name[p]} {self.object_name[p]}"
                problem = f"{pair} is no interaction of the vocabulary; add it there"
            else:
                name, box = ("object_box", self.obj[p]) if human_is[p] else ("human_box", self.human[p])
                extent = f"the {size[p][0]} x {size[p][1]} image" if size[p].all() else "its image"
                problem = f"{name} {box!r} is not four numbers x1, y1, x2, y2, or empty, or outside {extent}"
            reject(f"{self.where[p]}: {problem}")
        self.human_box, self.object_box = human_box.astype(np.float32), object_box.astype(np.float32)
        self.labels = np.stack([obj, verb, hoi], 1).astype(np.int16)
        return np.flatnonzero(good)


def _annotations(
    split: str,
    words: Vocabulary,
    files: _Files,
    pairs: _Pairs,
    good: np.ndarray,
    *,
    rejected: Sequence[str] = (),
    listed: np.ndarray | None = None,
) -> Annotations:
    counts = np.bincount(np.array(pairs.image, np.int64)[good], minlength=len(files.names))
    obj, verb, hoi = (column.copy() for column in pairs.labels[good].T)
    sizes = files.sizes.reshape(-1, 2)
    return Annotations(
        name="folder",
        split=split,
        vocabulary=words,
        image_id=np.array(files.names, dtype=str),
        path=files.paths,
        width=sizes[:, 0],
        height=sizes[:, 1],
        pair_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        human_box=pairs.human_box[good],
        object_box=pairs.object_box[good],
        object=obj,
        verb=verb,
        hoi=hoi,
        frame="upright",
        rejected=tuple(rejected),
        listed=listed,
    )


def _readable(records: list[Any], root: Path, reject: Rejects) -> list[_Entry]:
    """The images of all splits that are what they should be, each image once."""
    found = []
    seen: dict[str, int] = {}
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
            reject(f"entry {number}: no file_name; an image has file_name and pairs")
        elif record.get("split", "train") not in ("train", "test"):
            reject(f"entry {number} ({record['file_name']}): split {record['split']!r} is neither train nor test")
        elif (unknown := _unknown_key("picture", record)) is not None:
            reject(f"entry {number} ({record['file_name']}): {unknown}")
        elif (first := seen.setdefault(below(root, record["file_name"]), number)) != number:
            reject(f"entry {number} repeats the image {record['file_name']} of entry {first}; remove one")
        else:
            found.append(_Entry(number, record))
    return found


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    return f"unknown {kind} {name!r}{did_you_mean(name.replace(' ', '_'), known)}; the vocabulary lists all {kind}s"


def _unknown_key(kind: str, record: dict[str, Any]) -> str | None:
    """What is wrong with the keys of a JSON object of a kind of KEYS."""
    unknown = next((key for key in record if key not in KEYS[kind]), None)
    if unknown is None:
        return None
    near = did_you_mean(unknown, KEYS[kind])
    return f"unknown key {unknown!r}{near}; the keys here are {', '.join(KEYS[kind])}"


def _stated(entries: Sequence[_Entry]) -> np.ndarray:
    """int32 ``[N, 2]``: sizes as the file has them, 0 where it has none."""
    sides = [integers([entry.record.get(side, 0) for entry in entries])[0] for side in ("width", "height")]
    return np.clip(np.stack(sides, 1), 0, np.iinfo(np.int32).max).astype(np.int32)


def _present(
    entries: Sequence[_Entry], present: Mapping[str, str], root: Path, reject: Rejects, limit: int | None
) -> tuple[list[_Entry], _Files]:
    """The first ``limit`` entries whose image is there, and of the size that the file states if it states one."""
    kept: list[_Entry] = []
    paths, sizes = [], []
    for entry, stated in zip(entries, _stated(entries), strict=True):
        if limit is not None and len(kept) == limit:
            break
        listed = present.get(below(root, entry.name))
        path = root / (entry.name if listed is None else listed)
        if listed is None and not path.is_file():
            reject(f"entry {entry.number}: no image {path}")
            continue
        size = header_size(path)
        if (wrong := contradiction(path, stated, size, "upright")) is not None:
            reject(f"entry {entry.number}: {wrong}")
            continue
        kept.append(entry)
        paths.append(str(path))
        sizes.append(size)
    return kept, _Files([entry.name for entry in kept], paths, np.array(sizes, np.int32).reshape(-1, 2))


def _present_elsewhere(
    entries: Sequence[_Entry], images: ImagesElsewhere, reject: Rejects, limit: int | None
) -> tuple[list[_Entry], _Files]:
    """The first ``limit`` entries whose image is there, with the sizes that the file states."""
    kept: list[_Entry] = []
    paths, sizes = [], []
    for entry, stated in zip(entries, _stated(entries).tolist(), strict=True):
        if limit is not None and len(kept) == limit:
            break
        where = images.find(entry.name)
        if where is None:
            reject(f"entry {entry.number}: no image {images.place}/{entry.name}")
        elif entry.record.get("pairs") and not all(stated):
            reject(
                f"entry {entry.number} ({entry.name}): no width and height; an image that is not on a disk needs them"
            )
        else:
            kept.append(entry)
            paths.append(where)
            sizes.append(stated)
    return kept, _Files([entry.name for entry in kept], paths, np.array(sizes, np.int32).reshape(-1, 2))
