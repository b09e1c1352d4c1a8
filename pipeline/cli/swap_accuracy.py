"""``hoi-distill swap-accuracy``: whether a model sees which of two equal candidates a person acts on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hoi_distill.pipeline.cli.options import Json


def swap_accuracy(
    detections: Annotated[
        Path, typer.Option(help="Scored triplets of the test split: Parquet, such as a run's detections.parquet.")
    ],
    annotations: Annotated[Path, typer.Option(help="The folder of a crowd.")] = Path("data/crowd"),
    as_json: Json = False,
) -> None:
    """Over the twins of a crowd, count how often the acting pair scores above the pair that acts in the twin."""
    from hoi_distill.stages.evaluate.protocols.twins import evaluate_twins

    record = evaluate_twins(annotations, detections)
    if as_json:
        print(json.dumps(record, indent=1))
        return
    verbs = record.pop("verbs")
    print(f"{'':<12}{'swap accuracy (%)':>18}{'questions':>11}{'compared':>10}")
    for name, figures in (("all", record), *verbs.items()):
        accuracy = figures["swap_accuracy"]
        shown = "-" if accuracy is None else f"{accuracy:.1f}"
        print(f"{name.replace('_', ' '):<12}{shown:>18}{figures['questions']:>11,}{figures['compared']:>10,}")
