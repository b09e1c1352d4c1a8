"""The commands that use a trained student: ``predict``, ``export`` and ``push``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hoi_distill.pipeline.cli.options import INCOMPLETE
from hoi_distill.pipeline.config.whereabouts import in_every_folder, names_of_checkpoint
from hoi_distill.storage.errors import UserError

FORMATS = ("onnx",)


def where_typed(name: str | None) -> str | None:
    """A folder's name as an absolute path, so that it means the same wherever the command goes on. Other names are the model
    hub's."""
    return os.path.abspath(os.path.expanduser(name)) if name and os.path.exists(os.path.expanduser(name)) else name


Detector = Annotated[
    str | None,
    typer.Option(
        "--detector", help="A detector's folder or hub id, for a student of given boxes.", callback=where_typed
    ),
]


@in_every_folder("checkpoint", names_of_checkpoint)
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A student's checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="Folder for detections.parquet and the drawn images.")],
    images: Annotated[
        list[Path] | None, typer.Argument(help="Images, videos, folders, patterns, or .txt lists of names.")
    ] = None,
    detections: Annotated[Path | None, typer.Option(help="Boxes: a COCO results JSON for these images.")] = None,
    detector: Detector = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Draw triplets of at least this score.")] = 0.3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU by default where there is one.")] = None,
    webcam: Annotated[str | None, typer.Option(help="A camera, by number (0) or device; until Ctrl-C.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, help="Of a video, no more than this.")] = None,
    draw: Annotated[bool, typer.Option(help="Draw images, and videos with boxes.")] = True,
    csv: Annotated[bool, typer.Option("--csv", help="Write detections.csv.")] = False,
    coco: Annotated[bool, typer.Option("--coco", help="Write detections.coco.json.")] = False,
    crops: Annotated[bool, typer.Option("--crops", help="Write the image around each pair into crops/.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each image.")] = False,
) -> None:
    """Find human-object interactions in images and videos with a trained student."""
    from hoi_distill.pipeline.prediction import More, predict_images
    from hoi_distill.pipeline.prediction_outputs import Wanted

    if not images and webcam is None:
        raise UserError("predict: missing argument: images, a video, or --webcam; see hoi-distill predict --help")
    wanted = Wanted(drawings=draw, csv=csv, coco=coco, crops=crops, lines=as_json)
    more = More(detector, wanted, webcam, seconds)
    if predict_images(
        checkpoint, images or [], out, threshold=threshold, detections=detections, device=device, more=more
    ):
        raise typer.Exit(INCOMPLETE)


@in_every_folder("checkpoint", names_of_checkpoint)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A student's checkpoint folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the graphs and export.json.")],
    kind: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    check: Annotated[list[Path] | None, typer.Option(help="Images or folders to compare on; default: noise.")] = None,
    detector: Detector = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write student, encoder and detector as ONNX graphs, compared with the networks."""
    from hoi_distill.pipeline.export import export_checkpoint

    if kind not in FORMATS:
        raise UserError(f"--format {kind}: there is {', '.join(FORMATS)}")
    exported = export_checkpoint(checkpoint, out, images=check or (), detector=detector)
    if as_json:
        print(json.dumps(asdict(exported)))
        return
    found = exported.compared
    for name, reason in exported.left_out.items():
        print(f"not exported: {name}: {reason}")
    print(
        f"compared on {exported.on}: scores of {found.triplets:,} triplets differ by at most {found.scores:.2g}, boxes by "
        f"{found.boxes:.2g} pixels, feature maps by {found.features:.2g}; the best triplets are the same in "
        f"{found.same_best} of {found.images}"
    )
    print(f"{out}: {', '.join(exported.graphs.values())}, export.json")


@in_every_folder("checkpoint", names_of_checkpoint)
def push(
    checkpoint: Annotated[Path, typer.Argument(help="A student's checkpoint folder.")],
    repository: Annotated[str, typer.Argument(help="organisation/name on the model hub.")],
    license_name: Annotated[str, typer.Option("--license", help="Of these weights: apache-2.0, other ...")],
    private: Annotated[bool, typer.Option("--private", help="A new repository is private.")] = False,
    run: Annotated[Path | None, typer.Option(help="The run that trained it; default: the folder around it.")] = None,
) -> None:
    """Upload a trained student to the model hub, with a card that is written from its run."""
    from hoi_distill.pipeline.hub import push_to_hub

    print(push_to_hub(checkpoint, repository, license_name=license_name, private=private, run=run))
