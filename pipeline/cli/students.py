"""The commands that train students and show results: ``train``, ``experiments``, ``page`` and ``predict``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hoi_distill.pipeline.cli.options import INCOMPLETE, ConfigFile, Limit, Overrides, TimeLimit
from hoi_distill.pipeline.config.whereabouts import (
    in_every_folder,
    names_of_checkpoint,
    names_of_configuration,
    names_of_matrix,
)
from hoi_distill.pipeline.console.interrupt import Deadline, stop_on_interrupt

if TYPE_CHECKING:
    from hoi_distill.pipeline.planning.plan import TablePlan
    from hoi_distill.pipeline.workspace import Workspace


@in_every_folder("config", names_of_configuration)
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    limit: Limit = None,
    fill: Annotated[bool, typer.Option("--fill", help="Fill the cache first, as `run` does.")] = False,
    time_limit: TimeLimit = None,
) -> None:
    """Train the student from the cache, evaluate it and write its report. Never loads a teacher."""
    from hoi_distill.pipeline.train import train_student
    from hoi_distill.pipeline.workspace import prepare

    until = Deadline(time_limit)
    workspace = prepare(config, overrides or (), limit=limit)
    command = ["run", str(config), *_as_options(overrides, limit), *until.as_option()]
    plans = filled(workspace, command, whole=limit is None) if fill else None
    with stop_on_interrupt(until.seconds_left()) as stop:
        train_student(workspace, stop, plans)


def filled(workspace: Workspace, command: Sequence[str], whole: bool) -> Mapping[str, TablePlan] | None:
    """The plans of tables that are filled. Where one is not, a process of its own fills them, which leaves no teacher here.

    Args:
        workspace: the tables.
        command: fills them.
        whole: whether the tables are those of the whole dataset.

    Returns:
        None where cells were computed, so that the plans of before are none of now.

    Raises:
        typer.Exit: the command failed, with its code.
    """
    from hoi_distill.pipeline.cli.cache import shown_plans
    from hoi_distill.pipeline.cli.show import nothing_to_do

    plans = shown_plans(workspace, whole=whole)
    if all(table_plan.complete() for table_plan in plans.values()):
        print(nothing_to_do(plans, workspace.config.cache))
        return plans
    sys.stdout.flush()
    with stop_on_interrupt():  # the child has the same signal, and ends by itself
        code = subprocess.run([sys.executable, "-m", "hoi_distill", *command], check=False).returncode
    if code:
        raise typer.Exit(code if code > 0 else 128 - code)
    return None


def _as_options(overrides: Sequence[str] | None, limit: int | None) -> list[str]:
    """The options of the command line again."""
    of_limit = [] if limit is None else ["--limit", str(limit)]
    return [*(part for override in overrides or () for part in ("--set", override)), *of_limit]


@in_every_folder("matrix", names_of_matrix)
def experiments(
    matrix: Annotated[Path, typer.Argument(help="The matrix, for example configs/experiments.yaml.")],
) -> None:
    """Train every arm and seed of a matrix that is not trained yet, then write the table of all."""
    from hoi_distill.pipeline.experiments import run_matrix

    run_matrix(matrix)


@in_every_folder("config", names_of_configuration)
def page(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("page.html"),
    overrides: Overrides = None,
    limit: Limit = None,
) -> None:
    """Write one page with the images of a folder, what the teacher says of them, and their best prompts."""
    from hoi_distill.pipeline.reports.folder import write_page
    from hoi_distill.pipeline.workspace import prepare

    write_page(prepare(config, overrides or (), limit=limit), out)


@in_every_folder("checkpoint", names_of_checkpoint)
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A student's checkpoint folder.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder for detections.parquet and the drawn images.")],
    detections: Annotated[Path | None, typer.Option(help="Boxes: a COCO results JSON for these images.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Draw triplets of at least this score.")] = 0.3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU by default where there is one.")] = None,
) -> None:
    """Find human-object interactions in images with a trained student."""
    from hoi_distill.pipeline.prediction import predict_images

    if predict_images(checkpoint, images, out, detections=detections, threshold=threshold, device=device):
        raise typer.Exit(INCOMPLETE)
