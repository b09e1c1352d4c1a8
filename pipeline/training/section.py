"""A setup's student section, read and refused where it cannot be meant."""

from __future__ import annotations

from typing import Any

from hoi_distill.pipeline.config.student import Pictures, read_section
from hoi_distill.pipeline.training.leaks import refuse_annotated_vocabulary, refuse_leaks
from hoi_distill.pipeline.workspace import Setup, is_folder
from hoi_distill.stages.student.method import Method
from hoi_distill.storage.errors import UserError, placed


def student_section(setup: Setup) -> tuple[Method, Any, Pictures]:
    """The method, its parameters (its ``config`` dataclass), and the pictures."""
    document = setup.config.student
    if document is None or is_folder(setup):
        what = "this setup has no annotations" if is_folder(setup) else "missing"
        raise UserError(f"{setup.path}: student: {what}; training needs labelled pictures, see configs/pico.yaml")
    where = f"{setup.path}: student."
    method, config, pictures = read_section(document, where)
    with placed(where):
        needs = method.needs(config, setup.vocabulary)
    for table, (key, stage) in needs.stages.items():
        there = [name for name, node in setup.nodes.items() if node.stage.name == stage]
        if table not in there:
            raise UserError(
                f"{where}{key}: {table!r} is no table of stage {stage}; there are {', '.join(there) or 'none'}"
            )
    refuse_leaks(setup.nodes, pictures, method.name, needs, where)
    refuse_annotated_vocabulary(setup.config.dataset, setup.vocabulary, method.name, needs, f"{setup.path}: ")
    return method, config, pictures


def labelled_count(setup: Setup, pictures: Pictures, where: str) -> int:
    """How many training pictures are labelled; in a trial run (``--limit``) at most those that there are.

    Raises:
        UserError: more are wanted than there are.
    """
    there = len(setup.dataset["train"])
    if pictures.labelled is None or (setup.limit is not None and pictures.labelled > there):
        return there
    if pictures.labelled > there:
        raise UserError(f"{where}labelled: {pictures.labelled} of only {there} training pictures")
    return pictures.labelled
