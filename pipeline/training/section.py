"""A setup's student section, read and refused where it cannot be meant."""

from __future__ import annotations

from typing import Any

from hoi_distill.pipeline.config.student import Pictures, read_section
from hoi_distill.pipeline.training.leaks import refuse_annotated_vocabulary, refuse_leaks
from hoi_distill.pipeline.workspace import Workspace, is_folder
from hoi_distill.stages.student.method import Method
from hoi_distill.storage.errors import UserError, placed


def student_section(workspace: Workspace) -> tuple[Method, Any, Pictures]:
    """The method, its parameters (its ``config`` dataclass), and the pictures."""
    document = workspace.config.student
    if document is None or is_folder(workspace):
        what = "this setup has no annotations" if is_folder(workspace) else "missing"
        raise UserError(f"{workspace.path}: student: {what}; training needs labelled pictures, see configs/pico.yaml")
    where = f"{workspace.path}: student."
    method, config, pictures = read_section(document, where)
    with placed(where):
        needs = method.needs(config, workspace.vocabulary)
    for table, (key, stage) in needs.stages.items():
        there = [name for name, node in workspace.nodes.items() if node.stage.name == stage]
        if table not in there:
            raise UserError(
                f"{where}{key}: {table!r} is no table of stage {stage}; there are {', '.join(there) or 'none'}"
            )
    refuse_leaks(workspace.nodes, pictures, method.name, needs, where)
    refuse_annotated_vocabulary(
        workspace.config.dataset, workspace.vocabulary, method.name, needs, f"{workspace.path}: "
    )
    return method, config, pictures


def labelled_count(workspace: Workspace, pictures: Pictures, where: str) -> int:
    """How many training pictures are labelled; in a trial run (``--limit``) at most those that there are.

    Raises:
        UserError: more are wanted than there are.
    """
    there = len(workspace.dataset["train"])
    if pictures.labelled is None or (workspace.limit is not None and pictures.labelled > there):
        return there
    if pictures.labelled > there:
        raise UserError(f"{where}labelled: {pictures.labelled} of only {there} training pictures")
    return pictures.labelled
