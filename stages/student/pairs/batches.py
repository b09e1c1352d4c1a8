"""The batch of every training step, a pure function of the step: a resumed run sees what an undisturbed one would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.instances import ImageInstances, ImageTable, gather
from hoi_distill.stages.student.pairs.regions import Candidates, Regions, candidates_of
from hoi_distill.stages.student.pairs.terms import BatchImages, Supervision, Term
from hoi_distill.stages.student.source import Sample, Samples, SampleSource
from hoi_distill.stages.student.training.loop import BatchSource
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.sampling import epoch_order

MapReader = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Tensor]]
"""``(rows int64 [B], views int64 [B]) -> (places int64 [b], maps [b, C, h, w])``: the places in the batch, rising,
of the rows that could be read, and their maps."""


STEPS_AHEAD = 16
"""Steps whose shards come from an object store ahead of their turn."""


@dataclass
class PairBatch:
    """One step's B images.

    Attributes:
        rows: int64 ``[B]`` rows of the training set.
        regions: what the network reads.
        candidates: what is learnt on.
        targets: the targets of each supervision term, by its name.
    """

    rows: Tensor
    regions: Regions
    candidates: Candidates
    targets: dict[str, Any]


class Share(NamedTuple):
    """This process's share of every batch.

    Attributes:
        rank: number of the process, from 0.
        world: how many processes share a batch.
    """

    rank: int = 0
    world: int = 1


class Pools(NamedTuple):
    """The images that steps draw from.

    Attributes:
        labelled: int64, rising, rows of labelled images.
        others: int64, rising, rows of images without labels that are drawn from.
    """

    labelled: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, images: ImageTable, labelled: np.ndarray, *, unlabelled: bool) -> Pools:
        """Those with a pair.

        Args:
            images: the images.
            labelled: bool ``[N]``.
            unlabelled: whether images without labels are drawn from as well.
        """
        usable = images.usable()
        others = np.flatnonzero(usable & ~labelled) if unlabelled else np.empty(0, np.int64)
        return cls(np.flatnonzero(usable & labelled), others)


def take(pool: np.ndarray, step: int, size: int, seed: int, window: int = 0) -> np.ndarray:
    """``size`` members of ``pool`` for a step. The pool is gone through in epochs, each in its own order
    (:func:`hoi_distill.storage.sampling.epoch_order`); a batch may reach over the end of one into the next, so that every epoch
    is exact. int64 ``[size]``, empty for an empty pool."""
    if len(pool) == 0 or size == 0:
        return np.empty(0, np.int64)
    position = np.arange(step * size, (step + 1) * size)
    epochs = position // len(pool)
    orders = {epoch: epoch_order(seed, int(epoch), len(pool), window=window) for epoch in np.unique(epochs)}
    return np.array([pool[orders[epoch][at]] for epoch, at in zip(epochs, position % len(pool), strict=True)], np.int64)


BatchT_co = TypeVar("BatchT_co", covariant=True)


class ImageBatches(BatchSource[BatchT_co]):
    """The images and views of each step.

    Args:
        config: says how many steps there are, and how many images a step has.
        pools: the images to draw from.
        share: this process's share of every batch.

    Raises:
        UserError: there are too few images a step for the processes.
    """

    def __init__(self, config: PairsConfig, pools: Pools, share: Share = Share()) -> None:  # noqa: B008  immutable
        self.config, self.pools, self.share = config, pools, share
        labelled = config.labelled_per_step if len(pools.labelled) else 0
        others = config.unlabelled_per_step if len(pools.others) else 0
        if max(labelled, others) < share.world:
            raise UserError(
                f"student.labelled_per_step: {labelled} labelled and {others} other images a step leave some of {share.world} "
                "processes without any; raise it, or start fewer"
            )

    @override
    def __len__(self) -> int:
        return self.config.steps

    def rows(self, step: int) -> np.ndarray:
        """int64 ``[B]``: labelled images, then unlabelled ones."""
        config, (rank, world) = self.config, self.share
        window = config.shuffle_window
        labelled = take(self.pools.labelled, step, config.labelled_per_step, 2 * config.seed, window)
        others = take(self.pools.others, step, config.unlabelled_per_step, 2 * config.seed + 1, window)
        return np.concatenate((labelled[rank::world], others[rank::world]))

    def later_rows(self, step: int) -> np.ndarray:
        """int64, what the next :data:`STEPS_AHEAD` steps read, the next one's first."""
        last = min(step + 1 + STEPS_AHEAD, len(self))
        return np.concatenate([np.empty(0, np.int64), *(self.rows(later) for later in range(step + 1, last))])

    @override
    def epochs(self, steps: int) -> float:
        """How often so many steps go through the labelled images, or where there are none, through the others."""
        if len(self.pools.labelled):
            return steps * self.config.labelled_per_step / len(self.pools.labelled)
        return steps * self.config.unlabelled_per_step / max(len(self.pools.others), 1)

    def drawn(self, step: int, count: int) -> tuple[np.ndarray, np.random.Generator]:
        """int64 ``[count]`` views, and what the step may draw more numbers from."""
        draw = np.random.default_rng([self.config.seed, step, self.share.rank])
        return draw.integers(0, len(self.config.views), count), draw

    def mirrored(self, views: np.ndarray) -> np.ndarray:
        """bool ``[B]``: whether a view is the mirrored image."""
        return np.array(self.config.views)[views] == "flip"


class PairBatches(ImageBatches[PairBatch]):
    """Batches of images, their pairs and the targets of any supervision terms.

    Args:
        config: see :class:`ImageBatches`.
        pools: see :class:`ImageBatches`.
        images: the instances and pairs of all images.
        maps: reads feature maps.
        supervision: what is learnt from.
        source: the tables that terms read by view; None where no term does.
        share: see :class:`ImageBatches`.
    """

    def __init__(
        self,
        config: PairsConfig,
        pools: Pools,
        images: ImageTable,
        maps: MapReader,
        supervision: Supervision,
        *,
        source: SampleSource | None = None,
        share: Share = Share(),  # noqa: B008  immutable
    ) -> None:
        super().__init__(config, pools, share)
        self.images, self.maps, self.terms, self.valid = images, maps, supervision.terms, supervision.valid
        tables = tuple(table for term in self.terms for table in term.view_tables)
        self.samples: dict[str, Samples] = {}
        self.tables, self.read = tables, rows_read(self.terms)
        if tables:
            assert source is not None
            self.samples = {view: source.open(dict.fromkeys(tables, (view,))) for view in config.views}
        self._streams = [*self.samples.values(), *samples_of(maps)]

    def channels(self) -> int:
        """C of the feature maps."""
        first = next(pool[:1] for pool in self.pools if len(pool))
        return int(self.maps(first, np.zeros(1, np.int64))[1].shape[1])

    def image(self, row: int, draw: np.random.Generator) -> ImageInstances:  # noqa: ARG002 - a default that draws nothing
        """A row's instances, pairs and annotations. ``draw`` gives the random numbers of the step."""
        return self.images[row]

    def fetch_ahead(self, step: int) -> None:
        """Let the shards that later steps need come from an object store while this one is read."""
        if streams := [samples for samples in self._streams if samples.fetches]:
            rows = self.later_rows(step)
            asked = rows if self.read is None else rows[self.read[rows]]
            for samples in streams:
                of_terms = any(samples is each for each in self.samples.values())
                samples.fetch_ahead((asked if of_terms else rows).tolist())

    @override
    def __getitem__(self, step: int) -> PairBatch:
        rows = self.rows(step)
        self.fetch_ahead(step)
        views, draw = self.drawn(step, len(rows))
        cells: list[dict[str, Any]] = [dict.fromkeys(self.tables) for _ in rows]
        if self.samples:
            asked = np.ones(len(rows), bool) if self.read is None else self.read[rows]
            kept = ~asked
            for place, view, sample in read_views(self.samples, rows, np.where(asked, views, -1)):
                cells[place], kept[place] = {table: sample[table][view] for table in self.tables}, True
            rows, views, cells = rows[kept], views[kept], list(compress(cells, kept))
        places, maps = self.maps(rows, views)
        rows, mirrored = rows[places], self.mirrored(views[places])
        instances = [self.image(row, draw) for row in rows.tolist()]
        regions = gather(instances, maps, mirrored)
        candidates = candidates_of(regions, self.valid)
        batch = BatchImages(rows, instances, regions, candidates, [cells[place] for place in places])
        targets = {term.name: term.targets(batch) for term in self.terms}
        return PairBatch(torch.from_numpy(rows), regions, candidates, targets)


def rows_read(terms: Sequence[Term]) -> np.ndarray | None:
    """bool ``[N]``, the rows of which some term reads cells by view; None: all."""
    reading = [term for term in terms if term.view_tables]
    reads = [term.view_rows for term in reading if term.view_rows is not None]
    return np.logical_or.reduce(reads) if reads and len(reads) == len(reading) else None


def read_views(views: Mapping[str, Samples], rows: np.ndarray, chosen: np.ndarray) -> list[tuple[int, str, Sample]]:
    """(place, view, sample) of the rows that could be read, places in the batch rising.

    Args:
        views: for each view its samples, opened with that one column.
        rows: int64 ``[B]``.
        chosen: int64 ``[B]``, the number of the one view that is read of each row; -1: none.
    """
    read: list[tuple[int, str, Sample]] = []
    for number, (view, samples) in enumerate(views.items()):
        place_of: dict[int, list[int]] = {}
        for place in np.flatnonzero(chosen == number).tolist():
            place_of.setdefault(int(rows[place]), []).append(place)
        if place_of:
            for sample in samples.__getitems__(list(place_of)):
                read += [(place, view, sample) for place in place_of[sample["row"]]]
    return sorted(read, key=lambda item: item[0])


class TableMaps:
    """Feature maps from the ``features`` table: a :data:`MapReader`.

    Args:
        views: see :func:`read_views`.
    """

    def __init__(self, views: dict[str, Samples]) -> None:
        self.views = views

    @classmethod
    def of(cls, source: SampleSource, views: Sequence[str]) -> TableMaps:
        """Those of a student's ``features``."""
        return cls({view: source.open({"features": (view,)}) for view in views})

    def __call__(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """See :data:`MapReader`."""
        read = read_views(self.views, rows, views)
        maps = np.stack([sample["features"][view] for _, view, sample in read])
        return np.array([place for place, _, _ in read], np.int64), torch.from_numpy(maps)


def samples_of(maps: MapReader) -> list[Samples]:
    """What a reader of maps reads of tables."""
    return list(maps.views.values()) if isinstance(maps, TableMaps) else []
