"""The commands for data of one's own: ``init``, ``import`` and ``export-table``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hoi_distill.pipeline.cli.options import ConfigFile, Overrides
from hoi_distill.pipeline.config.whereabouts import in_every_folder, names_of_configuration

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


def import_(
    file: Annotated[Path, typer.Argument(help="Annotations of another program, or exported detections (.parquet).")],
    images: Images,
    out: Annotated[Path, typer.Option(help="The JSON file to write; vocabulary.json lies beside annotations.")],
    verbs: Verbs = None,
    objects: Objects = None,
    test: Test = 0.2,
) -> None:
    """Write annotations of another program, or boxes from an exported table, in the form that the project reads."""
    from hoi_distill.pipeline.own_data.exports import boxes_from_parquet
    from hoi_distill.pipeline.own_data.start import Given, words_of, write_annotations
    from hoi_distill.stages.data.imports.own_form import own_form, read_annotations
    from hoi_distill.stages.data.vocabulary import Vocabulary
    from hoi_distill.storage.files.writable import refuse_unwritable, writing

    refuse_unwritable("--out", out)
    if file.suffix == ".parquet":
        print(f"{out}: {boxes_from_parquet(file, out):,} boxes")
        return
    beside = out.parent / "vocabulary.json"
    words = words_of(Given(verbs=verbs, objects=objects))
    if words is None and beside.exists():
        words = Vocabulary.load(beside)
    imported = own_form(read_annotations(file), images, words, test)
    with writing(f"--out {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        imported.vocabulary.save(beside, "hoi-distill import")
        write_annotations(out, imported)
    trained, tested = imported.images("train"), imported.images("test")
    print(f"{out}: {imported.pairs():,} interactions; {trained:,} images to train on, {tested:,} to test on")


@in_every_folder("config", names_of_configuration)
def export_table(
    config: ConfigFile,
    table: Annotated[str, typer.Argument(help="A table's name in the configuration.")],
    out: Annotated[Path, typer.Option(help="The file to write: .parquet, .npy or .tar (WebDataset).")],
    overrides: Overrides = None,
) -> None:
    """Write a table of the cache to a file for other programs."""
    from hoi_distill.pipeline.own_data import exports
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.workspace import prepare

    workspace = prepare(config, overrides or ())
    print(f"{out}: {exports.export_table(workspace, plan_all(workspace), table, out):,} rows")
