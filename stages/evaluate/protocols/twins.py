"""Swap accuracy of a file of detections, over the twins of a crowd on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hoi_distill.stages.data.open_dataset import open_annotations
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.evaluate.metrics.swap_accuracy import read_twins, swap_accuracy
from hoi_distill.stages.evaluate.protocols.shared import vocabulary_of


def evaluate_twins(annotations: Path, detections: Path) -> dict[str, Any]:
    """What :meth:`~hoi_distill.stages.evaluate.metrics.swap_accuracy.SwapAccuracy.as_json` says.

    Args:
        annotations: The folder of a crowd, or a file in it.
        detections: Scored triplets of its test split, Parquet.

    Raises:
        UserError: A file is not there, or does not fit the others.
    """
    test = open_annotations("hico-det", annotations, "test", images=False)
    words = vocabulary_of(test)
    folder = annotations if annotations.is_dir() else annotations.parent
    twins = read_twins(folder / "twins_test2015.json", test.image_id, words)
    return swap_accuracy(read_detections(detections, test.image_id, words), twins).as_json(words)
