"""The student's section of a workspace, read, and refused where it cannot be meant."""

from __future__ import annotations

from typing import Literal

from hoi_distill.pipeline.config.student import StudentSpec, read_section
from hoi_distill.pipeline.training.leaks import refuse_annotated_vocabulary, refuse_leaks
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.storage.errors import UserError, placed


def student_section(workspace: Workspace) -> StudentSpec:
    """The student's section.

    Raises:
        UserError: there is none, a key is wrong, or manual labels reach a training that claims to use none.
    """
    document = workspace.config.student
    if document is None or not workspace.annotated:
        what = "missing" if workspace.annotated else "this setup has no annotations"
        raise UserError(f"{workspace.path}: student: {what}; training needs labelled images, see configs/pico.yaml")
    where = f"{workspace.path}: student."
    spec = read_section(document, where)
    with placed(where):
        needs = spec.method.needs(spec.config, workspace.vocabulary)
    for table, (key, stage) in needs.stages.items():
        there = [name for name, node in workspace.nodes.items() if node.stage.name == stage]
        if table not in there:
            raise UserError(
                f"{where}{key}: {table!r} is no table of stage {stage}; there are {', '.join(there) or 'none'}"
            )
    method = spec.method.name
    refuse_leaks(workspace.nodes, spec.data, method, needs, where)
    refuse_annotated_vocabulary(workspace.config.dataset, workspace.vocabulary, method, needs, f"{workspace.path}: ")
    return spec


def labelled_count(labelled: int | Literal["annotated"] | None, train: Annotations, where: str, *, trial: bool) -> int:
    """How many training images are labelled, the first ones.

    Args:
        labelled: the key of the section. None: all. "annotated": those that the annotations name.
        train: the training images.
        where: what stands before the key in messages.
        trial: whether the images are few because of ``--limit``. All of them are labelled, then, where more are wanted.

    Raises:
        UserError: more are wanted than there are.
    """
    there = len(train)
    if labelled == "annotated":
        return there if train.listed is None else int(train.listed.sum())
    if labelled is None or (trial and labelled > there):
        return there
    if labelled > there:
        raise UserError(f"{where}labelled: {labelled} of only {there} training images")
    return labelled
