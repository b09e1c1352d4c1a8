"""``hoi-distill triplets``: what was read from a teacher's sentences, and what was not, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def triplets(
    config: Annotated[Path, typer.Argument(help="The setup, for example configs/pico.yaml.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")] = False,
) -> None:
    """Count, for every caption question, the triplets taken and the phrases dropped, by reason."""
    from pipeline.pair_teachers import plan_all
    from pipeline.plan import read_upstream
    from pipeline.setup import prepare
    from stages.teacher.triplets import Triplets, drop_report
    from storage.errors import UserError

    setup = prepare(config)
    plans = plan_all(setup)
    tables = {name: made for name, made in plans.items() if isinstance(made.node.stage, Triplets)}
    if not tables:
        raise UserError(f"{config}: no table of stage triplets; add one under tables")
    if empty := [name for name, made in tables.items() if made.table is None]:
        raise UserError(f"{config}: tables.{empty[0]} is empty; `hoi-distill run {config}` fills it")
    counts = {
        name: {
            column: drop_report(cells.to_pylist())
            for column, cells in read_upstream(made, made.rows, setup.sources[made.node.stage.source]).items()
        }
        for name, made in tables.items()
    }
    if as_json:
        print(json.dumps(counts, indent=1))
        return
    for name, columns in counts.items():
        for column, report in columns.items():
            print(f"{name}: {column}")
            for reason, count in report.items():
                print(f"{count:>12,}  {reason}")
