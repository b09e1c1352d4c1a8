"""What a training in the CL-HOI style reads: image-level labels, embedded texts, and the batches of its two stages.

Both are pure functions of the step. Text embeddings do not change, so that a queue of earlier steps' texts is read anew
instead of being kept: nothing of it is state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.data.label_kinds import IGNORED, POSITIVE
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import kept, mapped, new_array
from hoi_distill.stages.student.methods.cl_hoi.losses import LabelBatch, same_sets
from hoi_distill.stages.student.pairs.batches import MapReader, PictureBatches, Pools, Share, take
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.stages.student.source import in_order


@dataclass(frozen=True)
class ImageLabels:
    """What is known of N pictures as wholes, memory-mapped.

    Attributes:
        target: float32 ``[N, H]`` in 0 to 1.
        kind: int8 ``[N, H]``, see :mod:`hoi_distill.stages.data.label_kinds`.
        weight: float32 ``[N, H]``.
        known: bool ``[N]``, rows of which anything is known; the others are all zeros.
    """

    target: np.ndarray
    kind: np.ndarray
    weight: np.ndarray
    known: np.ndarray

    @classmethod
    def open_or_build(
        cls, folder: Path, count: int, classes: int, rows: Iterable[tuple[int, Mapping[str, Any]]]
    ) -> ImageLabels:
        """Open ``folder``, or build it from (row, cell). A cell lists ``hoi`` (int ``[K]``) with ``target``, ``kind`` and
        ``weight`` (``[K]`` each); a class that it does not list is an ordinary negative."""
        dtypes = {"target": np.float32, "kind": np.int8, "weight": np.float32}

        def read(place: Path) -> ImageLabels:
            made = {name: mapped(place / f"{name}.npy", dtype, (count, classes)) for name, dtype in dtypes.items()}
            return ImageLabels(**made, known=mapped(place / "known.npy", bool, (count,)))

        def build(draft: Path) -> None:
            draft.mkdir()
            made = {name: new_array(draft / f"{name}.npy", dtype, (count, classes)) for name, dtype in dtypes.items()}
            known = np.zeros(count, bool)
            for row, cell in rows:
                known[row], made["weight"][row] = True, 1
                for name, table in made.items():
                    table[row, np.asarray(cell["hoi"], np.int64)] = cell[name]
            np.save(draft / "known.npy", known)
            for table in made.values():
                table.flush()

        return kept(folder, read, build)

    def of(self, rows: np.ndarray) -> LabelBatch:
        """The labels of some rows, int64 ``[B]``."""
        return LabelBatch(*(torch.from_numpy(each[rows]) for each in (self.target, self.kind, self.weight)))


def teacher_labels(folder: Path, data: TrainingSet) -> ImageLabels:
    """The teacher's labels, from the table of that role."""
    samples = in_order(data.source.open({"labels": ("value",)}))
    rows = ((sample["row"], sample["labels"]["value"]) for sample in samples)
    return ImageLabels.open_or_build(folder, len(data.source), len(data.vocabulary.hois), rows)


def annotated_labels(folder: Path, data: TrainingSet) -> ImageLabels:
    """What the annotations say of each picture as a whole (a control): nothing is ignored, and all weigh the same."""

    def cell(row: int) -> dict[str, np.ndarray]:
        present = data.present(row)
        return {"hoi": np.arange(len(present)), "target": present, "kind": present, "weight": np.ones(len(present))}

    rows = ((row, cell(row)) for row in range(len(data.source)))
    return ImageLabels.open_or_build(folder, len(data.source), len(data.vocabulary.hois), rows)


@dataclass(frozen=True)
class Texts:
    """The embedded sentences of N pictures' texts, memory-mapped.

    Attributes:
        sentences: float16 ``[J, T]`` of length 1, picture by picture; offsets: int64 ``[N + 1]``.
    """

    sentences: np.ndarray
    offsets: np.ndarray

    @classmethod
    def open_or_build(cls, folder: Path, data: TrainingSet) -> Texts:
        """From the table of the role ``context``, in ``folder`` from then on."""

        def read(place: Path) -> Texts:
            with np.load(place / "index.npz") as index:
                offsets, width = index["offsets"], int(index["width"])
            if not width:
                return Texts(np.empty((0, 1), np.float16), offsets)
            texts = Texts(np.memmap(place / "sentences", "<f2", "r").reshape(-1, width), offsets)
            if (len(offsets), len(texts.sentences)) != (len(data.source) + 1, offsets[-1]):
                raise ValueError(f"{len(texts.sentences)} sentences of {len(offsets) - 1} pictures")
            return texts

        def build(draft: Path) -> None:
            draft.mkdir()
            counts, width = np.zeros(len(data.source) + 1, np.int64), 0
            with open(draft / "sentences", "wb") as file:
                for sample in in_order(data.source.open({"context": ("value",)})):
                    said = np.asarray(sample["context"]["value"], "<f2")
                    if len(said):
                        counts[sample["row"] + 1], width = said.shape
                        file.write(said.tobytes())
            np.savez(draft / "index.npz", offsets=np.cumsum(counts), width=width)

        return kept(folder, read, build)

    @property
    def width(self) -> int:
        """T."""
        return int(self.sentences.shape[1])

    def said(self) -> np.ndarray:
        """bool ``[N]``: whether there is a text."""
        return np.diff(self.offsets) > 0

    def of(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """The sentences of some rows, float32 ``[J', T]``, and int64 ``[J']`` the place of each one's row."""
        parts = [self.sentences[self.offsets[row] : self.offsets[row + 1]] for row in rows.tolist()]
        counts = [len(part) for part in parts]
        return torch.from_numpy(np.concatenate(parts).astype(np.float32)), torch.arange(len(rows)).repeat_interleave(
            torch.tensor(counts)
        )


@dataclass
class ContextBatch:
    """One step of stage 1: B whole pictures, and N texts of which the first B are theirs.

    Attributes:
        rows: int64 ``[B]`` rows of the training set.
        regions: the pictures as the network reads them, see :func:`whole_pictures`.
        sentences: float32 ``[J, T]``.
        text: int64 ``[J]``, the text of each sentence.
        same: bool ``[B, N]``, see :func:`~.losses.same_sets`.
    """

    rows: Tensor
    regions: Regions
    sentences: Tensor
    text: Tensor
    same: Tensor

    def to(self, device: torch.device) -> ContextBatch:
        """The same on another device."""
        return ContextBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


def whole_pictures(maps: Tensor) -> Regions:
    """Pictures without boxes, as the training loop knows them: each is one instance, paired with itself."""
    count = torch.arange(len(maps))
    boxes, ones = torch.zeros(len(maps), 4), torch.ones(len(maps), 2)
    return Regions(maps, ones, count, boxes, torch.zeros_like(count), ones[:, 0], torch.stack((count, count), 1))


class ContextBatches(PictureBatches[ContextBatch]):
    """Stage 1's batches.

    Args:
        config: stage 1's steps.
        pool: int64, rising, rows with a text that are trained on.
        maps: reads feature maps.
        texts: the texts of all pictures.
        labels: the labels of all pictures.
        queue: see :class:`~.config.ContextConfig`.
        share: this process's share of every batch.
    """

    def __init__(
        self,
        config: PairsConfig,
        pool: np.ndarray,
        maps: MapReader,
        *,
        texts: Texts,
        labels: ImageLabels,
        queue: int,
        share: Share = Share(),  # noqa: B008  immutable
    ) -> None:
        super().__init__(config, Pools(np.empty(0, np.int64), pool), share)
        self.maps, self.texts, self.labels, self.queue = maps, texts, labels, queue

    @override
    def __getitem__(self, step: int) -> ContextBatch:
        own = self.rows(step)
        views, _ = self.drawn(step, len(own))
        places, maps = self.maps(own, views)
        own = own[places]
        rows = np.concatenate((own, self.earlier(step, own)))
        sentences, text = self.texts.of(rows)
        positive = torch.from_numpy(self.labels.kind[rows] == POSITIVE)
        same = same_sets(positive[: len(own)], positive)
        # an epoch's end may bring a picture twice into a batch
        same |= torch.from_numpy(own[:, None] == rows[None])
        return ContextBatch(torch.from_numpy(own), whole_pictures(maps), sentences, text, same)

    def earlier(self, step: int, own: np.ndarray) -> np.ndarray:
        """int64 rows of up to ``queue`` pictures of the steps before, each once, none of this step's."""
        size = self.config.unlabelled_per_step
        steps = range(max(step - -(-self.queue // size), 0), step)
        seen = [take(self.pools.others, before, size, 2 * self.config.seed + 1) for before in steps]
        rows = np.unique(np.concatenate([np.empty(0, np.int64), *seen]))
        return rows[~np.isin(rows, own)][: self.queue]


def copied(regions: Regions, kind: Tensor) -> Tensor:
    """float32 ``[P, H]``: each picture's labels as those of all its pairs; NaN where ignored. The caller reads only the
    classes that a pair's object allows."""
    known = kind.float().masked_fill(kind == IGNORED, torch.nan)
    return known[regions.pair_picture]


def annotated(data: TrainingSet) -> TrainingSet:
    """The training set with every picture's annotated pairs (a control)."""
    return replace(data, labelled=np.ones(len(data.source), bool))
