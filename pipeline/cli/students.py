"""The commands that train students and show results: ``train``, ``experiments``, ``compare``, ``evidence`` and ``page``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hoi_distill.pipeline.cli.options import ConfigFile, Limit, Overrides, TimeLimit
from hoi_distill.pipeline.config.whereabouts import (
    in_every_folder,
    names_of_claims,
    names_of_configuration,
    names_of_matrix,
)
from hoi_distill.pipeline.console.interrupt import Deadline, stop_on_interrupt

if TYPE_CHECKING:
    from hoi_distill.pipeline.planning.plan import TablePlan
    from hoi_distill.pipeline.workspace import Workspace


LOOK_AGAIN_SECONDS = 10
"""How often a process of a launcher looks whether the main one has filled the tables."""


@in_every_folder("config", names_of_configuration)
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    limit: Limit = None,
    fill: Annotated[bool, typer.Option("--fill", help="Fill the cache first, as `run` does.")] = False,
    name: Annotated[
        str | None, typer.Option(help="A name for the run: a link to its folder, and its name in trackers.")
    ] = None,
    time_limit: TimeLimit = None,
) -> None:
    """Train the student from the cache, evaluate it and write its report. Never loads a teacher."""
    from hoi_distill.pipeline.train import refuse_unrecorded, train_student
    from hoi_distill.pipeline.workspace import prepare

    until = Deadline(time_limit)
    workspace = prepare(config, overrides or (), limit=limit)
    refuse_unrecorded(workspace, name)
    command = ["run", str(config), *_as_options(overrides, limit), *until.as_option()]
    plans = filled(workspace, command, whole=limit is None) if fill else None
    with stop_on_interrupt(until.seconds_left()) as stop:
        train_student(workspace, stop, plans, name=name)


def filled(workspace: Workspace, command: Sequence[str], whole: bool) -> Mapping[str, TablePlan] | None:
    """The plans of tables that are filled. Where one is not, a process of its own fills them, which leaves no teacher here.

    Of a launcher's processes the main one does that. The others wait; if it fails, the launcher ends them.

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
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.training.fit import is_main_process, without_launcher

    if not is_main_process():
        while True:
            planned = plan_all(workspace)
            if all(table_plan.complete() for table_plan in planned.values()):
                return planned
            time.sleep(LOOK_AGAIN_SECONDS)
    plans = shown_plans(workspace, whole=whole)
    if all(table_plan.complete() for table_plan in plans.values()):
        print(nothing_to_do(plans, workspace.config.cache))
        return plans
    sys.stdout.flush()
    with stop_on_interrupt():  # the child has the same signal, and ends by itself
        fill = [sys.executable, "-m", "hoi_distill", *command]
        code = subprocess.run(fill, check=False, env=without_launcher()).returncode
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
    no_train: Annotated[
        bool, typer.Option("--no-train", help="Train nothing: show what is trained or recorded already.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Compute nothing: say what it costs in trainings, GB and GPU-hours.")
    ] = False,
) -> None:
    """Train every arm and seed of a matrix that is not trained or recorded yet, then write the table of all."""
    from hoi_distill.pipeline.experiments import print_costs, run_matrix

    if plan:
        print_costs(matrix)
        return
    run_matrix(matrix, train=not no_train)


def compare(
    ours: Annotated[
        str, typer.Argument(help="A run's folder, a record of a training, or a pattern of these in quotes.")
    ],
    theirs: Annotated[str, typer.Argument(help="The same of the other side.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say whether trained students differ, with intervals: a paired bootstrap over their test images."""
    from hoi_distill.pipeline.comparison import compare as compared

    found = compared(ours, theirs)
    print(json.dumps(found.as_json(), indent=1) if as_json else str(found))


@in_every_folder("claims", names_of_claims)
def evidence(
    claims: Annotated[Path, typer.Argument(help="The file of claims.")] = Path("configs/evidence.yaml"),
) -> None:
    """Write the page that sets the papers' claims beside what was found, from the records of finished trainings."""
    from hoi_distill.pipeline.evidence import write_evidence

    print(f"Written: {write_evidence(claims)}")


@in_every_folder("config", names_of_configuration)
def page(
    config: ConfigFile,
    out: Annotated[
        Path, typer.Option(help="The HTML file to write; what it has no room for goes to page-2.html, page-3.html ...")
    ] = Path("page.html"),
    overrides: Overrides = None,
    limit: Limit = None,
) -> None:
    """Write pages with small images, their pairs and boxes, and what the teachers say: captions, triplets, best prompts."""
    from hoi_distill.pipeline.reports.folder import write_page
    from hoi_distill.pipeline.workspace import prepare

    write_page(prepare(config, overrides or (), limit=limit), out)
