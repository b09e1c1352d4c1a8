"""Phase-1 teachers: networks that are trained on annotations as part of filling the cache, so that tables below can hold
what they answer (LINK, section 3).

A configuration names them under ``pair_teachers:``, each a section like ``student:``. A table whose stage has a
``teacher`` belongs to one of them. What such a teacher is depends on its training, and that on the cells it reads, so its
tables have a fingerprint only once those are filled: until then they are planned as unknown.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hoi_distill.pipeline.graph import Node
from hoi_distill.pipeline.plan import Reason, TablePlan, plan
from hoi_distill.pipeline.setup import Setup
from hoi_distill.pipeline.student_section import Pictures, read_section
from hoi_distill.pipeline.watch import Watch
from hoi_distill.stages.student.method import Needs
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.lock import alone

if TYPE_CHECKING:
    from hoi_distill.pipeline.resolve import Resolved

DONE = "done.json"


def plan_all(setup: Setup) -> dict[str, TablePlan]:
    """Plan every table of a setup, upstream first; see :func:`hoi_distill.pipeline.plan.plan`."""
    plans = plan(setup.nodes, setup.sources, setup.cache, functools.partial(_bound, setup, {}))
    for made in plans.values():
        teacher = getattr(made.node.stage, "teacher", None)
        if teacher is not None and made.counts["empty"] and not (teacher.checkpoint.parent / DONE).exists():
            first = f"pair teacher {teacher.name} is trained first"
            made.reasons = [Reason(f"{reason.text}; {first}", reason.cells) for reason in made.reasons]
    return plans


def train_missing(setup: Setup, plans: Mapping[str, TablePlan], names: Iterable[str], stop: threading.Event) -> None:
    """Train the teachers that these tables need and that are not trained yet. A killed training goes on where it was; of
    several runs one trains, and the others wait for it.

    Raises:
        KeyboardInterrupt: ``stop`` was set; the training's state is saved.
    """
    from hoi_distill.pipeline.training import is_trained, trained_student

    for name in dict.fromkeys(t.name for table in names if (t := getattr(plans[table].node.stage, "teacher", None))):
        resolved = _resolved(setup, name, plans)
        assert resolved is not None
        folder = _folder(setup, name, resolved)
        used = sorted({part.made.table.dir for part in resolved.train.values() if part.made.table is not None})
        with (
            setup.cache.lease("reader", [*used, folder]),
            alone(setup.cache.root / "leases" / f"{folder.name}.lock", stop, functools.partial(_wait, name, folder)),
        ):
            if not is_trained(folder, resolved.fingerprint) or trained_student(folder) is None:
                _train(setup, name, resolved, folder, stop)


def _wait(name: str, folder: Path) -> None:
    print(f"Another run is training pair teacher {name} ({folder.name}); waiting for it.")


def _train(setup: Setup, name: str, resolved: Resolved, folder: Path, stop: threading.Event) -> None:
    from hoi_distill.pipeline.training import fit, on_disk

    own = as_student(setup, name)
    named = replace(own, config=own.config.model_copy(update={"name": f"pair teacher {name}"}))
    with on_disk(folder), Watch(f"pair teacher {name}") as watch:
        folder.mkdir(parents=True, exist_ok=True)
        fit(named, resolved, folder, stop, watch)


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
        known[teacher.name] = resolved and (resolved.fingerprint, _folder(setup, teacher.name, resolved) / "checkpoint")
    if known[teacher.name] is None:
        return node
    return replace(node, stage=node.stage.bound(*known[teacher.name]))  # type: ignore[attr-defined]


def _resolved(setup: Setup, name: str, plans: Mapping[str, TablePlan]) -> Resolved | None:
    """The training of a pair teacher, None while a table that it reads has empty cells."""
    from hoi_distill.pipeline.resolve import resolve
    from hoi_distill.pipeline.student_section import student_section

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


def _folder(setup: Setup, name: str, resolved: Resolved) -> Path:
    return setup.cache.root / "trained" / f"{resolved.method.name}-{resolved.fingerprint[:16]}"


def refuse_better_taught(setup: Setup, pictures: Pictures, needs: Needs) -> None:
    """Raises UserError where a pair teacher has learned in another setting than its student's: from annotations that the
    student may not see, or without classes that it is to teach. A few annotations are the same ones only if they are drawn
    among the same pictures."""
    keys = ["zero_shot", "few_shot"]
    keys += ["training_rule"] if pictures.zero_shot is not None else []
    keys += ["labelled"] if pictures.few_shot is not None else []
    for teacher in teachers_of(setup, pictures, needs):
        for key in keys:
            wanted, taught = getattr(pictures, key), getattr(teacher.pictures, key)
            if wanted != taught:
                raise UserError(
                    f"{teacher.where}{key}: {taught}, but its student has {wanted}; write the same, "
                    "else it teaches what the student may not see, or what it does not know itself"
                )


def refuse_other_boxes(setup: Setup, config: Any, pictures: Pictures, needs: Needs) -> None:
    """Raises UserError where a pair teacher answers for other pairs than those that its student takes."""
    for teacher in teachers_of(setup, pictures, needs):
        if teacher.stage != "link_pairs":
            continue
        keys = ("score_threshold", "min_instances", "max_instances", "nms_iou", "any_object")
        settings = [(key, getattr(config, key), getattr(teacher.config, key)) for key in keys]
        settings.append(("tables.detections", pictures.tables.detections, teacher.pictures.tables.detections))
        for key, wanted, taught in settings:
            if wanted != taught:
                raise UserError(
                    f"{teacher.where}{key}: {taught}, but its student has {wanted}; write the same, as it answers for the pairs "
                    "that it takes itself"
                )


class Teaching(NamedTuple):
    """A table of a pair teacher that a training reads: the table's stage, what stands before the teacher's keys in messages,
    the teacher's parameters and its pictures."""

    stage: str
    where: str
    config: Any
    pictures: Pictures


def teachers_of(setup: Setup, pictures: Pictures, needs: Needs) -> Iterator[Teaching]:
    """One for every such table."""
    for role in needs.train:
        node = setup.nodes.get(getattr(pictures.tables, role, role))
        teacher = None if node is None else getattr(node.stage, "teacher", None)
        if node is not None and teacher is not None:
            where = f"{setup.path}: pair_teachers.{teacher.name}."
            _, config, own = read_section(setup.config.pair_teachers[teacher.name], where)
            yield Teaching(node.stage.name, where, config, own)
