"""``hoi-distill triplets``: what was read from a teacher's sentences, and what was not, and why."""

from __future__ import annotations

import itertools
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from hoi_distill.pipeline.cli.options import ConfigFile, Json, Overrides
from hoi_distill.pipeline.config.whereabouts import in_every_folder, names_of_configuration
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing

if TYPE_CHECKING:
    from hoi_distill.pipeline.planning.plan import TablePlan

Log = Annotated[
    Path | None,
    typer.Option(
        help="Write every dropped phrase to this file, a line of JSON each: picture, table, question, reason."
    ),
]


@in_every_folder("config", names_of_configuration)
def triplets(config: ConfigFile, overrides: Overrides = None, log: Log = None, as_json: Json = False) -> None:
    """Count, for every caption question, the triplets taken and the phrases dropped, by reason."""
    from hoi_distill.pipeline.training.binding import plan_all
    from hoi_distill.pipeline.workspace import prepare
    from hoi_distill.stages.derived.image_labels import ImageLabels
    from hoi_distill.stages.derived.triplets import Triplets, drop_report

    if log is not None:
        refuse_unwritable("--log", log)
    workspace = prepare(config, overrides or ())
    plans = plan_all(workspace)
    tables = {name: table_plan for name, table_plan in plans.items() if isinstance(table_plan.node.stage, Triplets)}
    if not tables:
        raise UserError(f"{config}: no table of stage triplets; add one under tables")
    later = {
        name: table_plan for name, table_plan in plans.items() if log and isinstance(table_plan.node.stage, ImageLabels)
    }
    if empty := [name for name, table_plan in {**tables, **later}.items() if table_plan.table is None]:
        raise UserError(f"{config}: tables.{empty[0]} is empty; `{workspace.mending_command()}` fills it")
    cells = {
        name: {column: values.to_pylist() for column, values in table_plan.read(table_plan.rows).items()}
        for name, table_plan in {**tables, **later}.items()
    }
    counts = {name: {column: drop_report(values) for column, values in cells[name].items()} for name in tables}
    if log is not None:
        write_log(log, drops(workspace.image_names(), plans, cells, tables))
    if as_json:
        print(json.dumps(counts, indent=1))
        return
    for name, columns in counts.items():
        for column, report in columns.items():
            print(f"{name}: {column}")
            for reason, count in report.items():
                print(f"{count:>12,}  {reason}")


class DroppedPhrase(TypedDict):
    """A phrase of a teacher's sentence that became no triplet.

    Attributes:
        picture: the image's name.
        table: the table whose stage dropped it.
        question: the question that the sentence answers. None for a table of image labels.
        phrase: the phrase.
        reason: why it was dropped.
    """

    picture: str
    table: str
    question: str | None
    phrase: str
    reason: str


def write_log(path: Path, dropped: Iterable[DroppedPhrase]) -> None:
    """Write dropped phrases, a line of JSON each."""
    lines = [json.dumps(drop) + "\n" for drop in dropped]
    with writing(f"--log {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(lines))


def drops(
    names: Mapping[int, list[str]],
    plans: Mapping[str, TablePlan],
    cells: Mapping[str, Mapping[str, list[Any]]],
    triplets: Container[str],
) -> Iterator[DroppedPhrase]:
    """List every dropped phrase in the order of tables, questions and images, so that equal cells give equal logs.

    Args:
        names: the dataset's names of each row.
        plans: of all tables.
        cells: ``{table: {column: cells}}``, one cell for each row of the table.
        triplets: the names of the tables of triplets. The other tables hold image labels and have no question.
    """
    for table, columns in cells.items():
        for column, values in columns.items():
            question = column if table in triplets else None
            for row, cell in zip(plans[table].rows.tolist(), values, strict=True):
                for name, drop in itertools.product(names[row], () if cell is None else cell["dropped"]):
                    phrase, reason = drop["phrase"], drop["reason"]
                    yield {"picture": name, "table": table, "question": question, "phrase": phrase, "reason": reason}
