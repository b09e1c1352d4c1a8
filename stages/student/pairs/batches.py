"""The batch of every training step, a pure function of the step: a resumed run sees what an undisturbed one would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.instances import PictureTable
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.stages.student.source import Sample, Samples, Source
from hoi_distill.stages.student.training.loop import BatchSource
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.sampling import epoch_order

MapReader = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, Tensor]]
"""``(rows int64 [B], views int64 [B]) -> (places int64 [b], maps [b, C, h, w])``: the places in the batch, rising,
of the rows that could be read, and their maps."""


@dataclass
class Batch:
    """One step's pictures: B of them, with I instances and P pairs.

    Attributes:
        rows: int64 ``[B]`` rows of the training set.
        regions: what the network reads.
        target: float ``[P, H]`` annotated interactions, NaN where neither yes nor no counts; only those of ``labelled``
            pictures (bool ``[B]``) count.
    """

    rows: Tensor
    regions: Regions
    target: Tensor
    labelled: Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))


def take(pool: np.ndarray, step: int, size: int, seed: int) -> np.ndarray:
    """``size`` members of ``pool`` for a step. The pool is gone through in epochs, each in its own order; a batch may
    reach over the end of one into the next, so that every epoch is exact. int64 ``[size]``, empty for an empty pool."""
    if len(pool) == 0 or size == 0:
        return np.empty(0, np.int64)
    position = np.arange(step * size, (step + 1) * size)
    epochs = position // len(pool)
    orders = {epoch: epoch_order(seed, int(epoch), len(pool)) for epoch in np.unique(epochs)}
    return np.array([pool[orders[epoch][at]] for epoch, at in zip(epochs, position % len(pool), strict=True)], np.int64)


class PictureBatches(BatchSource[Batch]):
    """Which pictures and views each step looks at (of one rank).

    Args:
        labelled: bool ``[N]``; unlabelled: whether the other pictures are looked at as well.

    Raises:
        UserError: there are too few pictures a step for ``world`` processes.
    """

    def __init__(
        self,
        config: PairsConfig,
        pictures: PictureTable,
        labelled: np.ndarray,
        unlabelled: bool,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        usable = pictures.usable()
        self.config, self.pictures, self.labelled, self.rank, self.world = config, pictures, labelled, rank, world
        self.labelled_pool = np.flatnonzero(usable & labelled)
        self.unlabelled_pool = np.flatnonzero(usable & ~labelled) if unlabelled else np.empty(0, np.int64)
        labelled_ones = config.labelled_per_step if len(self.labelled_pool) else 0
        others = config.unlabelled_per_step if len(self.unlabelled_pool) else 0
        if max(labelled_ones, others) < world:
            raise UserError(
                f"student.labelled_per_step: {labelled_ones} labelled and {others} other pictures a step leave some of {world} "
                "processes without any; raise it, or start fewer"
            )

    def __len__(self) -> int:
        return self.config.steps

    def rows(self, step: int) -> np.ndarray:
        """int64 ``[B]``: labelled pictures, then unlabelled ones."""
        config = self.config
        return np.concatenate(
            (
                take(self.labelled_pool, step, config.labelled_per_step, 2 * config.seed)[self.rank :: self.world],
                take(self.unlabelled_pool, step, config.unlabelled_per_step, 2 * config.seed + 1)[
                    self.rank :: self.world
                ],
            )
        )

    def epochs(self, steps: int) -> float:
        """How often so many steps have gone through the labelled pictures, or where there are none, the others."""
        if len(self.labelled_pool):
            return steps * self.config.labelled_per_step / len(self.labelled_pool)
        return steps * self.config.unlabelled_per_step / max(len(self.unlabelled_pool), 1)

    def drawn(self, step: int, count: int) -> tuple[np.ndarray, np.random.Generator]:
        """int64 ``[count]`` views, and what the step may draw more numbers from."""
        draw = np.random.default_rng([self.config.seed, step, self.rank])
        return draw.integers(0, len(self.config.views), count), draw

    def mirrored(self, views: np.ndarray) -> np.ndarray:
        """bool ``[B]``."""
        return np.array(self.config.views)[views] == "flip"


def read_views(views: Mapping[str, Samples], rows: np.ndarray, chosen: np.ndarray) -> list[tuple[int, str, Sample]]:
    """(place, view, sample) of the rows (int64 ``[B]``) that could be read, places in the batch rising. Of each row only the
    view that is ``chosen`` for it (int64 ``[B]``) is read.

    Args:
        views: for each view its samples, opened with that one column.
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
    def of(cls, source: Source, views: Sequence[str]) -> TableMaps:
        """Those of a student's ``features``."""
        return cls({view: source.open({"features": (view,)}) for view in views})

    def __call__(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, Tensor]:
        read = read_views(self.views, rows, views)
        maps = np.stack([sample["features"][view] for _, view, sample in read])
        return np.array([place for place, _, _ in read], np.int64), torch.from_numpy(maps)
