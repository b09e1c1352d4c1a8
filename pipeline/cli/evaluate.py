"""``hoi-distill evaluate``: figures of a detections file by a benchmark's own protocol, and what to do about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hoi_distill.storage.files.writable import refuse_unwritable


def evaluate(
    annotations: Annotated[Path, typer.Option(help="The dataset's folder, or its annotation file.")],
    detections: Annotated[
        Path, typer.Option(help="Scored triplets: Parquet (docs/formats.md), or as others write them.")
    ],
    dataset: Annotated[str, typer.Option(help="The protocol: hico-det, v-coco, swig-hoi, or folder.")] = "hico-det",
    detections_format: Annotated[
        str, typer.Option("--format", help="Of the detections: auto, parquet, qpic, pocket or v-coco.")
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="By default the test split.")] = None,
    convention: Annotated[
        str, typer.Option(help="HICO-DET: whose code to agree with (docs/evaluation.md lists them).")
    ] = "official",
    switch: Annotated[
        list[str] | None, typer.Option(help="HICO-DET: change one switch, recall_grid=linspace (repeatable).")
    ] = None,
    image_labels: Annotated[
        Path | None, typer.Option(help="HICO-DET: anno.mat, if it does not lie beside the annotations.")
    ] = None,
    zero_shot: Annotated[
        str | None, typer.Option(help="Means over a split of the vocabulary's classes (HICO-DET, pico): RF-UC, UV ...")
    ] = None,
    labelled: Annotated[
        int | None, typer.Option(min=1, help="Call a class rare by the first N training pictures only (pico: 500).")
    ] = None,
    frame: Annotated[
        str | None,
        typer.Option(help="Boxes of qpic files, where they do not say it: zero_based, one_based, half_open."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for page, CSV and JSON; by default beside the detections.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for confidence intervals; 0: none.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Draws the resamples.")] = 0,
    export: Annotated[
        list[str] | None, typer.Option(help="Also write the detections for other code: KIND=PATH (repeatable).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for machines; files are written only if --out names a folder.")
    ] = False,
) -> None:
    """Evaluate a file of detections by a benchmark's own protocol. Needs no cache, no torch, no teacher."""
    from hoi_distill.stages.evaluate.protocols.evaluate_files import default_folder, evaluate_files
    from hoi_distill.stages.evaluate.protocols.exports import export_detections, parse_exports, refuse_exports
    from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest

    exports = parse_exports(export or (), dataset)
    request = EvaluationRequest(
        dataset=dataset,
        annotations=annotations,
        detections=detections,
        format=detections_format,
        split=split,
        convention=convention,
        switches=tuple(switch or ()),
        image_labels=image_labels,
        zero_shot=zero_shot,
        labelled=labelled,
        frame=frame,
    )
    if out is None and not as_json:
        out = default_folder(request)
    if out is not None:
        refuse_unwritable("--out", out, folder=True)
    refuse_exports(exports)
    result = evaluate_files(request)
    if not len(result.detections):
        typer.echo(f"hoi-distill: warning: {detections}: no detections in it, so every pair is missed", err=True)
    for kind, path in exports:
        export_detections(result, kind, path)
    intervals = None
    lines = [f"Exported as {kind}: {path}" for kind, path in exports]
    if out is not None:
        from hoi_distill.stages.evaluate.pages.evaluation_page import write_evaluation

        paths, intervals = write_evaluation(result, out, detections.name, bootstrap, seed)
        lines += map(str, paths)
    print(json.dumps(result.record, indent=1) if as_json else "\n".join([result.table(intervals), *lines]))
