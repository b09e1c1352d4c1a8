"""A LINK student's batches: boxes may move at every step."""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, Share, TableMaps
from hoi_distill.stages.student.pairs.instances import ImageInstances, ImageTable, jittered, with_annotations
from hoi_distill.stages.student.pairs.terms import Supervision


class LinkBatches(PairBatches):
    """Batches of cached feature maps, pairs and the targets of the terms.

    Args:
        config: the method's parameters.
        data: the training set.
        images: the instances and pairs of all images.
        supervision: what is learnt from.
        share: this process's share of every batch.
    """

    def __init__(
        self,
        config: LinkConfig,
        data: TrainingSet,
        images: ImageTable,
        supervision: Supervision,
        share: Share = Share(),  # noqa: B008  immutable
    ) -> None:
        pools = Pools.of(images, data.labelled, unlabelled=config.uses_unlabelled)
        maps = TableMaps.of(data.source, config.views)
        super().__init__(config, pools, images, maps, supervision, source=data.source, share=share)
        self.link, self.data = config, data

    @override
    def image(self, row: int, draw: np.random.Generator) -> ImageInstances:
        """A row's boxes, moved if they are to be, with the annotations that fit them."""
        image = self.images[row]
        if not self.link.box_jitter:
            return image
        image = jittered(image, self.link.box_jitter, draw)
        if not self.data.labelled[row]:
            return image
        dropped = self.data.dropped_pairs(row)
        return with_annotations(image, *self.data.true_pairs(row), iou=self.link.association_iou, dropped=dropped)
