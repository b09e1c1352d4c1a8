"""Where rows come from: the images of a dataset and the texts of a configuration, named by the digest of their bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.pipeline.config.schema import (
    CrowdDataset,
    Dataset,
    FolderDataset,
    HicoDetDataset,
    PicoDataset,
    SwigHoiDataset,
    VCocoDataset,
)
from hoi_distill.pipeline.console.watch import working
from hoi_distill.stages.data.annotations import Annotations, contradiction
from hoi_distill.stages.data.elsewhere import open_elsewhere
from hoi_distill.stages.data.folder import load_annotated_folder, load_folder
from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.data.image import Header, as_stored, read_header
from hoi_distill.stages.data.open_dataset import open_annotations
from hoi_distill.stages.data.reading.rejects import Rejects
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.files.address import ObjectPath, Place
from hoi_distill.storage.files.uri import is_elsewhere
from hoi_distill.storage.hashed_files import Derivation

HEADERS_VERSION = 1
"""Raised when :func:`hoi_distill.stages.data.image.read_header` says something else of the same bytes."""


@dataclass(frozen=True)
class Source:
    """Distinct inputs in dataset order.

    Attributes:
        ids: ``V16 [N]``, each once.
        uris: where to read each one: a file's path, or ``text:`` followed by the text itself.
        keys: the dataset's name of each (image id; for a text, the text). Several records of equal bytes share a row;
            the row goes by the first one's name.
        splits: ``{split: int64 [records of the split]}``: the row of every record.
    """

    ids: np.ndarray
    uris: list[str]
    keys: list[str]
    splits: Mapping[str, np.ndarray]

    def rows(self, splits: Sequence[str]) -> np.ndarray:
        """``int64 [R]``: the rows that occur in any of the splits, in order of first appearance."""
        parts = [self.splits[split] for split in splits if split in self.splits]
        if not parts:
            return np.zeros(0, np.int64)
        rows = np.concatenate(parts)
        places = np.arange(len(rows))
        first = np.empty(len(self.ids), np.int64)
        first[rows[::-1]] = places[::-1]  # of a row that occurs twice the last assignment stands
        return rows[first[rows] == places]

    def distinct_records(self, split: str) -> np.ndarray:
        """``int64 [P]``: the first record of each row that the split has. The other records repeat an image."""
        return first_of_each(self.splits[split])


def first_of_each(rows: np.ndarray) -> np.ndarray:
    """``int64 [R]``: where each of R different values stands first, in rising order."""
    return np.sort(np.unique(rows, return_index=True)[1])


def load_dataset(
    dataset: Dataset, limit: int | None = None, memory: Callable[[], DigestMemory] | None = None
) -> dict[str, Annotations]:
    """The annotations of each split, pairs that are a class. A drawn world is rendered first if it is not there.

    Args:
        dataset: the ``dataset`` section of a configuration.
        limit: only the first so many images of each split, for a trial run.
        memory: the cache's memory of digests, which is asked where images lie away from a folder's annotations.
            None: images there need not be looked for.
    """
    place = _elsewhere(dataset)
    images = place is None or (memory is not None and open_elsewhere(place, memory(), HEADER))
    match dataset:
        case PicoDataset():
            from hoi_distill.stages.data.pico import world as pico

            return _drawn(dataset, pico.KIND, pico.write_world, limit)
        case CrowdDataset():
            from hoi_distill.stages.data.crowd import world as crowd

            return _drawn(dataset, crowd.KIND, crowd.write_crowd, limit)
        case FolderDataset(annotations=None):
            if images is False:
                raise UserError(f"{place}: images by address are known to a configuration's commands alone")
            root = Path(str(dataset.root)) if isinstance(images, bool) else images
            return {"train": load_folder(root, vocabulary=dataset.vocabulary, limit=limit)}
        case FolderDataset(annotations=file) if file is not None:
            return {
                split: load_annotated_folder(
                    file,
                    split,
                    root=str(dataset.root),
                    vocabulary=dataset.vocabulary,
                    limit=limit,
                    lenient=dataset.lenient,
                    images=images,
                ).classified()
                for split in ("train", "test")
            }
        case HicoDetDataset():
            names = {"train": "train", "test": "test"}
        case VCocoDataset() | SwigHoiDataset():
            names = {"train": "trainval", "test": "test"}
    own: dict[str, Any] = {}
    if isinstance(dataset, HicoDetDataset):
        own["image_labels"] = dataset.image_labels
    elif isinstance(dataset, VCocoDataset):
        own["combinations"] = dataset.combinations
    return {
        split: open_annotations(
            dataset.kind, str(dataset.root), name, lenient=dataset.lenient, limit=limit, images=images, **own
        ).classified()
        for split, name in names.items()
    }


def _elsewhere(dataset: Dataset) -> Place | None:
    """Where the images lie, if they are no files of a folder where their loader looks for them."""
    if isinstance(dataset, FolderDataset):
        away = isinstance(dataset.root, ObjectPath) or dataset.root.suffix == ".tar"
        return dataset.root if away else None
    return getattr(dataset, "images", None)


def images_place(dataset: Dataset) -> Place:
    """Where a dataset's images lie, or the folder in which they are looked for."""
    return _elsewhere(dataset) or dataset.root


def _drawn(
    dataset: PicoDataset | CrowdDataset, kind: str, write: Callable[..., object], limit: int | None
) -> dict[str, Annotations]:
    try:
        with working(f"drawing the {kind} into {dataset.root}"):
            write(dataset.root, seed=dataset.seed, train=dataset.train, test=dataset.test)
    except OSError as error:
        raise UserError(f"{dataset.root}: the {kind} cannot be drawn there: {error}") from None
    return {split: replace(load_hico_det(dataset.root, split, limit=limit), name=kind) for split in ("train", "test")}


def image_source(
    dataset: Mapping[str, Annotations], memory: DigestMemory, rehash: bool = False, lenient: bool = False
) -> tuple[dict[str, Annotations], Source]:
    """The dataset's images whose size is the annotated one, and their rows.

    Digests are remembered by path, size, time and inode (``rehash`` forgets), and headers by digest.

    Raises:
        UserError: an image cannot be read, or is not of the size that its annotations state; ``lenient`` drops, counts
            and warns of the latter.
    """
    paths = list(chain.from_iterable(annotations.path for annotations in dataset.values()))
    digests = memory.digests(paths, rehash=rehash, derive=HEADER)
    ends = np.cumsum([0] + [len(annotations.path) for annotations in dataset.values()])
    kept: dict[str, Annotations] = {}
    named = []
    for (split, whole), start, end in zip(dataset.items(), ends[:-1], ends[1:], strict=True):
        kept[split], rows = _as_annotated(whole, digests[start:end], memory, lenient)
        named.append(rows)
    return kept, _source(kept, np.concatenate(named))


def _as_annotated(
    annotations: Annotations, digests: np.ndarray, memory: DigestMemory, lenient: bool
) -> tuple[Annotations, np.ndarray]:
    """The images that are of the size their annotations state, and the names of their rows, ``V16``.

    Upright files of a disk have been compared by their reader, which opens them all. Upright images are named by their bytes
    alone. Of images elsewhere nobody has opened one: their sizes are read here.
    """
    if annotations.frame == "upright" and not any(map(is_elsewhere, annotations.path[:1])):
        return annotations, digests
    lines = memory.derived_all(digests, HEADER.name, lambda i: _header(read_header(annotations.path[i])))
    told = np.array([(line or "0 0 1").split() for line in lines], np.int64).reshape(-1, 3)  # unreadable in every frame
    sizes = told[:, :2]
    if annotations.frame == "upright":
        sizes = np.array([Header(*each).size("upright") for each in told.tolist()], np.int64).reshape(-1, 2)
    stated = np.stack([annotations.width, annotations.height], 1)
    reject = Rejects(f"{annotations.name} {annotations.split}:", lenient)
    good = np.ones(len(told), bool)
    for i in np.flatnonzero((stated != sizes).any(1)).tolist():
        wrong = contradiction(annotations.path[i], stated[i].tolist(), sizes[i].tolist(), annotations.frame)
        if wrong is not None:
            reject(wrong)
            good[i] = False
    reject.warn()
    if not stated.all():
        width, height = np.where(stated == 0, sizes, stated).astype(np.int32).T
        annotations = replace(annotations, width=width, height=height)
    rows = digests.copy()
    if annotations.frame == "stored":
        for i in np.flatnonzero(told[:, 2] != 1).tolist():
            rows[i] = np.void(as_stored(digests[i].tobytes()))
    return (annotations, rows) if good.all() else (annotations.take(np.flatnonzero(good)), rows[good])


def _header(header: Header) -> str:
    return " ".join(map(str, header)) if header.width else ""


HEADER = Derivation(f"image header {HEADERS_VERSION}", lambda data: _header(read_header(io.BytesIO(data))))
"""An image's width, height and orientation, which are remembered with its digest."""


def _source(dataset: Mapping[str, Annotations], digests: np.ndarray) -> Source:
    """The rows of a dataset's images.

    Args:
        dataset: the annotations of each split.
        digests: ``V16 [N]`` names of the images in this order. Images of one name share a row.
    """
    paths = list(chain.from_iterable(annotations.path for annotations in dataset.values()))
    keys = list(map(str, chain.from_iterable(annotations.image_id.tolist() for annotations in dataset.values())))
    ends = np.cumsum([0] + [len(annotations.path) for annotations in dataset.values()])
    first, row_of_record = _first_of_each(digests)
    if len(first) < len(digests):
        digests, paths, keys = digests[first], [paths[i] for i in first], [keys[i] for i in first]
    splits = {name: row_of_record[start:end] for name, start, end in zip(dataset, ends[:-1], ends[1:], strict=True)}
    return Source(digests, paths, keys, splits)


def _first_of_each(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of N names ``V16`` are distinct.

    Returns:
        ``int64 [R]``, where each distinct name stands first, in this order; and ``int64 [N]``, which of the R each name is.
    """
    halves = np.sort(np.ascontiguousarray(digests).view("<u8")[::2])
    if (halves[1:] != halves[:-1]).all():  # the usual case: no two are equal, their first halves tell
        return np.arange(len(digests)), np.arange(len(digests))
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]


def text_source(texts: Sequence[str]) -> Source:
    """Rows of distinct texts, belonging to every split."""
    unique = list(dict.fromkeys(texts))
    ids = as_rows([digest_bytes(text.encode()) for text in unique])
    everything = np.arange(len(unique))
    return Source(ids, [f"text:{text}" for text in unique], unique, {"train": everything, "test": everything})
