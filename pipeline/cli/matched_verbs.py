"""``hoi-distill matched-verbs``: how well a model knows verbs, its boxes apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hoi_distill.pipeline.cli.options import Json


def matched_verbs(
    detections: Annotated[
        Path, typer.Option(help="Scored triplets of the split: Parquet, such as a run's detections.parquet.")
    ],
    annotations: Annotated[Path, typer.Option(help="The dataset's folder, or its annotation file.")],
    dataset: Annotated[str, typer.Option(help="Its kind: hico-det, v-coco, swig-hoi, or folder.")] = "hico-det",
    split: Annotated[str | None, typer.Option(help="Default: the test split.")] = None,
    as_json: Json = False,
) -> None:
    """Rank the verbs of annotated pairs, each by the detected pair that lies nearest, however loose its boxes."""
    from hoi_distill.stages.data.open_dataset import open_annotations
    from hoi_distill.stages.evaluate.formats.parquet import read_detections
    from hoi_distill.stages.evaluate.metrics.matched_verbs import matched_verbs
    from hoi_distill.stages.evaluate.protocols.shared import vocabulary_of

    truth = open_annotations(dataset, annotations, split, images=False)
    words = vocabulary_of(truth)
    found = read_detections(detections, truth.image_id, words, object_optional=True)
    record = matched_verbs(found, truth, len(words.verbs)).as_json(words)
    if as_json:
        print(json.dumps(record, indent=1))
        return
    print(f"{'':<20}{'AP (%)':>8}{'annotated pairs':>17}")
    shown = "-" if record["verb_map"] is None else f"{record['verb_map']:.1f}"
    print(f"{'mean over verbs':<20}{shown:>8}{record['pairs']:>17,}")
    for name, figures in record["verbs"].items():
        print(f"{name.replace('_', ' '):<20}{figures['ap']:>8.1f}{figures['pairs']:>17,}")
    print(f"Both boxes overlap by half or more in {record['boxes_within_half']} % of the pairs.")
