"""The command line, ``hoi-distill``. Everything heavy is imported by the command that uses it.

Exit codes: 0 done; 1 an error of ours; 2 bad input (one line says what to mend); 3 cells are empty or differ; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
from typing_extensions import override

from hoi_distill.pipeline.cli import schema as schema_cli
from hoi_distill.pipeline.cli import teachers as teachers_cli
from hoi_distill.pipeline.cli.dataset import app as dataset_app
from hoi_distill.pipeline.cli.evaluate import evaluate
from hoi_distill.pipeline.cli.labels import labels
from hoi_distill.pipeline.cli.options import ConfigFile, Json, Limit, Overrides, Rehash
from hoi_distill.pipeline.cli.triplets import triplets
from hoi_distill.pipeline.config.whereabouts import (
    in_every_folder,
    names_of_checkpoint,
    names_of_configuration,
    names_of_matrix,
)
from hoi_distill.pipeline.console.terminal import flush_output, one_line, printable_streams

if TYPE_CHECKING:
    from hoi_distill.storage.cache import Cache


class _Commands(typer.core.TyperGroup):
    """Typer leaves without a word at Ctrl-C; this says what became of the work."""

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("Interrupted. What was committed is kept; the same command goes on from here.", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="hoi-distill",
    cls=_Commands,
    help="Pay for the vision-language teacher once, then train as many light HOI students as you like.",
    epilog="Exit codes: 0 done, 1 internal error, 2 bad input, 3 cells are empty or differ, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(dataset_app, name="dataset")

INCOMPLETE = 3


@app.callback(invoke_without_command=True)
def _top(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the versions and the device, and exit.")] = False,
) -> None:
    if version:
        from hoi_distill.pipeline.cli.versions import versions

        print(versions())
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(2)


@app.command()
@in_every_folder("config", names_of_configuration)
def plan(
    config: ConfigFile, overrides: Overrides = None, limit: Limit = None, rehash: Rehash = False, as_json: Json = False
) -> None:
    """Show, table by table, which cells are wanted, filled, empty or failed, why, and what they will cost.

    Computes nothing. Of a pico world that is not there, the pictures are drawn first, and a line says so.
    """
    from hoi_distill.pipeline.cli.show import plan_table, shared_rows
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.training.checks import check_student
    from hoi_distill.pipeline.workspace import prepare

    workspace = prepare(config, overrides or (), limit=limit, rehash=rehash)
    check_student(workspace)
    plans = plan_all(workspace)
    if as_json:
        print(
            json.dumps(
                {"config": str(config), "tables": [table_plan.as_json() for table_plan in plans.values()]}, indent=1
            )
        )
    else:
        plan_table(plans)
        shared_rows(workspace.images)


@app.command()
@in_every_folder("config", names_of_configuration)
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    limit: Limit = None,
    rehash: Rehash = False,
    executor: Annotated[str | None, typer.Option(help="ray or inline; the configuration's choice by default.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many workers; the configuration's by default.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option(help="Empty the failure cells first and try them again.")] = False,
) -> None:
    """Fill the cache: compute every wanted cell that is empty, and nothing else."""
    import functools

    from hoi_distill.pipeline.cli.show import nothing_to_do, plan_table, run_summary, shared_rows
    from hoi_distill.pipeline.console.interrupt import stop_on_interrupt
    from hoi_distill.pipeline.filling.garbage import register
    from hoi_distill.pipeline.filling.run import choose_executor, drop_failures, fill
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.training.checks import check_student, rehearse_student
    from hoi_distill.pipeline.workspace import prepare
    from hoi_distill.storage.errors import UserError

    if executor not in (None, "ray", "inline"):
        raise UserError(f"--executor {executor}: there are ray and inline")
    workspace = prepare(config, overrides or (), limit=limit, rehash=rehash)
    check_student(workspace)
    plans = plan_all(workspace)
    if limit is None:
        register(workspace, plans)
    if retry_failed:
        drop_failures(plans)
        plans = plan_all(workspace)
    plan_table(plans)
    shared_rows(workspace.images)
    if all(table_plan.complete() for table_plan in plans.values()):
        print(nothing_to_do(plans, workspace.config.cache))
        return
    workspace.cache.require_writable()
    rehearse_student(workspace)
    chosen = workspace.config.workers
    with stop_on_interrupt() as stop, \
            choose_executor(executor or chosen.executor, chosen.device, workers or chosen.count, **chosen.limits()) \
            as execute:  # fmt: skip
        summary = fill(workspace, execute, stop, functools.partial(register, workspace) if limit is None else None)
    run_summary(summary)
    if summary.interrupted:
        raise typer.Exit(130)
    plans = plan_all(workspace)
    if not all(table_plan.complete() for table_plan in plans.values()):
        plan_table(plans)
        raise typer.Exit(INCOMPLETE)


@app.command()
@in_every_folder("config", names_of_configuration)
def train(config: ConfigFile, overrides: Overrides = None, limit: Limit = None) -> None:
    """Train the student from the cache, evaluate it and write its report. Never loads a teacher."""
    from hoi_distill.pipeline.console.interrupt import stop_on_interrupt
    from hoi_distill.pipeline.train import train_student
    from hoi_distill.pipeline.workspace import prepare

    workspace = prepare(config, overrides or (), limit=limit)
    with stop_on_interrupt() as stop:
        train_student(workspace, stop)


@app.command()
@in_every_folder("matrix", names_of_matrix)
def experiments(
    matrix: Annotated[Path, typer.Argument(help="The matrix, for example configs/experiments.yaml.")],
) -> None:
    """Train every arm and seed of a matrix that is not trained yet, then write the table of all."""
    from hoi_distill.pipeline.experiments import run_matrix

    run_matrix(matrix)


@app.command()
@in_every_folder("config", names_of_configuration)
def page(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("page.html"),
    overrides: Overrides = None,
    limit: Limit = None,
) -> None:
    """Write one page with the pictures of a folder, what the teacher says of them, and their best prompts."""
    from hoi_distill.pipeline.reports.folder import write_page
    from hoi_distill.pipeline.workspace import prepare

    write_page(prepare(config, overrides or (), limit=limit), out)


app.command()(evaluate)


@app.command()
@in_every_folder("checkpoint", names_of_checkpoint)
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A student's checkpoint folder.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    out: Annotated[Path, typer.Option(help="Folder for detections.parquet and the drawn pictures.")],
    detections: Annotated[Path | None, typer.Option(help="Boxes: a COCO results JSON for these pictures.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Draw triplets of at least this score.")] = 0.3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU by default where there is one.")] = None,
) -> None:
    """Find human-object interactions in pictures with a trained student."""
    from hoi_distill.pipeline.prediction import predict_pictures

    predict_pictures(checkpoint, images, out, detections=detections, threshold=threshold, device=device)


@app.command()
def check(
    cache: Annotated[Path, typer.Option(help="The cache's folder.")] = Path("cache"),
    quick: Annotated[bool, typer.Option(help="Only sizes and records, no checksums.")] = False,
    as_json: Json = False,
) -> None:
    """Read every shard again and compare checksums; a bad one is set aside and its cells count as empty."""
    from hoi_distill.storage.check import check_cache

    store = existing_cache(cache)
    bad, tables = check_cache(store, deep=not quick), len(store.folders())
    if as_json:
        rows = [{"table": one.table, "shard": one.shard, "problem": one.reason, "outcome": one.outcome} for one in bad]
        print(json.dumps({"tables": tables, "bad": rows}, indent=1))
    else:
        for one in bad:
            print(one.line())
        print(f"{tables} tables checked, {len(bad)} bad shards")
    if bad:
        raise typer.Exit(INCOMPLETE)


@app.command()
@in_every_folder("config", names_of_configuration)
def verify(
    config: ConfigFile,
    table: Annotated[str, typer.Argument(help="A table's name in the configuration.")],
    sample: Annotated[int, typer.Option(min=1, help="How many cells to compute again.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the cells.")] = 0,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compute random filled cells again and compare: did a refactoring or a new library move the numbers?"""
    from hoi_distill.pipeline.filling.verify import verify_table
    from hoi_distill.pipeline.workspace import prepare

    outcome = verify_table(prepare(config, overrides or ()), table, sample, seed)
    print(json.dumps(outcome.as_json(), indent=1) if as_json else outcome.line())
    if not outcome.agrees:
        raise typer.Exit(INCOMPLETE)


@app.command()
def gc(
    cache: Annotated[Path, typer.Option(help="The cache's folder.")] = Path("cache"),
    yes: Annotated[
        bool, typer.Option("--yes", help="Move them to the trash, which empties after the grace period.")
    ] = False,
    grace_days: Annotated[float, typer.Option(min=0, help="Days that trash is kept.")] = 7.0,
    forget: Annotated[
        list[str] | None, typer.Option(help="Forget a registered setup, or all of one name (repeatable).")
    ] = None,
    as_json: Json = False,
) -> None:
    """List tables that no registered setup wants and nobody reads; with --yes, move them to the trash."""
    from hoi_distill.pipeline.console.progress import size
    from hoi_distill.pipeline.filling.garbage import collect

    outcome = collect(existing_cache(cache), yes, grace_days * 86400, forget or [])
    if as_json:
        print(json.dumps(outcome, indent=1))
        return
    for row in outcome["unwanted"]:
        print(f"{row['table']}  {size(row['bytes'])}" + ("  moved to the trash" if row["trashed"] else ""))
    for row in outcome["in_use"]:
        print(f"{row['table']}  in use by {row['by']}: kept")
    wanted = ", ".join(outcome["registered"]) or "none"
    print(
        f"{len(outcome['unwanted'])} unwanted tables; registered setups: {wanted}; trash emptied: {len(outcome['emptied'])}"
    )
    if outcome["unreadable"]:
        print(
            f"Nothing is moved while it is not known what {', '.join(outcome['unreadable'])} wants, whose note is damaged: "
            "run its configuration, or --forget it."
        )
    elif outcome["unwanted"] and not yes:
        print("Nothing was moved. Add --yes to move them.")


app.command()(teachers_cli.teachers)
app.command()(teachers_cli.detectors)
app.command()(schema_cli.schema)
app.command()(triplets)
app.command()(labels)


def existing_cache(root: Path) -> Cache:
    """Open the cache in a folder that ``--cache`` names.

    Raises:
        UserError: there is no such folder, or it is no cache.
    """
    from hoi_distill.storage.cache import Cache
    from hoi_distill.storage.errors import UserError

    if not root.is_dir():
        raise UserError(f"--cache {root}: no such folder; a run makes it")
    if not (root / "tables").is_dir():
        raise UserError(f"--cache {root}: not a cache: it has no folder tables")
    return Cache.open(root)


def main() -> None:
    """Run a command; errors that a user can mend are one line and exit code 2."""
    with printable_streams():
        code = _run(lambda: app(standalone_mode=False, prog_name="hoi-distill") or 0)
    raise SystemExit(_run(flush_output) or code)


def _run(work: Callable[[], int | None]) -> int:
    """The exit code of some work; what a user can mend, and what the machine refuses, is said in one line."""
    from hoi_distill.storage.errors import UserError, WorkStopped
    from hoi_distill.storage.files.writable import PLAIN, reason

    try:
        return work() or 0
    except SystemExit as ended:  # of typer: a shell asked for completions, or a reader has left
        return int(ended.code or 0)
    except UserError as error:
        return _say(f"hoi-distill: {error}", 2)
    except WorkStopped as error:
        return _say(f"hoi-distill: {error}", 1)
    except OSError as error:  # of a file that no reader or writer has a message for
        if error.filename is None and error.errno not in PLAIN:
            raise
        return _say(f"hoi-distill: {'' if error.filename is None else f'{error.filename}: '}{reason(error)}", 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # which what typer says of a wrong call has
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "hoi-distill")
        said = error.format_message().rstrip(".")
        return _say(f"{command}: {said[:1].lower()}{said[1:]}; see {command} --help", 2)


def _say(line: str, code: int) -> int:
    print(one_line(line), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
