"""What stage 1 reads: embedded texts and its batches, pure functions of the step.

Text embeddings do not change. A queue of earlier steps' texts is therefore read anew and is no state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.data.label_kinds import POSITIVE
from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import kept
from hoi_distill.stages.student.methods.cl_hoi.losses import same_sets
from hoi_distill.stages.student.pairs.batches import ImageBatches, MapReader, Pools, Share, samples_of, take
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.stages.student.pairs.supervision.image_labels import ImageLabelTable
from hoi_distill.stages.student.source import in_order


@dataclass(frozen=True)
class Texts:
    """The embedded sentences of N images' texts, memory-mapped.

    Attributes:
        sentences: float16 ``[J, T]`` of length 1, image by image.
        offsets: int64 ``[N + 1]``; the sentences of row n are those from ``offsets[n]`` to ``offsets[n + 1]``.
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
                raise ValueError(f"{len(texts.sentences)} sentences of {len(offsets) - 1} images")
            return texts

        def build(draft: Path) -> None:
            draft.mkdir()
            counts, width = np.zeros(len(data.source) + 1, np.int64), 0
            with open(draft / "sentences", "wb") as file:
                for sample in in_order(data.source.open({"context": ("value",)})):
                    sentences = np.asarray(sample["context"]["value"], "<f2")
                    if len(sentences):
                        counts[sample["row"] + 1], width = sentences.shape
                        file.write(sentences.tobytes())
            np.savez(draft / "index.npz", offsets=np.cumsum(counts), width=width)

        return kept(folder, read, build)

    @property
    def width(self) -> int:
        """T."""
        return int(self.sentences.shape[1])

    def present(self) -> np.ndarray:
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
    """One step of stage 1: B whole images, and N texts of which the first B are theirs.

    Attributes:
        rows: int64 ``[B]`` rows of the training set.
        regions: the images as the network reads them, see :func:`whole_images`.
        sentences: float32 ``[J, T]``.
        text: int64 ``[J]``, the text of each sentence.
        same: bool ``[B, N]``, see :func:`~.losses.same_sets`.
    """

    rows: Tensor
    regions: Regions
    sentences: Tensor
    text: Tensor
    same: Tensor


def whole_images(maps: Tensor) -> Regions:
    """Images without boxes, as the training loop knows them: each is one instance, paired with itself."""
    count = torch.arange(len(maps))
    boxes, ones = torch.zeros(len(maps), 4), torch.ones(len(maps), 2)
    return Regions(maps, ones, count, boxes, torch.zeros_like(count), ones[:, 0], torch.stack((count, count), 1))


class ContextBatches(ImageBatches[ContextBatch]):
    """Stage 1's batches.

    Args:
        config: stage 1's steps.
        pool: int64, rising, rows with a text that are trained on.
        maps: reads feature maps.
        texts: the texts of all images.
        labels: the labels of all images.
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
        labels: ImageLabelTable,
        queue: int,
        share: Share = Share(),  # noqa: B008  immutable
    ) -> None:
        super().__init__(config, Pools(np.empty(0, np.int64), pool), share)
        self.maps, self.texts, self.labels, self.queue = maps, texts, labels, queue

    @override
    def __getitem__(self, step: int) -> ContextBatch:
        own = self.rows(step)
        if streams := [samples for samples in samples_of(self.maps) if samples.fetches]:
            later = self.later_rows(step).tolist()
            for samples in streams:
                samples.fetch_ahead(later)
        views, _ = self.drawn(step, len(own))
        places, maps = self.maps(own, views)
        own = own[places]
        rows = np.concatenate((own, self.earlier(step, own)))
        sentences, text = self.texts.of(rows)
        positive = torch.from_numpy(self.labels.kind[rows] == POSITIVE)
        same = same_sets(positive[: len(own)], positive)
        # an epoch's end may bring an image twice into a batch
        same |= torch.from_numpy(own[:, None] == rows[None])
        return ContextBatch(torch.from_numpy(own), whole_images(maps), sentences, text, same)

    def earlier(self, step: int, own: np.ndarray) -> np.ndarray:
        """int64 rows of up to ``queue`` images of the steps before, each once, none of this step's."""
        size, window = self.config.unlabelled_per_step, self.config.shuffle_window
        steps = range(max(step - -(-self.queue // size), 0), step)
        seen = [take(self.pools.others, before, size, 2 * self.config.seed + 1, window) for before in steps]
        rows = np.unique(np.concatenate([np.empty(0, np.int64), *seen]))
        return rows[~np.isin(rows, own)][: self.queue]


def annotated(data: TrainingSet) -> TrainingSet:
    """The training set with every image's annotated pairs (a control)."""
    return replace(data, labelled=np.ones(len(data.source), bool))
