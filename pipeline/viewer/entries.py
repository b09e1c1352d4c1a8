"""The images of a dataset as columns in memory, and their annotated pairs: what a query goes through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Entries:
    """E images, split by split, each with its P annotated pairs. An image that two splits have is two entries.

    Attributes:
        splits: the S names of the splits.
        split: ``int8 [E]``, index into ``splits``.
        record: ``int64 [E]``, the image's first record in its split.
        row: ``int64 [E]``, the image's row of the source.
        row_ids: ``V16 [E]``, the digests that name the rows.
        names: E names, as text that every browser shows.
        pair_entry: ``int64 [P]``, the entry of each annotated pair, not falling within a split.
        pair_row: ``int64 [P]``, the pair's row in the annotations of its split.
        verb: ``int16 [P]``.
        object: ``int16 [P]``, -1 for a verb without an object.
        hoi: ``int16 [P]``, -1 where verb and object are no class together.
        vocabulary: the dataset's.
        annotations: of each split.
    """

    splits: tuple[str, ...]
    split: np.ndarray
    record: np.ndarray
    row: np.ndarray
    row_ids: np.ndarray
    names: pa.Array
    pair_entry: np.ndarray
    pair_row: np.ndarray
    verb: np.ndarray
    object: np.ndarray
    hoi: np.ndarray
    vocabulary: Vocabulary
    annotations: Sequence[Annotations]

    def __len__(self) -> int:
        return len(self.row)

    def find(self, split: str, digest: str) -> int | None:
        """The entry of an image by its split and the 32 hex digits of its row; None where there is none."""
        try:
            wanted = bytes.fromhex(digest)
        except ValueError:
            return None
        if split not in self.splits or len(wanted) != self.row_ids.dtype.itemsize:
            return None
        halves = np.ascontiguousarray(self.row_ids).view("<u8").reshape(-1, 2)  # whole ids are slow to compare
        first, second = np.frombuffer(wanted, "<u8").tolist()
        same = (halves[:, 0] == first) & (halves[:, 1] == second) & (self.split == self.splits.index(split))
        found = np.flatnonzero(same)
        return int(found[0]) if len(found) else None

    def address(self, entry: int) -> str:
        """The end of an image's address: its split and its row."""
        return f"{self.splits[self.split[entry]]}/{self.row_ids[entry].tobytes().hex()}"

    def of_records(self, split: str) -> np.ndarray:
        """``int64 [N]``: the entry of each record of a split, -1 for a record whose bytes another record has."""
        number = self.splits.index(split)
        where = np.full(len(self.annotations[number]), -1, np.int64)
        here = np.flatnonzero(self.split == number)
        where[self.record[here]] = here
        return where

    def pairs(self, entry: int) -> np.ndarray:
        """``int64``: the annotated pairs of one entry."""
        return np.flatnonzero(self.pair_entry == entry)

    def of(self, entry: int) -> Annotations:
        """The annotations of the entry's split."""
        return self.annotations[self.split[entry]]

    @property
    def object_classes(self) -> np.ndarray:
        """``int64 [H]``: the object of each interaction."""
        return self.vocabulary.hois[:, 1].astype(np.int64)


def entries_of(workspace: Workspace) -> Entries:
    """All images of a workspace, in the order of its splits and records."""
    source, dataset = workspace.images, workspace.dataset
    splits = tuple(dataset)
    records = [source.distinct_records(split) for split in splits]
    rows = [source.splits[split][kept] for split, kept in zip(splits, records, strict=True)]
    names: list[str] = []
    pairs: dict[str, list[np.ndarray]] = {key: [] for key in ("entry", "row", "verb", "object", "hoi")}
    start = 0
    for split, kept in zip(splits, records, strict=True):
        annotations = dataset[split]
        entry = np.full(len(annotations), -1, np.int64)
        entry[kept] = start + np.arange(len(kept))
        of_pair = entry[annotations.pair_image()]
        shown = np.flatnonzero(of_pair >= 0)
        pairs["entry"].append(of_pair[shown])
        pairs["row"].append(shown)
        for key in ("verb", "object", "hoi"):
            pairs[key].append(getattr(annotations, key)[shown])
        names += [as_text(str(name)) for name in annotations.image_id[kept].tolist()]
        start += len(kept)
    joined = {key: np.concatenate(parts) for key, parts in pairs.items()}
    row = np.concatenate(rows)
    return Entries(
        splits=splits,
        split=np.repeat(np.arange(len(splits), dtype=np.int8), [len(kept) for kept in records]),
        record=np.concatenate(records),
        row=row,
        row_ids=source.ids[row],
        names=pa.array(names, pa.string()),
        pair_entry=joined["entry"],
        pair_row=joined["row"],
        verb=joined["verb"],
        object=joined["object"],
        hoi=joined["hoi"],
        vocabulary=workspace.vocabulary,
        annotations=[dataset[split] for split in splits],
    )


def as_text(name: str) -> str:
    """A name that can be written as UTF-8: bytes of a file's name that are none become ``\\udcf1``."""
    return name.encode("utf-8", "backslashreplace").decode()
