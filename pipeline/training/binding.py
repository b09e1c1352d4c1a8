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
from hoi_distill.storage.files.address import ObjectPath, Place
from hoi_distill.storage.shared_folder import is_shared

DONE = "done.json"
TRAINED = "trained"


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
        resolved = node.stage.resolved(found.request.fingerprint, found.checkpoint)  # type: ignore[attr-defined]
        return replace(node, stage=resolved)

    plans = plan(workspace.nodes, workspace.sources, workspace.cache, bind)
    for table_plan in plans.values():
        teacher = getattr(table_plan.node.stage, "teacher", None)
        if teacher is not None and table_plan.counts["empty"] and not _is_there(teacher.checkpoint):
            first = f"pair teacher {teacher.name} is trained first"
            table_plan.reasons = [Reason(f"{reason.text}; {first}", reason.cells) for reason in table_plan.reasons]
    return plans


def _is_there(checkpoint: Place) -> bool:
    """Whether a teacher is trained."""
    return is_shared(checkpoint) if isinstance(checkpoint, ObjectPath) else (checkpoint.parent / DONE).exists()


def trained_folders(plans: Mapping[str, TablePlan]) -> list[Place]:
    """Where the teachers of these tables are, or will be."""
    teachers = [getattr(table_plan.node.stage, "teacher", None) for table_plan in plans.values()]
    return sorted({each.checkpoint.parent for each in teachers if each is not None and each.checkpoint is not None})


@dataclass(frozen=True)
class TeacherTraining:
    """The training of a pair teacher, done or to be done.

    Attributes:
        workspace: the workspace in which the teacher is the student.
        request: the training.
        folder: where it is trained.
        checkpoint: where the trained network is, or will be; in the object store that the cache lies in.
    """

    workspace: Workspace
    request: Resolved
    folder: Path
    checkpoint: Place


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
    name = f"{request.method.name}-{request.fingerprint[:16]}"
    cache = workspace.cache
    return TeacherTraining(own, request, cache.local / TRAINED / name, cache.root / TRAINED / name / "checkpoint")


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
