"""Planning where tables belong to pair teachers: such a table has a fingerprint once its teacher's training has one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_distill.pipeline.graph.nodes import Node
from hoi_distill.pipeline.planning.plan import Reason, TablePlan, plan
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.pipeline.training.request import Resolved


DONE = "done.json"


def plan_all(workspace: Workspace) -> dict[str, TablePlan]:
    """Plan every table of a setup, upstream first; see :func:`hoi_distill.pipeline.planning.plan.plan`."""
    plans = plan(workspace.nodes, workspace.sources, workspace.cache, functools.partial(_bound, workspace, {}))
    for table_plan in plans.values():
        teacher = getattr(table_plan.node.stage, "teacher", None)
        if teacher is not None and table_plan.counts["empty"] and not (teacher.checkpoint.parent / DONE).exists():
            first = f"pair teacher {teacher.name} is trained first"
            table_plan.reasons = [Reason(f"{reason.text}; {first}", reason.cells) for reason in table_plan.reasons]
    return plans


def as_student(workspace: Workspace, name: str) -> Workspace:
    """The setup with the section of a pair teacher in the place of the student's."""
    return replace(
        workspace, config=workspace.config.model_copy(update={"student": workspace.config.pair_teachers[name]})
    )


def trained_folders(plans: Mapping[str, TablePlan]) -> list[Path]:
    """Where the teachers of these tables are, or will be."""
    teachers = [getattr(table_plan.node.stage, "teacher", None) for table_plan in plans.values()]
    return sorted({each.checkpoint.parent for each in teachers if each is not None and each.checkpoint is not None})


def _bound(workspace: Workspace, known: dict[str, Any], node: Node, plans: Mapping[str, TablePlan]) -> Node:
    """The node with its teacher's training in its stage, as soon as what that reads is filled."""
    teacher = getattr(node.stage, "teacher", None)
    if teacher is None:
        return node
    if teacher.name not in known:
        resolved = _resolved(workspace, teacher.name, plans)
        known[teacher.name] = resolved and (resolved.fingerprint, _folder(workspace, resolved) / "checkpoint")
    if known[teacher.name] is None:
        return node
    return replace(node, stage=node.stage.resolved(*known[teacher.name]))  # type: ignore[attr-defined]


def _resolved(workspace: Workspace, name: str, plans: Mapping[str, TablePlan]) -> Resolved | None:
    """The training of a pair teacher, None while a table that it reads has empty cells."""
    from hoi_distill.pipeline.training.request import resolve
    from hoi_distill.pipeline.training.section import student_section

    own = as_student(workspace, name)
    with in_its_section(workspace, name):
        method, config, pictures = student_section(own)
        needs = method.needs(config, workspace.vocabulary)
        roles = [*needs.train, *needs.test, *(["text"] if needs.text and pictures.tables.text else [])]
        tables = {getattr(pictures.tables, role, role) for role in roles}
        if any(table in plans and not plans[table].complete() for table in tables):
            return None
        return resolve(own, plans)


@contextlib.contextmanager
def in_its_section(workspace: Workspace, name: str) -> Iterator[None]:
    """What is said of :func:`as_student` calls this section the student's; here it gets its own name."""
    try:
        yield
    except UserError as error:
        before, _, after = str(error).partition(f"{workspace.path}: student.")
        raise UserError(f"{workspace.path}: pair_teachers.{name}.{after}" if after else before) from None


def _folder(workspace: Workspace, resolved: Resolved) -> Path:
    return workspace.cache.root / "trained" / f"{resolved.method.name}-{resolved.fingerprint[:16]}"
