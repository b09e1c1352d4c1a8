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
from hoi_distill.pipeline.workspace import Setup
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.pipeline.training.request import Resolved


DONE = "done.json"


def plan_all(setup: Setup) -> dict[str, TablePlan]:
    """Plan every table of a setup, upstream first; see :func:`hoi_distill.pipeline.planning.plan.plan`."""
    plans = plan(setup.nodes, setup.sources, setup.cache, functools.partial(_bound, setup, {}))
    for made in plans.values():
        teacher = getattr(made.node.stage, "teacher", None)
        if teacher is not None and made.counts["empty"] and not (teacher.checkpoint.parent / DONE).exists():
            first = f"pair teacher {teacher.name} is trained first"
            made.reasons = [Reason(f"{reason.text}; {first}", reason.cells) for reason in made.reasons]
    return plans


def as_student(setup: Setup, name: str) -> Setup:
    """The setup with the section of a pair teacher in the place of the student's."""
    return replace(setup, config=setup.config.model_copy(update={"student": setup.config.pair_teachers[name]}))


def trained_folders(plans: Mapping[str, TablePlan]) -> list[Path]:
    """Where the teachers of these tables are, or will be."""
    teachers = [getattr(made.node.stage, "teacher", None) for made in plans.values()]
    return sorted({each.checkpoint.parent for each in teachers if each is not None and each.checkpoint is not None})


def _bound(setup: Setup, known: dict[str, Any], node: Node, plans: Mapping[str, TablePlan]) -> Node:
    """The node with its teacher's training in its stage, as soon as what that reads is filled."""
    teacher = getattr(node.stage, "teacher", None)
    if teacher is None:
        return node
    if teacher.name not in known:
        resolved = _resolved(setup, teacher.name, plans)
        known[teacher.name] = resolved and (resolved.fingerprint, _folder(setup, resolved) / "checkpoint")
    if known[teacher.name] is None:
        return node
    return replace(node, stage=node.stage.resolved(*known[teacher.name]))  # type: ignore[attr-defined]


def _resolved(setup: Setup, name: str, plans: Mapping[str, TablePlan]) -> Resolved | None:
    """The training of a pair teacher, None while a table that it reads has empty cells."""
    from hoi_distill.pipeline.training.request import resolve
    from hoi_distill.pipeline.training.section import student_section

    own = as_student(setup, name)
    with in_its_section(setup, name):
        method, config, pictures = student_section(own)
        needs = method.needs(config, setup.vocabulary)
        roles = [*needs.train, *needs.test, *(["text"] if needs.text and pictures.tables.text else [])]
        tables = {getattr(pictures.tables, role, role) for role in roles}
        if any(table in plans and not plans[table].complete() for table in tables):
            return None
        return resolve(own, plans)


@contextlib.contextmanager
def in_its_section(setup: Setup, name: str) -> Iterator[None]:
    """What is said of :func:`as_student` calls this section the student's; here it gets its own name."""
    try:
        yield
    except UserError as error:
        before, _, after = str(error).partition(f"{setup.path}: student.")
        raise UserError(f"{setup.path}: pair_teachers.{name}.{after}" if after else before) from None


def _folder(setup: Setup, resolved: Resolved) -> Path:
    return setup.cache.root / "trained" / f"{resolved.method.name}-{resolved.fingerprint[:16]}"
