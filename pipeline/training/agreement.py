"""What a student and its pair teachers have to agree on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from hoi_distill.pipeline.config.student import Pictures, read_section
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.student.method import Needs
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    pass


def refuse_better_taught(workspace: Workspace, pictures: Pictures, needs: Needs) -> None:
    """Raises UserError where a pair teacher has learned in another setting than its student's: from annotations that the
    student may not see, or without classes that it is to teach. A few annotations are the same ones only if they are drawn
    among the same pictures."""
    keys = ["zero_shot", "few_shot"]
    keys += ["training_rule"] if pictures.zero_shot is not None else []
    keys += ["labelled"] if pictures.few_shot is not None else []
    for teacher in teachers_of(workspace, pictures, needs):
        for key in keys:
            wanted, taught = getattr(pictures, key), getattr(teacher.pictures, key)
            if wanted != taught:
                raise UserError(
                    f"{teacher.where}{key}: {taught}, but its student has {wanted}; write the same, "
                    "else it teaches what the student may not see, or what it does not know itself"
                )


def refuse_other_boxes(workspace: Workspace, config: Any, pictures: Pictures, needs: Needs) -> None:
    """Raises UserError where a pair teacher answers for other pairs than those that its student takes."""
    for teacher in teachers_of(workspace, pictures, needs):
        if not teacher.agreed:
            continue
        settings = [(key, getattr(config, key), getattr(teacher.config, key)) for key in teacher.agreed]
        settings.append(("tables.detections", pictures.tables.detections, teacher.pictures.tables.detections))
        for key, wanted, taught in settings:
            if wanted != taught:
                raise UserError(
                    f"{teacher.where}{key}: {taught}, but its student has {wanted}; write the same, as it answers for the pairs "
                    "that it takes itself"
                )


class Teaching(NamedTuple):
    """A table of a pair teacher that a training reads.

    Attributes:
        agreed: keys that teacher and student must have alike.
        where: what stands before the teacher's keys in messages.
        config: the teacher's parameters.
        pictures: those that it learns from.
    """

    agreed: tuple[str, ...]
    where: str
    config: Any
    pictures: Pictures


def teachers_of(workspace: Workspace, pictures: Pictures, needs: Needs) -> Iterator[Teaching]:
    """One for every such table."""
    for role in needs.train:
        node = workspace.nodes.get(getattr(pictures.tables, role, role))
        teacher = None if node is None else getattr(node.stage, "teacher", None)
        if node is not None and teacher is not None:
            where = f"{workspace.path}: pair_teachers.{teacher.name}."
            _, config, own = read_section(workspace.config.pair_teachers[teacher.name], where)
            yield Teaching(getattr(node.stage, "agreed", ()), where, config, own)
