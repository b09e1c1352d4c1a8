"""``hoi-distill labels``: the quality of a teacher's image-level labels; what was dropped, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from hoi_distill.pipeline.cli.options import ConfigFile, Json, Overrides
from hoi_distill.pipeline.config.whereabouts import in_every_folder, names_of_configuration
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.pipeline.reports.label_quality import LabelReport


Column = Literal["positives", "precision", "recall", "map", "negatives", "ignored", "listed", "missed"]
COLUMNS: tuple[Column, ...] = get_args(Column)


@in_every_folder("config", names_of_configuration)
def labels(
    config: ConfigFile,
    overrides: Overrides = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="So many random pictures of the training split; all by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the teacher's image-level labels with the annotations of the training split, and count what was dropped."""
    from hoi_distill.pipeline.reports.label_quality import label_report
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.workspace import prepare
    from hoi_distill.stages.derived.image_labels import ImageLabels

    workspace = prepare(config, overrides or ())
    plans = plan_all(workspace)
    tables = [name for name, table_plan in plans.items() if isinstance(table_plan.node.stage, ImageLabels)]
    if not tables:
        raise UserError(f"{config}: no table of stage image_labels; add one under tables")
    if "train" not in workspace.dataset or not len(workspace.dataset["train"].hoi):
        raise UserError(f"{config}: the training split has no annotations to compare with")
    if unfilled := [name for name in tables if not plans[name].complete()]:
        raise UserError(f"tables.{unfilled[0]} has empty cells; fill it with: {workspace.mending_command()}")
    found = {name: label_report(workspace, plans, name, sample) for name in tables}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for name, report in found.items():
        show(name, report)


def show(name: str, report: LabelReport) -> None:
    """Print one table's report for people, with a warning where the labels are mostly wrong."""
    from hoi_distill.pipeline.reports.label_quality import DOUBTFUL, labelled_metrics

    print(f"{name}: {report['pictures']:,} pictures of the training split, compared with their annotations")
    print(" " * 20 + "".join(f"{column:>11}" for column in COLUMNS))
    for label, metrics in labelled_metrics(report, "text alone", "verified", ", actions"):
        print(f"  {label:<18}" + "".join(f"{_shown(metrics[column]):>11}" for column in COLUMNS))
    print(
        "  negatives: share of listed negatives that are none; ignored: of listed entries; listed: entries a picture;"
    )
    print("  missed: share of the true ones that are not listed, as nobody detected them")
    print(f"{report['triplets']:>12,}  triplets read from the text; dropped phrases:")
    for reason, count in report["dropped"].items():
        print(f"{count:>12,}  {reason}")
    last = report["after"] or report["before"]
    if last["weak"]:
        listed = ", ".join(f"{key} {value:.2f}" for key, value in list(last["weak"].items())[:8])
        print(f"  precision below {DOUBTFUL} in {len(last['weak'])} classes: {listed}")
    if last["precision"] is not None and last["precision"] < DOUBTFUL:
        print(
            f"WARNING: precision {last['precision']:.2f} is below {DOUBTFUL}: mend the questions before training on this"
        )


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
