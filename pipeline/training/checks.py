"""What is refused of a student's section, and warned of, before a teacher works for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.training.section import labelled_count, student_section
from hoi_distill.pipeline.workspace import Workspace, is_folder
from hoi_distill.stages.student.method import Method
from hoi_distill.storage.errors import UserError, placed


def check_student(workspace: Workspace) -> None:
    """Refuse a ``student:`` section, or a pair teacher's, with a mistake before a teacher has worked for it, and warn of what
    nobody means; a setup without one is fine."""
    from hoi_distill.pipeline.training.binding import as_student, in_its_section

    for name, section in workspace.config.pair_teachers.items():
        where = f"{workspace.path}: pair_teachers.{name}."
        labelled_count(workspace, read_section(section, where)[2], where)
        if not is_folder(workspace):
            with in_its_section(workspace, name):
                _check_section(as_student(workspace, name), where)
    if workspace.config.student is not None and not is_folder(workspace):
        _check_section(workspace, f"{workspace.path}: student.")


def rehearse_student(workspace: Workspace) -> None:
    """:func:`check_student` of what only building the networks tells. It imports torch: for a run that has work to do."""
    from hoi_distill.pipeline.training.binding import as_student, in_its_section

    if is_folder(workspace):
        return
    for name in workspace.config.pair_teachers:
        with in_its_section(workspace, name):
            _rehearse_section(as_student(workspace, name))
    if workspace.config.student is not None:
        _rehearse_section(workspace)


def _rehearse_section(workspace: Workspace) -> None:
    method, config, _ = student_section(workspace)
    with placed(f"{workspace.path}: student."):
        method.rehearse(config, workspace.vocabulary)


def _check_section(workspace: Workspace, named: str) -> None:
    """:func:`check_student` of the section in the student's place; warnings begin with ``named``."""
    from hoi_distill.pipeline.training.agreement import refuse_other_boxes
    from hoi_distill.pipeline.training.annotations import labels_of

    method, config, pictures = student_section(workspace)
    needs, where = method.needs(config, workspace.vocabulary), f"{workspace.path}: student."
    for role in (*needs.train, *needs.test):
        if (name := getattr(pictures.tables, role, role)) not in workspace.nodes:
            raise UserError(
                f"{where}tables.{role}: there is no table {name!r}; there are {', '.join(workspace.nodes) or 'none'}"
            )
    distinct = np.sort(np.unique(workspace.sources["images"].splits["train"], return_index=True)[1])
    labels = labels_of(workspace, pictures, method, needs, distinct)
    refuse_other_boxes(workspace, config, pictures, needs)
    if workspace.limit is not None:  # a trial's pictures say nothing of the whole
        return
    labelled = int(labels.labelled[distinct].sum())
    others = len(distinct) - labelled - int(labels.excluded[distinct].sum())
    unlabelled = min(others, others if pictures.unlabelled is None else pictures.unlabelled) if needs.unlabelled else 0
    for line in doubts(method, config, labelled, unlabelled):
        print(f"hoi-distill: warning: {named}{line}", file=sys.stderr)


def doubts(method: Method, config: Any, labelled: int, unlabelled: int) -> Iterator[str]:
    """Say what is allowed but hardly meant: a teacher whose answers are not used, and a training that skips pictures.

    Args:
        method: the student's method.
        config: the method's parameters.
        labelled: the number of training pictures with annotations that the student learns from.
        unlabelled: the number of those without.

    Yields:
        One line for each doubt. It begins with a key of the section.
    """
    for key, pictures in method.distilled(config, labelled, unlabelled).items():
        if not pictures:
            yield (
                f"{key}; nothing is distilled by it, as none of the {labelled + unlabelled:,} training pictures is one of its "
                "kind, and what the teacher answers for it is in vain; change it, or labelled and unlabelled_per_step"
            )
    if (epochs := method.epochs(config, labelled, unlabelled)) < 1:
        yield (
            f"{'steps' if hasattr(config, 'steps') else 'epochs'}: no more than {epochs:.2g} of an epoch, so that most pictures, "
            "and what a teacher says of them, are never looked at; raise it"
        )
