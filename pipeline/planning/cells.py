"""The cells of the cache that a training reads: found among the planned tables, and refused where they are missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hoi_distill.pipeline.planning.plan import TablePlan, align
from hoi_distill.pipeline.workspace import Setup
from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.storage.stream import StreamSpec


@dataclass(frozen=True)
class Part:
    """The cells of one table that a training or an evaluation reads.

    Attributes:
        columns: the wanted columns.
        inputs: the input digests of the asked rows, as :class:`hoi_distill.storage.stream.TableRef` takes them; so is ``wanted``.
        values: digest over the value digests of all wanted cells, failures included.
    """

    role: str
    made: TablePlan
    columns: tuple[str, ...]
    inputs: np.ndarray | None
    values: str
    wanted: np.ndarray | None = None


def failed_rows(setup: Setup, made: TablePlan, rows: np.ndarray, name: str) -> dict[int, str]:
    """``{position: "table: reason"}`` of the rows in which a table's cell is a recorded failure."""
    if made.table is None or made.state is None or not made.counts["failed"]:
        return {}
    source = setup.sources["images"]
    where = align(made.rows, rows, len(source.ids))
    inputs = None if made.inputs is None else made.inputs[where]
    found = made.table.failures(source.ids[rows], made.columns, inputs)
    return {row: f"{name}: {reason}" for (row, _), reason in found.items()}


def columns_of(setup: Setup, plans: Mapping[str, TablePlan], name: str) -> tuple[str, ...]:
    if name not in plans:
        raise UserError(f"{setup.path}: student.tables: there is no table {name!r}; there are {', '.join(plans)}")
    return plans[name].columns


def part_of(
    setup: Setup,
    plans: Mapping[str, TablePlan],
    name: str,
    columns: Sequence[str] | None,
    rows: np.ndarray,
    source: str,
) -> Part:
    """Some columns of one table; every cell that its stage wants has to be filled or a recorded failure."""
    have = columns_of(setup, plans, name)
    made = plans[name]
    chosen = have if columns is None else tuple(columns)
    if missing := [column for column in chosen if column not in have]:
        raise UserError(f"{setup.path}: tables.{name}.columns: the student needs {missing[0]!r}; add it")
    mend = f"fill it with: {setup.mending_command()}"
    if made.table is None or made.state is None:
        raise UserError(f"table {name}: no cell is filled; {mend}")
    where = align(made.rows, rows, len(setup.sources[source].ids))
    if (where < 0).any():
        raise UserError(f"{setup.path}: tables.{name}.splits: does not cover the pictures that the student needs")
    positions = [have.index(column) for column in chosen]
    inputs = None
    if made.inputs is not None:
        inputs = made.inputs[where] if made.inputs.ndim == 1 else made.inputs[where][:, positions]
    empty = made.state.empty(where)[:, positions]
    wanted = None if made.wanted is None else made.wanted[where][:, positions]
    needed = empty.size if wanted is None else int(wanted.sum())
    if wanted is not None:
        empty &= wanted
    if empty.any():
        raise UserError(
            f"table {name}: {int(empty.sum()):,} of {needed:,} cells that the student needs are empty; {mend}"
        )
    digests = made.table.value_digests(setup.sources[source].ids[rows], chosen, inputs)
    if wanted is not None:
        digests[~wanted] = 0  # what happens to be filled there is not read either
    values = hashlib.blake2b(np.ascontiguousarray(digests).tobytes()).hexdigest()[:32]
    return Part(name, made, chosen, inputs, values, wanted)


def fingerprint_of(part: Part) -> str:
    assert part.made.table is not None
    return part.made.table.fingerprint


def stream_spec(setup: Setup, rows: np.ndarray, parts: Mapping[str, Part]) -> StreamSpec:
    """The plain description of what to stream: rows, tables, columns."""
    from hoi_distill.storage.stream import StreamSpec, TableRef

    tables = {}
    for role, part in parts.items():
        assert part.made.table is not None
        tables[role] = TableRef(str(part.made.table.dir), part.columns, part.inputs, fingerprint_of(part), part.wanted)
    return StreamSpec(setup.sources["images"].ids[rows], tables, setup.mending_command())


def read_text(setup: Setup, part: Part) -> np.ndarray:
    """``float32 [H, D]`` embeddings of the vocabulary's prompts."""
    assert part.made.table is not None
    texts = setup.sources["texts"]
    place = {text: i for i, text in enumerate(texts.keys)}
    rows = texts.ids[[place[prompt] for prompt in setup.vocabulary.prompts()]]
    values = part.made.table.read(rows, part.columns)[part.columns[0]]
    if values.null_count:
        failed = setup.vocabulary.prompts()[values.is_null().index(True).as_py()]
        raise UserError(
            f"table {part.role}: the prompt {failed!r} is a recorded failure; see hoi-distill run --retry-failed"
        )
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(rows), -1)


def identity_of(setup: Setup, part: Part) -> dict[str, Any]:
    """Who gave the student this table: enough to build the stage again, and to refuse another one."""
    table = setup.config.tables[part.role]
    return {
        "fingerprint": fingerprint_of(part),
        "record": fingerprint_record(part.made.node.stage),
        "stage": table.stage,
        "parameters": json.loads(json.dumps(table.parameters(), default=str)),
    }
