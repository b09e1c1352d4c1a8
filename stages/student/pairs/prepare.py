"""Before the first step: what a training and a prediction read, and the pairs of every picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.instances import Picture, PictureTable, picture_of, with_annotations
from hoi_distill.stages.student.source import SampleSource, in_order
from hoi_distill.storage.errors import UserError


def picture_table(
    folder: Path, source: SampleSource, config: PairsConfig, labelled: TrainingSet | None = None
) -> PictureTable:
    """Filter every picture's detections and, in the labelled ones, associate the annotated pairs; once."""

    def pictures() -> Iterator[tuple[int, Picture]]:
        for sample in in_order(source.open({"detections": ("value",)})):
            row = sample["row"]
            picture = picture_of(sample["detections"]["value"], config)
            if labelled is not None and labelled.labelled[row]:
                dropped = labelled.dropped_pairs(row)
                picture = with_annotations(
                    picture, *labelled.true_pairs(row), iou=config.association_iou, dropped=dropped
                )
            yield row, picture

    return PictureTable.open_or_build(folder, len(source), pictures())


def training_pictures(folder: Path, data: TrainingSet, config: PairsConfig) -> PictureTable:
    """The picture table of a training set. Raises UserError when it holds nothing to train on."""
    pictures = picture_table(folder, data.source, config, data)
    if not (pictures.usable() & data.labelled).any():
        raise UserError("nothing to train on: no labelled picture has a person and another instance detected")
    return pictures
