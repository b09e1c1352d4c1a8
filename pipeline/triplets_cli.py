"""``hoi-distill triplets``: what was read from a teacher's sentences, and what was not, and why."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.options import ConfigFile, Json, Set

if TYPE_CHECKING:
    from pipeline.plan import TablePlan
    from pipeline.setup import Setup

Log = Annotated[
    Path | None,
    typer.Option(
        help="Write every dropped phrase to this file, a line of JSON each: picture, table, question, reason."
    ),
]


def triplets(config: ConfigFile, set: Set = None, log: Log = None, as_json: Json = False) -> None:
    """Count, for every caption question, the triplets taken and the phrases dropped, by reason."""
    from pipeline.pair_teachers import plan_all
    from pipeline.plan import read_upstream
    from pipeline.setup import prepare
    from stages.teacher.image_labels import ImageLabels
    from stages.teacher.triplets import Triplets, drop_report
    from storage.errors import UserError

    setup = prepare(config, set or ())
    plans = plan_all(setup)
    tables = {name: made for name, made in plans.items() if isinstance(made.node.stage, Triplets)}
    if not tables:
        raise UserError(f"{config}: no table of stage triplets; add one under tables")
    read = {name: made for name, made in plans.items() if isinstance(made.node.stage, ImageLabels)} if log else {}
    if empty := [name for name, made in {**tables, **read}.items() if made.table is None]:
        raise UserError(f"{config}: tables.{empty[0]} is empty; `{setup.mending_command()}` fills it")
    counts = {
        name: {
            column: drop_report(cells.to_pylist())
            for column, cells in read_upstream(made, made.rows, setup.sources[made.node.stage.source]).items()
        }
        for name, made in tables.items()
    }
    if log is not None:
        write_log(log, setup, plans)
    if as_json:
        print(json.dumps(counts, indent=1))
        return
    for name, columns in counts.items():
        for column, report in columns.items():
            print(f"{name}: {column}")
            for reason, count in report.items():
                print(f"{count:>12,}  {reason}")


def write_log(path: Path, setup: Setup, plans: Mapping[str, TablePlan]) -> None:
    """Every phrase that a table of triplets or of image labels dropped, in the order of tables, questions and pictures. Equal
    cells give equal files."""
    from storage.errors import UserError

    lines = [json.dumps(drop) + "\n" for drop in drops(setup, plans)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.writelines(lines)
    except OSError as error:
        raise UserError(f"--log {path}: cannot be written: {error.strerror}") from None


def drops(setup: Setup, plans: Mapping[str, TablePlan]) -> Iterator[dict[str, Any]]:
    """``{picture, table, question, phrase, reason}``; question is None where a table of labels dropped it."""
    from pipeline.plan import read_upstream
    from stages.teacher.image_labels import ImageLabels
    from stages.teacher.triplets import Triplets

    source = setup.sources["images"]
    names: dict[int, list[str]] = {}  # several pictures of equal bytes are one row
    for split, rows in source.splits.items():
        for row, name in zip(rows.tolist(), setup.dataset[split].image_id, strict=True):
            names.setdefault(row, []).append(str(name))
    for table, made in plans.items():
        if made.table is None or not isinstance(made.node.stage, Triplets | ImageLabels):
            continue
        for column, cells in read_upstream(made, made.rows, source).items():
            question = column if isinstance(made.node.stage, Triplets) else None
            for row, cell in zip(made.rows.tolist(), cells.to_pylist(), strict=True):
                for name, drop in itertools.product(names[row], () if cell is None else cell["dropped"]):
                    yield {"picture": name, "table": table, "question": question, **drop}
