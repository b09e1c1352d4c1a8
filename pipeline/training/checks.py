"""Checks of the student's and the pair teachers' sections before a teacher works for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.training.agreement import pair_teacher_tables
from hoi_distill.pipeline.training.annotations import labels_of
from hoi_distill.pipeline.training.binding import in_its_section
from hoi_distill.pipeline.training.section import labelled_count, student_section
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.student.method import Method
from hoi_distill.storage.errors import UserError, placed


def check_student(workspace: Workspace) -> None:
    """Check the ``student:`` section and those of pair teachers. A workspace without a student is fine.

    A warning names what is allowed but hardly meant.

    Raises:
        UserError: a section has a mistake.
    """
    for name, section in workspace.config.pair_teachers.items():
        where = f"{workspace.path}: pair_teachers.{name}."
        labelled = read_section(section, where).data.labelled
        labelled_count(labelled, workspace.dataset["train"], where, trial=workspace.limit is not None)
        if workspace.annotated:
            with in_its_section(workspace.path, name):
                _check_section(workspace.as_student(name), where)
    if workspace.config.student is not None and workspace.annotated:
        _check_section(workspace, f"{workspace.path}: student.")


def rehearse_student(workspace: Workspace) -> None:
    """Check what only building the networks tells. It imports torch, so a run does it only if it has work to do.

    Raises:
        UserError: a network cannot be built as its section says.
    """
    if not workspace.annotated:
        return
    for name in workspace.config.pair_teachers:
        with in_its_section(workspace.path, name):
            _rehearse_section(workspace.as_student(name))
    if workspace.config.student is not None:
        _rehearse_section(workspace)


def _rehearse_section(workspace: Workspace) -> None:
    spec = student_section(workspace)
    with placed(f"{workspace.path}: student."):
        spec.method.rehearse(spec.config, workspace.vocabulary)


def _check_section(workspace: Workspace, named: str) -> None:
    """Check the section in the student's place. Warnings begin with ``named``."""
    method, config, data = student_section(workspace)
    needs, where = method.needs(config, workspace.vocabulary), f"{workspace.path}: student."
    for role in (*needs.train, *needs.test):
        if (name := data.tables.name_of(role)) not in workspace.nodes:
            raise UserError(
                f"{where}tables.{role}: there is no table {name!r}; there are {', '.join(workspace.nodes) or 'none'}"
            )
    distinct = workspace.images.distinct_records("train")
    labels = labels_of(workspace, data, method, needs, distinct)
    for teacher in pair_teacher_tables(workspace, data, needs):
        teacher.refuse_other_boxes(config, data)
    if workspace.limit is not None:  # the images of a trial say nothing about the whole
        return
    labelled = int(labels.labelled[distinct].sum())
    others = len(distinct) - labelled - int(labels.excluded[distinct].sum())
    unlabelled = min(others, others if data.unlabelled is None else data.unlabelled) if needs.unlabelled else 0
    config = method.sized(config, labelled, unlabelled)
    for line in doubts(method, config, labelled, unlabelled):
        print(f"hoi-distill: warning: {named}{line}", file=sys.stderr)


def doubts(method: Method, config: Any, labelled: int, unlabelled: int) -> Iterator[str]:
    """Say what is allowed but hardly meant: a teacher whose answers are not used, and a training that skips images.

    Args:
        method: the student's method.
        config: the method's parameters.
        labelled: the number of training images with annotations that the student learns from.
        unlabelled: the number of those without.

    Yields:
        One line for each doubt. It begins with a key of the section.
    """
    for key, images in method.distilled(config, labelled, unlabelled).items():
        if not images:
            yield (
                f"{key}; nothing is distilled by it, as none of the {labelled + unlabelled:,} training images is one of its "
                "kind, and what the teacher answers for it is in vain; change it, or labelled and unlabelled_per_step"
            )
    if (epochs := method.epochs(config, labelled, unlabelled)) < 1:
        yield (
            f"{'steps' if hasattr(config, 'steps') else 'epochs'}: no more than {epochs:.2g} of an epoch, so that most images, "
            "and what a teacher says of them, are never looked at; raise it"
        )
