"""A LINK student's batches: cached maps, pairs, annotations, and what its teachers said of just these pairs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.distillation import Taught
from hoi_distill.stages.student.methods.link.teaching import read_taught
from hoi_distill.stages.student.pairs.batches import Batch, PictureBatches, read_views
from hoi_distill.stages.student.pairs.instances import (
    Picture,
    PictureTable,
    gather,
    jittered,
    targets,
    with_annotations,
)
from hoi_distill.stages.student.pairs.regions import Regions

ORIGINAL = np.zeros(1, np.int64)


@dataclass
class TaughtBatch(Batch):
    """A batch with each teacher's answers."""

    taught: list[Taught]

    def to(self, device: torch.device) -> TaughtBatch:
        plain = Batch(self.rows, self.regions, self.target, self.labelled).to(device)
        return TaughtBatch(**vars(plain), taught=[one.to(device) for one in self.taught])


class LinkBatches(PictureBatches):
    """``batches[step]`` is the whole batch of that step (of one rank). No teacher's table is opened where no weight asks
    for it.

    Args:
        valid: bool ``[objects, H]``, the interactions that an object allows, unseen ones among them.
    """

    def __init__(
        self,
        config: LinkConfig,
        data: TrainingSet,
        pictures: PictureTable,
        valid: Tensor,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(config, pictures, data.labelled, config.kd.on and config.kd.unlabelled, rank, world)
        self.link, self.data, self.valid = config, data, valid
        self.seen = torch.from_numpy(data.seen)
        kd = config.kd
        self.teachers = list(zip_longest(kd.pairs if kd.reads_pairs else (), kd.maps if kd.reads_maps else ()))
        self.tables = ("features", *kd.tables)
        self.samples = {view: data.source.open(dict.fromkeys(self.tables, (view,))) for view in config.views}

    def channels(self) -> int:
        """C of the feature maps."""
        sample = read_views(self.samples, self.labelled_pool[:1], ORIGINAL)[0][2]
        return int(sample["features"][self.config.views[0]].shape[0])

    def __getitem__(self, step: int) -> TaughtBatch:
        rows = self.rows(step)
        views, draw = self.drawn(step, len(rows))
        read = read_views(self.samples, rows, views)
        places = np.array([place for place, _, _ in read], np.int64)
        rows, views = rows[places], views[places]
        cells = [{table: sample[table][view] for table in self.tables} for _, view, sample in read]
        pictures = [self.picture(row, draw) for row in rows.tolist()]
        maps = torch.from_numpy(np.stack([cell["features"] for cell in cells]))
        regions = gather(pictures, maps, self.mirrored(views))
        return TaughtBatch(
            torch.from_numpy(rows),
            regions,
            targets(pictures, self.valid.shape[1]),
            torch.from_numpy(self.labelled[rows]),
            self.taught(rows, cells, pictures, regions),
        )

    def picture(self, row: int, draw: np.random.Generator) -> Picture:
        """A row's boxes, moved if they are to be, with the annotations that fit them."""
        picture = self.pictures[row]
        if not self.link.box_jitter:
            return picture
        picture = jittered(picture, self.link.box_jitter, draw)
        if not self.labelled[row]:
            return picture
        dropped = self.data.dropped_pairs(row)
        return with_annotations(picture, *self.data.true_pairs(row), self.link.association_iou, dropped)

    def taught(
        self, rows: np.ndarray, cells: list[dict[str, Any]], pictures: list[Picture], regions: Regions
    ) -> list[Taught]:
        """Each teacher's answers, of which a picture may lack some."""
        names = [str(self.data.annotations.image_id[image]) for image in self.data.image[rows].tolist()]
        return [
            read_taught(
                None if pairs is None else [cell[pairs] for cell in cells],
                None if maps is None else [cell[maps] for cell in cells],
                pictures, regions, self.valid, self.seen, names=names, tables=(str(pairs), "detections"),
            )
            for pairs, maps in self.teachers
        ]  # fmt: skip
