"""The commands for data of one's own: ``init``, ``import`` and ``export-table``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[Path, typer.Option(help="The folder of the images.")]
Verbs = Annotated[Path | None, typer.Option(help="A text file: one verb a line, perhaps with its objects.")]
Objects = Annotated[Path | None, typer.Option(help="A text file: one object a line.")]
Test = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of the annotated images to test on, where the file names none.")
]


def init(
    project: Annotated[Path, typer.Argument(help="The folder to make; its last part is the project's name.")],
    images: Images,
    annotations: Annotated[
        Path | None, typer.Option(help="CSV, COCO-like JSON, or an export of Label Studio (JSON) or CVAT (XML).")
    ] = None,
    verbs: Verbs = None,
    objects: Objects = None,
    boxes: Annotated[Path | None, typer.Option(help="Boxes of your detector: a COCO results JSON.")] = None,
    detector: Annotated[str | None, typer.Option(help="A detector: a folder or a hub id.")] = None,
    teacher: Annotated[str | None, typer.Option(help="A BLIP of image-text matching: a folder or a hub id.")] = None,
    test: Test = 0.2,
) -> None:
    """Look at your images and annotations, and write a project with a configuration that runs on this machine."""
    from hoi_distill.pipeline.console.watch import working
    from hoi_distill.pipeline.own_data.start import Given, start_project

    given = Given(annotations, verbs, objects, boxes, detector, teacher)
    with working("looking at the images"):
        lines = start_project(project, images, given, test)
    print("\n".join(lines))
