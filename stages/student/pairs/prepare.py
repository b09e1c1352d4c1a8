"""Before the first step: what a training and a prediction read, and the pairs of every image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.instances import ImageInstances, ImageTable, image_of, with_annotations
from hoi_distill.stages.student.source import SampleSource, in_order
from hoi_distill.storage.errors import UserError


def image_table(
    folder: Path | None, source: SampleSource, config: PairsConfig, labelled: TrainingSet | None = None
) -> ImageTable:
    """Filter every image's detections and, in the labelled ones, associate the annotated pairs; once, kept in ``folder``, or
    without one in memory."""

    def images() -> Iterator[tuple[int, ImageInstances]]:
        for sample in in_order(source.open({"detections": ("value",)})):
            row = sample["row"]
            image = image_of(sample["detections"]["value"], config)
            if labelled is not None and labelled.labelled[row]:
                dropped = labelled.dropped_pairs(row)
                image = with_annotations(image, *labelled.true_pairs(row), iou=config.association_iou, dropped=dropped)
            yield row, image

    if folder is None:
        return ImageTable.of(len(source), images())
    return ImageTable.open_or_build(folder, len(source), images())


def training_images(folder: Path, data: TrainingSet, config: PairsConfig, *, unlabelled: bool = False) -> ImageTable:
    """The image table of a training set.

    Args:
        folder: keeps the table.
        data: the training set.
        config: the method's parameters.
        unlabelled: whether images without annotations suffice to train on.

    Raises:
        UserError: the table holds nothing to train on.
    """
    images = image_table(folder, data.source, config, data)
    usable = images.usable() & (data.labelled | unlabelled)
    if not usable.any():
        which = "no image" if unlabelled else "no labelled image"
        raise UserError(f"nothing to train on: {which} has a person and another instance detected")
    return images
