"""A LINK student's batches: boxes may move at every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, Share, TableMaps
from hoi_distill.stages.student.pairs.instances import Picture, PictureTable, jittered, with_annotations
from hoi_distill.stages.student.pairs.terms import Term


class LinkBatches(PairBatches):
    """Batches of cached feature maps, pairs and the targets of the terms.

    Args:
        config: the method's parameters.
        data: the training set.
        pictures: the instances and pairs of all pictures.
        terms: the supervision terms.
        share: this process's share of every batch.
    """

    def __init__(
        self,
        config: LinkConfig,
        data: TrainingSet,
        pictures: PictureTable,
        terms: Sequence[Term],
        share: Share = Share(),  # noqa: B008  immutable
    ) -> None:
        pools = Pools.of(pictures, data.labelled, unlabelled=config.kd.on and config.kd.unlabelled)
        maps = TableMaps.of(data.source, config.views)
        super().__init__(config, pools, pictures, maps, terms, source=data.source, share=share)
        self.link, self.data = config, data

    @override
    def picture(self, row: int, draw: np.random.Generator) -> Picture:
        """A row's boxes, moved if they are to be, with the annotations that fit them."""
        picture = self.pictures[row]
        if not self.link.box_jitter:
            return picture
        picture = jittered(picture, self.link.box_jitter, draw)
        if not self.data.labelled[row]:
            return picture
        dropped = self.data.dropped_pairs(row)
        return with_annotations(picture, *self.data.true_pairs(row), iou=self.link.association_iou, dropped=dropped)
