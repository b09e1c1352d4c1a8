"""A student's training with nothing left to look up, and the fingerprints that its pictures, labels and cells add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hoi_distill.pipeline.config.student import Pictures
from hoi_distill.pipeline.planning.cells import PlannedCells, columns_of, failed_rows, planned_cells
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.training.annotations import Labels, labels_of
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.student.method import Method, Needs, parameters_of
from hoi_distill.stages.student.student import Columns
from hoi_distill.storage.digests import content_name, fingerprint
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class Resolved:
    """A student's training with nothing left to look up.

    Attributes:
        method: the student's method.
        config: the method's parameters.
        needs: what the method reads with them.
        pictures: the keys of the student's section that choose pictures and tables.
        labels: which annotations the student sees.
        records: ``int64 [N]`` records of the training split.
        labelled: ``bool [N]``, which of them have annotations.
        tested: ``int64 [M]`` records of the test split that can be looked at; the others count as without detections.
        left_out: ``{reason: pictures}`` of the training pictures that are recorded failures.
        train: the cells that training reads, by role.
        test: the cells that prediction reads, by role.
        text: the text embeddings; None where the method reads none.
        fingerprint: of the trained weights.
        evaluation: the fingerprint of the figures.
    """

    method: Method
    config: Any
    needs: Needs
    pictures: Pictures
    labels: Labels
    records: np.ndarray
    labelled: np.ndarray
    tested: np.ndarray
    left_out: dict[str, int]
    train: dict[str, PlannedCells]
    test: dict[str, PlannedCells]
    text: PlannedCells | None
    fingerprint: str
    evaluation: str


def resolve(workspace: Workspace, plans: Mapping[str, TablePlan]) -> Resolved:
    """Find the pictures, tables and cells that this student reads, and the fingerprint that they add up to."""
    method, config, pictures = student_section(workspace)
    needs = method.needs(config, workspace.vocabulary)
    test, source = workspace.dataset["test"], workspace.sources["images"]
    distinct = np.sort(np.unique(source.splits["train"], return_index=True)[1])  # one record a row
    labels = labels_of(workspace, pictures, method, needs, distinct)
    records, labelled, tested, left_out = _pictures(workspace, plans, pictures, needs, labels=labels, distinct=distinct)

    train_rows, test_rows = source.splits["train"][records], source.splits["test"][tested]
    train_parts = _parts(workspace, plans, pictures, needs, wanted=needs.train, rows=train_rows)
    test_parts = _parts(workspace, plans, pictures, needs, wanted=needs.test, rows=test_rows)
    texts, table = workspace.sources["texts"], pictures.tables.text if needs.text else None
    text = planned_cells(workspace, plans, table, None, np.arange(len(texts.ids))) if table else None

    annotations = labels.annotations.digests()
    read = np.ones(len(records), bool) if needs.all_annotations else labelled
    training = {
        "method": method.name,
        "version": method.version,
        "student": parameters_of(config, method.bookkeeping),
        "rows": _digest(source.ids[train_rows].tobytes() + labelled.tobytes()),
        "annotations": _digest(annotations[records[read]].tobytes()),
        "vocabulary": workspace.vocabulary.digest(),
        "tables": {r: [p.table.fingerprint, p.cells.columns, p.values] for r, p in train_parts.items()},
        "text": None if text is None else [text.table.fingerprint, text.values],
    }
    if labels.split is not None:
        training["unseen"] = _digest(labels.split.unseen.tobytes())
    if labels.dropped is not None:
        training["dropped"] = _digest(labels.dropped.digests()[records[labelled]].tobytes())
    if needs.files:
        training["files"] = [digest.tobytes().hex() for digest in workspace.cache.memory.digests(needs.files)]
    trained = fingerprint(training)
    evaluated = {
        "training": trained,
        "rows": _digest(source.ids[test_rows].tobytes()),
        "annotations": _digest(test.digests().tobytes()),
        "tables": {role: [p.table.fingerprint, p.values] for role, p in test_parts.items()},
    }
    if pictures.labelled == 0 or labels.split is not None or labels.few is not None:
        evaluated["rare"] = _digest(labels.before.tobytes())  # said by annotations that training does not see
    return Resolved(
        method, config, needs, pictures, labels, records, labelled, tested, left_out, train_parts, test_parts, text,
        trained, fingerprint(evaluated),
    )  # fmt: skip


def _digest(data: bytes) -> str:
    return content_name(data, 64)[:32]


def _pictures(
    workspace: Workspace,
    plans: Mapping[str, TablePlan],
    pictures: Pictures,
    needs: Needs,
    *,
    labels: Labels,
    distinct: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """``records``, ``labelled``, ``tested`` and ``left_out`` of :class:`Resolved`."""
    source = workspace.sources["images"]
    records = distinct[~labels.excluded[distinct]]
    labelled = labels.labelled[records]
    keep = labelled.copy()
    if needs.unlabelled:
        others = np.flatnonzero(~labelled)
        keep[others[: pictures.unlabelled]] = True
    records, labelled = records[keep], labelled[keep]
    left_out = Counter(labels.left_out)
    tested = np.arange(len(workspace.dataset["test"].path))
    for role in needs.failures:
        name = getattr(pictures.tables, role)
        if name not in plans:
            continue
        bad = failed_rows(plans[name], source.splits["train"][records])
        left_out.update(bad.values())
        sound = ~np.isin(np.arange(len(records)), list(bad))
        records, labelled = records[sound], labelled[sound]
        bad = failed_rows(plans[name], source.splits["test"][tested])
        tested = tested[~np.isin(np.arange(len(tested)), list(bad))]
    if pictures.labelled != 0 and not labelled.any():
        raise UserError(f"{workspace.path}: student.labelled: every labelled picture is a recorded failure")
    if not len(records):
        raise UserError(
            f"{workspace.path}: student.unlabelled: no training picture is left; every one is a recorded failure"
        )
    return records, labelled, tested, dict(left_out)


def _parts(
    workspace: Workspace,
    plans: Mapping[str, TablePlan],
    pictures: Pictures,
    needs: Needs,
    *,
    wanted: Mapping[str, Columns],
    rows: np.ndarray,
) -> dict[str, PlannedCells]:
    """The cells of some roles' tables. What is no role is a table's own name."""
    parts = {}
    for role, columns in wanted.items():
        name = getattr(pictures.tables, role, role)
        asked = columns
        if role in needs.where_asked and columns is not None:
            have = set(columns_of(workspace, plans, name))
            asked = tuple(column for column in columns if column in have) or columns
        parts[role] = planned_cells(workspace, plans, name, asked, rows)
    return parts
