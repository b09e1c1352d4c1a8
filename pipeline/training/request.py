"""The request of a training: all that it reads is found, and its fingerprint is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hoi_distill.pipeline.config.student import DataSection, Roles
from hoi_distill.pipeline.planning.cells import CellPicker, PlannedCells, failed_rows
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.training.annotations import Labels, labels_of
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.data.sampling.splits import RARE_BELOW
from hoi_distill.stages.student.method import Method, Needs, parameters_of
from hoi_distill.stages.student.student import Columns
from hoi_distill.storage.digests import content_name, fingerprint
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.address import Place


@dataclass(frozen=True)
class Resolved:
    """A student's training, with all that it reads.

    Attributes:
        method: the student's method.
        config: the method's parameters.
        needs: what the method reads with them.
        data: which images, annotations and tables the student gets.
        labels: which annotations the student sees.
        records: ``int64 [N]`` records of the training split.
        labelled: ``bool [N]``, which of them have annotations.
        tested: ``int64 [M]`` records of the test split that can be looked at; the others count as without detections.
        left_out: ``{reason: images}`` of the training images that the student does not get.
        train: the cells that training reads, by role.
        test: the cells that prediction reads, by role.
        text: the text embeddings; None where the method reads none.
        held_out: ``int64 [V]`` records of the training split by which the best student is chosen.
        validation: the cells that prediction reads of these, by role.
        fingerprint: of the trained weights.
        evaluation: the fingerprint of the evaluation.
    """

    method: Method
    config: Any
    needs: Needs
    data: DataSection
    labels: Labels
    records: np.ndarray
    labelled: np.ndarray
    tested: np.ndarray
    left_out: dict[str, int]
    train: dict[str, PlannedCells]
    test: dict[str, PlannedCells]
    text: PlannedCells | None
    held_out: np.ndarray
    validation: dict[str, PlannedCells]
    fingerprint: str
    evaluation: str

    def tables(self) -> dict[str, PlannedCells]:
        """The cells that training or prediction reads, by role."""
        return {**self.test, **self.train, **({"text": self.text} if self.text else {})}

    def folders(self) -> list[Place]:
        """The folders of the tables that training or prediction reads."""
        read = [
            *self.train.values(),
            *self.test.values(),
            *self.validation.values(),
            *([self.text] if self.text else []),
        ]
        return sorted({planned.table.dir for planned in read}, key=str)


class Chosen(NamedTuple):
    """What a student's section chooses, whatever the cache holds.

    Attributes:
        method: the student's method.
        config: the method's parameters.
        data: which images, annotations and tables the student gets.
        needs: what the method reads.
        labels: what training sees of the annotations.
        records: int64 ``[N]``, the training images, as records of the training split.
        labelled: bool ``[N]``.
    """

    method: Method
    config: Any
    data: DataSection
    needs: Needs
    labels: Labels
    records: np.ndarray
    labelled: np.ndarray


def chosen_of(workspace: Workspace) -> Chosen:
    """Read the student's section and choose its images.

    Raises:
        UserError: the section has a mistake.
    """
    method, config, data = student_section(workspace)
    needs = method.needs(config, workspace.vocabulary)
    distinct = workspace.images.distinct_records("train")
    labels = labels_of(workspace, data, method, needs, distinct)
    records, labelled = chosen_records(labels, distinct, data.unlabelled if needs.unlabelled else 0)
    return Chosen(method, config, data, needs, labels, records, labelled)


def resolve(workspace: Workspace, plans: Mapping[str, TablePlan]) -> Resolved:
    """Find the images, tables and cells that this student reads, and the fingerprint that they add up to.

    Raises:
        UserError: the section has a mistake, a cell that the student needs is empty, or no training image is left.
    """
    method, config, data, needs, labels, records, labelled = chosen_of(workspace)
    images = workspace.images
    failing = [plans[name] for role in needs.failures if (name := data.tables.name_of(role)) in plans]
    sound, reasons = _without_failures(failing, images.splits["train"][records])
    records, labelled = records[sound], labelled[sound]
    left_out = Counter(labels.left_out)
    left_out.update(reasons)
    tested, _ = _without_failures(failing, images.splits["test"])
    sound, _ = _without_failures(failing, images.splits["train"][labels.held_out])
    held_out = labels.held_out[sound]
    if data.labelled != 0 and not labelled.any():
        raise UserError(f"{workspace.path}: student.labelled: every labelled image is a recorded failure")
    if not len(records):
        raise UserError(
            f"{workspace.path}: student.unlabelled: no training image is left; every one is a recorded failure"
        )

    train_rows, test_rows = images.splits["train"][records], images.splits["test"][tested]
    picker = CellPicker(workspace.path, plans, workspace.mending_command())
    train = _cells(picker, data.tables, needs, roles=needs.train, rows=train_rows)
    test = _cells(picker, data.tables, needs, roles=needs.test, rows=test_rows)
    validation = (
        _cells(picker, data.tables, needs, roles=needs.test, rows=images.splits["train"][held_out])
        if len(held_out)
        else {}
    )
    table = data.tables.text if needs.text else None
    text = picker.pick(table, np.arange(len(workspace.sources["texts"].ids))) if table else None

    config = method.sized(config, int(labelled.sum()), int((~labelled).sum()))
    annotations = labels.annotations.digests()
    read = np.ones(len(records), bool) if needs.all_annotations else labelled
    training = {
        "method": method.name,
        "version": method.version,
        "student": parameters_of(config, method.bookkeeping),
        "rows": digest_of(images.ids[train_rows].tobytes() + labelled.tobytes()),
        "annotations": digest_of(annotations[records[read]].tobytes()),
        "vocabulary": workspace.vocabulary.digest(),
        "tables": {r: [p.table.fingerprint, p.cells.columns, p.values] for r, p in train.items()},
        "text": None if text is None else [text.table.fingerprint, text.values],
    }
    if labels.split is not None:
        training["unseen"] = digest_of(labels.split.unseen.tobytes())
    if labels.dropped is not None:
        training["dropped"] = digest_of(labels.dropped.digests()[records[labelled]].tobytes())
    if len(held_out):
        training["validation"] = {
            "rows": digest_of(images.ids[images.splits["train"][held_out]].tobytes()),
            "annotations": digest_of(annotations[held_out].tobytes()),
            "tables": {role: [p.table.fingerprint, p.values] for role, p in validation.items()},
            "every": data.validate_every,
            "patience": data.patience,
        }
    if needs.files:
        training["files"] = [digest.tobytes().hex() for digest in workspace.cache.memory.digests(needs.files)]
    trained = fingerprint(training)
    evaluated = {
        "training": trained,
        "rows": digest_of(images.ids[test_rows].tobytes()),
        "annotations": digest_of(workspace.dataset["test"].digests().tobytes()),
        "tables": {role: [p.table.fingerprint, p.values] for role, p in test.items()},
    }
    if data.labelled == 0 or labels.split is not None or labels.few is not None:
        evaluated["rare"] = digest_of(labels.before.tobytes())  # said by annotations that training does not see
    if data.rare_below != RARE_BELOW:
        evaluated["rare_below"] = str(data.rare_below)
    return Resolved(
        method, config, needs, data, labels, records, labelled, tested, dict(left_out), train, test, text, held_out,
        validation, trained, fingerprint(evaluated),
    )  # fmt: skip


def digest_of(data: bytes) -> str:
    """32 hex digits that name some bytes."""
    return content_name(data, 64)[:32]


def chosen_records(labels: Labels, distinct: np.ndarray, unlabelled: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The records that a training looks at, before recorded failures are left out.

    Args:
        labels: which annotations it sees.
        distinct: ``int64 [P]``, the first record of each row.
        unlabelled: how many records without annotations it takes at most. None: all.

    Returns:
        ``(records, labelled)`` as in :class:`Resolved`.
    """
    records = distinct[~labels.excluded[distinct]]
    labelled = labels.labelled[records]
    keep = labelled.copy()
    keep[np.flatnonzero(~labelled)[:unlabelled]] = True
    return records[keep], labelled[keep]


def _without_failures(table_plans: Iterable[TablePlan], rows: np.ndarray) -> tuple[np.ndarray, Counter[str]]:
    """Leave out the rows that are recorded failures in one of some tables.

    Args:
        table_plans: the tables.
        rows: ``int64 [r]`` rows of their source.

    Returns:
        ``int64 [s]``, where the other rows stand in ``rows``, and how many rows each reason leaves out.
    """
    kept, reasons = np.arange(len(rows)), Counter[str]()
    for table_plan in table_plans:
        failed = failed_rows(table_plan, rows[kept])
        reasons.update(failed.values())
        kept = kept[~np.isin(np.arange(len(kept)), list(failed))]
    return kept, reasons


def _cells(
    picker: CellPicker, tables: Roles, needs: Needs, *, roles: Mapping[str, Columns], rows: np.ndarray
) -> dict[str, PlannedCells]:
    """The cells of each role's table.

    Args:
        picker: picks them.
        tables: which table plays which role.
        needs: what the method reads.
        roles: the columns that are read of each role's table. None: all.
        rows: ``int64 [r]`` rows of the images.
    """
    cells = {}
    for role, wanted in roles.items():
        name, columns = tables.name_of(role), wanted
        if role in needs.where_asked and wanted is not None:
            have = set(picker.columns(name))
            columns = tuple(column for column in wanted if column in have) or wanted
        cells[role] = picker.pick(name, rows, columns)
    return cells
