"""What a student and its pair teachers have to agree on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hoi_distill.pipeline.config.student import DataSection, read_section
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.student.method import Needs
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class PairTeacherTable:
    """A table that a pair teacher fills and a training reads.

    Attributes:
        agreed: the keys that teacher and student must have alike.
        where: what stands before the teacher's keys in messages.
        config: the teacher's parameters.
        data: the images, annotations and tables that the teacher learns from.
    """

    agreed: Sequence[str]
    where: str
    config: Any
    data: DataSection

    def refuse_better_taught(self, student: DataSection) -> None:
        """Refuse a teacher that has learned in another setting than its student.

        It would have learned from annotations that the student may not see, or without classes that it is to teach.
        Few annotations are the same ones only if they are drawn among the same images.

        Raises:
            UserError: they differ in a key.
        """
        keys = ["zero_shot", "few_shot"]
        keys += ["training_rule"] if student.zero_shot is not None else []
        keys += ["labelled"] if student.few_shot is not None else []
        for key in keys:
            wanted, taught = getattr(student, key), getattr(self.data, key)
            if wanted != taught:
                raise UserError(
                    f"{self.where}{key}: {taught}, but its student has {wanted}; write the same, "
                    "else it teaches what the student may not see, or what it does not know itself"
                )

    def refuse_other_boxes(self, config: Any, student: DataSection) -> None:
        """Refuse a teacher that answers for other pairs than those that its student takes.

        Args:
            config: the student's parameters.
            student: what the student gets.

        Raises:
            UserError: they differ in a key.
        """
        if not self.agreed:
            return
        settings = [(key, getattr(config, key), getattr(self.config, key)) for key in self.agreed]
        settings.append(("tables.detections", student.tables.detections, self.data.tables.detections))
        for key, wanted, taught in settings:
            if wanted != taught:
                raise UserError(
                    f"{self.where}{key}: {taught}, but its student has {wanted}; write the same, as it answers for the pairs "
                    "that it takes itself"
                )


def pair_teacher_tables(workspace: Workspace, data: DataSection, needs: Needs) -> Iterator[PairTeacherTable]:
    """The tables of pair teachers among those that a training reads.

    Args:
        workspace: the tables, and the sections of their teachers.
        data: which tables the student gets.
        needs: what its method reads.
    """
    for role in needs.train:
        node = workspace.nodes.get(data.tables.name_of(role))
        teacher = None if node is None else getattr(node.stage, "teacher", None)
        if node is not None and teacher is not None:
            where = f"{workspace.path}: pair_teachers.{teacher.name}."
            spec = read_section(workspace.config.pair_teachers[teacher.name], where)
            yield PairTeacherTable(getattr(node.stage, "agreed", ()), where, spec.config, spec.data)
