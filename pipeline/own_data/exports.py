"""A table of the cache as a file for other programs, and exported boxes as a file that the project reads.

Parquet has a row for each image (or text): ``name``, ``row`` (the digest's hex digits) and the table's columns. ``.npy`` has an
array ``[rows, columns, ...]``, with names and columns in a JSON file beside it. ``.tar`` is a WebDataset: for each row
``<number>.json`` with its name and values, or, of feature maps, ``<number>.<column>.npy``.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.stages.stage import TensorOutput
from hoi_distill.storage.errors import UserError, did_you_mean
from hoi_distill.storage.files.atomic import atomic_write, write_atomically
from hoi_distill.storage.files.writable import refuse_unwritable, writing

CHUNK = 256
"""Rows in memory at a time."""
META = b"hoi-distill"

Chunk = tuple[list[str], list[str], Mapping[str, Any]]
"""Names, digests and ``{column: values}`` of some rows."""


def export_table(workspace: Workspace, plans: Mapping[str, TablePlan], name: str, out: Path) -> int:
    """Write a table to a file, whose ending chooses the form.

    A recorded failure, and a cell that is not wanted, is null in Parquet and JSON and NaN in an array.

    Args:
        workspace: the configuration.
        plans: of all tables.
        name: the table's name in the configuration.
        out: the file: ``.parquet``, ``.npy`` or ``.tar``.

    Returns:
        The number of rows.

    Raises:
        UserError: there is no such table, it has empty cells, or its cells do not fit the form.
    """
    if name not in plans:
        near = did_you_mean(name, plans) or f"; there are {', '.join(plans)}"
        raise UserError(f"{workspace.path}: tables: there is no {name!r}{near}")
    if out.suffix not in WRITERS:
        raise UserError(f"--out {out}: the ending chooses the form; there are {', '.join(WRITERS)}")
    refuse_unwritable("--out", out)
    table_plan = plans[name]
    if table_plan.table is None or not table_plan.complete():
        empty = table_plan.counts["empty"] + table_plan.counts.get("unknown", 0)
        raise UserError(
            f"{workspace.path}: tables.{name}: {empty:,} cells are empty; fill them: {workspace.mending_command()}"
        )
    facts = {
        "table": name,
        "fingerprint": table_plan.table.fingerprint,
        "record": table_plan.table.record,
        "objects": list(workspace.vocabulary.objects),
    }
    with writing(f"--out {out}"):
        WRITERS[out.suffix](workspace, table_plan, out, facts)
    return len(table_plan.rows)


def chunks(workspace: Workspace, table_plan: TablePlan) -> Iterator[Chunk]:
    """All rows of a table, :data:`CHUNK` at a time."""
    keys = workspace.sources[table_plan.node.stage.source].keys
    for start in range(0, len(table_plan.rows), CHUNK):
        rows = table_plan.rows[start : start + CHUNK]
        digests = [digest.tobytes().hex() for digest in table_plan.cells_of(rows).row_ids]
        yield [keys[row] for row in rows.tolist()], digests, table_plan.read(rows)


def _parquet(workspace: Workspace, table_plan: TablePlan, out: Path, facts: Mapping[str, Any]) -> None:
    if isinstance(table_plan.node.stage.output, TensorOutput):
        raise UserError(f"--out {out}: feature maps are arrays; write .npy or .tar")
    writer: pq.ParquetWriter | None = None
    with atomic_write(out) as file:
        for names, digests, values in chunks(workspace, table_plan):
            table = pa.table({"name": names, "row": digests, **values})
            table = table.replace_schema_metadata({META: json.dumps(facts)})
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _npy(workspace: Workspace, table_plan: TablePlan, out: Path, facts: Mapping[str, Any]) -> None:
    columns, names = table_plan.columns, []  # type: tuple[str, ...], list[str]
    with atomic_write(out) as file:
        begun = False
        for of_chunk, _, values in chunks(workspace, table_plan):
            block = np.stack([_numbers(values[column], table_plan, out) for column in columns], axis=1)
            if not begun:
                shape = (len(table_plan.rows), *block.shape[1:])
                np.lib.format.write_array_header_2_0(
                    file, {"descr": block.dtype.str, "fortran_order": False, "shape": shape}
                )
                begun = True
            file.write(np.ascontiguousarray(block).tobytes())
            names += of_chunk
    said = {**facts, "columns": list(columns), "names": names}
    write_atomically(out.with_name(f"{out.name}.json"), json.dumps(said, indent=1) + "\n")


def _numbers(values: Any, table_plan: TablePlan, out: Path) -> np.ndarray:
    """The cells of one column as an array ``[rows, ...]``.

    Raises:
        UserError: they are no numbers, or not equally many each.
    """
    if isinstance(values, np.ndarray):
        return values
    shape: tuple[int, ...] = ()
    kind = values.type  # and not the cells: a chunk may have none
    while pa.types.is_fixed_size_list(kind):
        shape, kind = (*shape, kind.list_size), kind.value_type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UserError(
            f"--out {out}: a cell of {table_plan.node.name} is a {values.type}, no array; write .parquet or .tar"
        )
    none = np.full(shape, np.nan, np.float32)
    return np.stack([none if cell is None else np.asarray(cell, np.float32) for cell in values.to_pylist()])


def _tar(workspace: Workspace, table_plan: TablePlan, out: Path, facts: Mapping[str, Any]) -> None:
    number = 0
    with atomic_write(out) as file, tarfile.open(fileobj=file, mode="w") as tar:
        for names, digests, values in chunks(workspace, table_plan):
            arrays = {column: of for column, of in values.items() if isinstance(of, np.ndarray)}
            others = {column: of.to_pylist() for column, of in values.items() if column not in arrays}
            for place, (name, digest) in enumerate(zip(names, digests, strict=True)):
                own = {column: cells[place] for column, cells in others.items()}
                said = {
                    "name": name,
                    "row": digest,
                    "fingerprint": facts["fingerprint"],
                    **({"values": own} if own else {}),
                }
                _add(tar, f"{number:08d}.json", json.dumps(said).encode())
                for column, array in arrays.items():
                    if not np.isnan(array[place]).all():
                        buffer = io.BytesIO()
                        np.save(buffer, array[place])
                        _add(tar, f"{number:08d}.{column}.npy", buffer.getvalue())
                number += 1


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


WRITERS: Mapping[str, Callable[[Workspace, TablePlan, Path, Mapping[str, Any]], None]] = {
    ".parquet": _parquet, ".npy": _npy, ".tar": _tar,
}  # fmt: skip
"""What writes each form, by the file's ending."""


def boxes_from_parquet(path: Path, out: Path) -> int:
    """Write exported detections as COCO results, which ``stage: detections_file`` reads.

    Args:
        path: a Parquet file of :func:`export_table`, perhaps changed by another program.
        out: the JSON file.

    Returns:
        The number of boxes.

    Raises:
        UserError: the file is none of exported detections, or a row of it cannot be used.
    """
    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[META])
        objects = tuple(facts["objects"])
        rows = zip(table["name"].to_pylist(), table["value"].to_pylist(), strict=True)
        ids = COCO_CATEGORY_IDS if objects == COCO_OBJECTS else range(1, len(objects) + 1)
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: no exported table of detections ({error}); write one: hoi-distill export-table"
        ) from None
    entries = []
    for number, (name, value) in enumerate(rows, start=1):
        try:
            for (x1, y1, x2, y2), score, label in zip(*(value[key] for key in KEYS), strict=True) if value else ():
                box = [x1, y1, x2 - x1, y2 - y1]
                entries.append({"image_id": name, "category_id": ids[label], "bbox": box, "score": score})
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(
                f"{path}: row {number} ({name}): not boxes with scores and labels ({error}); correct it"
            ) from None
    with writing(f"--out {out}"):
        write_atomically(out, "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n")
    return len(entries)


KEYS = ("boxes", "scores", "labels")
