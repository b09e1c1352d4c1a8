"""``hoi-distill dataset``: looking at a dataset before anything is computed from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hoi_distill.pipeline.cli.options import Json
from hoi_distill.pipeline.console.watch import working

app = typer.Typer(help="Look at a dataset on disk.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Look at a dataset on disk."""


@app.command()
def describe(
    annotations: Annotated[Path, typer.Option(help="The dataset's folder, or its annotation file.")],
    dataset: Annotated[str, typer.Option(help="hico-det, v-coco, swig-hoi or folder.")] = "hico-det",
    split: Annotated[list[str] | None, typer.Option(help="Only this split (repeatable); all by default.")] = None,
    image_labels: Annotated[
        Path | None, typer.Option(help="HICO-DET's anno.mat, if it is not beside the annotations.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count a dataset's pictures, pairs and classes beside the published counts, and name what is missing."""
    from hoi_distill.stages.data.describe import describe as describe_dataset

    with working("reading annotations and the headers of all pictures"):
        description = describe_dataset(dataset, annotations, split or (), image_labels)
    print(json.dumps(description.as_json(), indent=1) if as_json else description.table())
