"""The commands that fill, check and clear the cache: ``plan``, ``run``, ``check``, ``verify`` and ``gc``."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from hoi_distill.pipeline.cli.options import INCOMPLETE, ConfigFile, Json, Limit, Overrides, Rehash, TimeLimit
from hoi_distill.pipeline.config.whereabouts import in_every_folder, names_of_configuration
from hoi_distill.pipeline.console.interrupt import Deadline, stop_on_interrupt
from hoi_distill.stages.quantities import size
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.pipeline.planning.plan import TablePlan
    from hoi_distill.pipeline.workspace import Workspace
    from hoi_distill.storage.cache import Cache


@in_every_folder("config", names_of_configuration)
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    limit: Limit = None,
    rehash: Rehash = False,
    trial: Annotated[
        int | None,
        typer.Option(min=1, help="Ask for so many cells of each table behind a server: tokens and price of the rest."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show, table by table, which cells are wanted, filled, empty or failed, why, and what they will cost.

    Computes nothing; a trial asks a server, which may cost money, and stores nothing. Of a pico world that is not there, the
    images are drawn first, and a line says so.
    """
    from hoi_distill.pipeline.cli.show import plan_table, shared_rows
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.training.checks import check_student
    from hoi_distill.pipeline.workspace import prepare

    workspace = prepare(config, overrides or (), limit=limit, rehash=rehash)
    check_student(workspace)
    plans = plan_all(workspace)
    trials = {}
    if trial is not None:
        from hoi_distill.pipeline.filling.trial import try_served

        trials = try_served(workspace, plans, trial)
    if as_json:
        tried = {name: {"trial": each.as_json()} for name, each in trials.items()}
        tables = [table_plan.as_json() | tried.get(name, {}) for name, table_plan in plans.items()]
        print(json.dumps({"config": str(config), "tables": tables}, indent=1))
    else:
        plan_table(plans)
        shared_rows(workspace.images)
        for each in trials.values():
            print(each.line())


def shown_plans(workspace: Workspace, *, whole: bool, retry_failed: bool = False) -> Mapping[str, TablePlan]:
    """Plan all tables before a run, and print what is to be done.

    Args:
        workspace: the tables.
        whole: whether their rows are the whole dataset. Then the configuration is registered, so that ``gc`` keeps its tables.
        retry_failed: empty the failure cells first.
    """
    from hoi_distill.pipeline.cli.show import plan_table, shared_rows
    from hoi_distill.pipeline.filling.garbage import register
    from hoi_distill.pipeline.filling.run import drop_failures
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.training.checks import check_student

    check_student(workspace)
    plans = plan_all(workspace)
    if whole:
        register(workspace, plans)
    if retry_failed:
        drop_failures(plans)
        plans = plan_all(workspace)
    plan_table(plans)
    shared_rows(workspace.images)
    return plans


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
    allow_cpu: Annotated[
        bool, typer.Option(help="Compute on CPUs where a GPU is asked for and none is there.")
    ] = False,
    time_limit: TimeLimit = None,
) -> None:
    """Fill the cache: compute every wanted cell that is empty, and nothing else."""
    from hoi_distill.pipeline.cli.show import nothing_to_do, plan_table, run_summary
    from hoi_distill.pipeline.filling.garbage import register
    from hoi_distill.pipeline.filling.run import RunSummary, choose_executor, fill, gpu_asked, rehearse_stages
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.training.checks import rehearse_student
    from hoi_distill.pipeline.workspace import prepare

    until = Deadline(time_limit)
    if executor not in (None, "ray", "inline"):
        raise UserError(f"--executor {executor}: there are ray and inline")
    allowed = ["workers.allow_cpu=true"] if allow_cpu else []
    workspace = prepare(config, [*(overrides or ()), *allowed], limit=limit, rehash=rehash)
    plans = shown_plans(workspace, whole=limit is None, retry_failed=retry_failed)
    if all(table_plan.complete() for table_plan in plans.values()):
        print(nothing_to_do(plans, workspace.config.cache))
        return
    rehearse_stages(workspace, plans)
    workspace.cache.require_writable()
    rehearse_student(workspace)
    summary = RunSummary()
    chosen = workspace.config.workers
    with stop_on_interrupt(until.seconds_left()) as stop, \
            choose_executor(
                executor or chosen.executor, chosen.device, workers or chosen.count,
                gpu=gpu_asked(workspace.config, plans), **chosen.limits(),
            ) as execute:  # fmt: skip
        note = functools.partial(register, workspace) if limit is None else None
        try:
            fill(workspace, execute, stop, note, summary)
        except Exception:
            if any(summary.cells.values()) or summary.counts:
                run_summary(summary)
            raise
    run_summary(summary)
    if summary.interrupted:
        raise typer.Exit(130)
    plans = plan_all(workspace)
    if not all(table_plan.complete() for table_plan in plans.values()):
        plan_table(plans)
        raise typer.Exit(INCOMPLETE)


CacheRoot = Annotated[str, typer.Option(metavar="PATH", help="The cache's folder, or its address in an object store.")]


def check(
    cache: CacheRoot = "cache",
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


def gc(
    cache: CacheRoot = "cache",
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
    from hoi_distill.pipeline.filling.garbage import collect

    outcome = collect(existing_cache(cache), yes, grace_days * 86400, forget or [])
    if as_json:
        print(json.dumps(outcome, indent=1))
        return
    for row in outcome["unwanted"]:
        print(f"{row['table']}  {size(row['bytes'])}" + ("  moved to the trash" if row["trashed"] else ""))
    for used in outcome["in_use"]:
        print(f"{used['table']}  in use by {used['by']}: kept")
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


def existing_cache(given: str) -> Cache:
    """Open the cache that ``--cache`` names, a folder or an address in an object store.

    Raises:
        UserError: there is no such folder, or it is no cache.
    """
    from hoi_distill.storage.cache import Cache

    cache = Cache(given)
    if not cache.store.is_folder(cache.root):
        raise UserError(f"--cache {cache.root}: no such folder; a run makes it")
    try:
        is_there = cache.store.is_folder(tables := cache.root / "tables") and cache.store.is_used(tables)
    except OSError as error:
        raise UserError(f"--cache {cache.root}: {error.strerror}; docs/cluster.md says what access takes") from None
    if not is_there:
        raise UserError(f"--cache {cache.root}: not a cache: it has no folder tables")
    return Cache.open(given)
