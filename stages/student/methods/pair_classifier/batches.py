"""A pair classifier's batches: pictures with pairs, feature maps and soft labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.soft_labels import SoftLabels
from hoi_distill.stages.student.pairs.batches import Batch, MapReader, PictureBatches
from hoi_distill.stages.student.pairs.instances import PictureTable, gather, targets


@dataclass
class SoftBatch(Batch):
    """A batch with soft labels: float ``[B, H]`` probability that the picture shows a class; NaN where nothing is to be
    distilled."""

    soft: Tensor


class StepBatches(PictureBatches):
    """``batches[step]`` is the whole batch of that step (of one rank).

    Args:
        labelled: bool ``[N]``; soft: the soft labels to distil, or None; interactions: H.
    """

    def __init__(
        self,
        config: PairClassifierConfig,
        pictures: PictureTable,
        maps: MapReader,
        labelled: np.ndarray,
        soft: SoftLabels | None,
        interactions: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        unlabelled = config.itm_on in ("unlabelled", "both") and soft is not None
        super().__init__(config, pictures, labelled, unlabelled, rank, world)
        self.maps, self.soft, self.interactions = maps, soft, interactions

    def __getitem__(self, step: int) -> SoftBatch:
        rows = self.rows(step)
        views, _ = self.drawn(step, len(rows))
        places, maps = self.maps(rows, views)
        rows, mirrored = rows[places], self.mirrored(views[places])
        pictures = [self.pictures[row] for row in rows.tolist()]
        soft = np.full((len(rows), self.interactions), np.nan, np.float32) if self.soft is None else self.soft(rows)
        return SoftBatch(
            torch.from_numpy(rows),
            gather(pictures, maps, mirrored),
            targets(pictures, self.interactions),
            torch.from_numpy(self.labelled[rows]),
            torch.from_numpy(soft),
        )
