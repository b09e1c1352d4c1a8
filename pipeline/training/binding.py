"""Planning with pair teachers: a pair teacher's table has a fingerprint once the training of its teacher has one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.pipeline.planning.plan import Reason, TablePlan, plan
from hoi_distill.pipeline.training.request import Resolved, resolve
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.storage.errors import UserError

DONE = "done.json"


def plan_all(workspace: Workspace) -> dict[str, TablePlan]:
    """Plan every table of a workspace, upstream first; see :func:`hoi_distill.pipeline.planning.plan.plan`."""
    trained: dict[str, TeacherTraining | None] = {}

    def bind(node: Node, plans: Mapping[str, TablePlan]) -> Node:
        """The node whose stage knows its teacher's training, as soon as the cells that the training reads are filled."""
        teacher = getattr(node.stage, "teacher", None)
        if teacher is None:
            return node
        if teacher.name not in trained:
            trained[teacher.name] = teacher_training(workspace, teacher.name, plans)
        found = trained[teacher.name]
        if found is None:
            return node
        resolved = node.stage.resolved(found.request.fingerprint, found.folder / "checkpoint")  # type: ignore[attr-defined]
        return replace(node, stage=resolved)

    plans = plan(workspace.nodes, workspace.sources, workspace.cache, bind)
    for table_plan in plans.values():
        teacher = getattr(table_plan.node.stage, "teacher", None)
        if teacher is not None and table_plan.counts["empty"] and not (teacher.checkpoint.parent / DONE).exists():
            first = f"pair teacher {teacher.name} is trained first"
            table_plan.reasons = [Reason(f"{reason.text}; {first}", reason.cells) for reason in table_plan.reasons]
    return plans


def trained_folders(plans: Mapping[str, TablePlan]) -> list[Path]:
    """Where the teachers of these tables are, or will be."""
    teachers = [getattr(table_plan.node.stage, "teacher", None) for table_plan in plans.values()]
    return sorted({each.checkpoint.parent for each in teachers if each is not None and each.checkpoint is not None})


@dataclass(frozen=True)
class TeacherTraining:
    """The training of a pair teacher, done or to be done.

    Attributes:
        workspace: the workspace in which the teacher is the student.
        request: the training.
        folder: where the trained network is, or will be.
    """

    workspace: Workspace
    request: Resolved
    folder: Path


def teacher_training(workspace: Workspace, name: str, plans: Mapping[str, TablePlan]) -> TeacherTraining | None:
    """The training of the pair teacher of this name. None while a table that it reads has empty cells."""
    own = workspace.as_student(name)
    with in_its_section(workspace.path, name):
        method, config, data = student_section(own)
        needs = method.needs(config, workspace.vocabulary)
        roles = [*needs.train, *needs.test, *(["text"] if needs.text and data.tables.text else [])]
        if any(table in plans and not plans[table].complete() for table in map(data.tables.name_of, roles)):
            return None
        request = resolve(own, plans)
    folder = workspace.cache.local / "trained" / f"{request.method.name}-{request.fingerprint[:16]}"
    return TeacherTraining(own, request, folder)


@contextlib.contextmanager
def in_its_section(path: Path, name: str) -> Iterator[None]:
    """Give messages about a pair teacher its own section.

    In :meth:`Workspace.as_student` messages call the section the student's.

    Args:
        path: the configuration's file.
        name: the pair teacher's.
    """
    try:
        yield
    except UserError as error:
        before, _, after = str(error).partition(f"{path}: student.")
        raise UserError(f"{path}: pair_teachers.{name}.{after}" if after else before) from None
