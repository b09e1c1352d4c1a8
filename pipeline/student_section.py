"""The ``student:`` section: a method, its parameters, and which pictures it gets."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pydantic
from pydantic import create_model

from hoi_distill.pipeline.documents import Section, validate
from hoi_distill.pipeline.leaks import refuse_annotated_vocabulary, refuse_leaks
from hoi_distill.pipeline.setup import Setup, is_folder
from hoi_distill.stages.student.method import METHODS, Method, method_named
from hoi_distill.storage.errors import UserError, placed


class Roles(Section):
    """Which of the configuration's tables plays which part for the student."""

    detections: str = "detections"
    features: str = "features"
    itm: str = "itm"
    text: str | None = "text"
    captions: str | None = "captions"
    labels: str = "image_labels"
    context: str = "context"


class FewShotSection(Section):
    """A few annotations of each class, drawn among the labelled pictures; the pictures without any count as unlabelled."""

    shots: int = pydantic.Field(ge=1)
    seed: int = 0
    classes: Literal["hoi", "verb"] = "hoi"
    file: Path | None = None
    """A list saved before, of the same shots, seed and classes, instead of drawing one."""
    ignore_dropped: bool = True
    """What was not drawn is neither positive nor negative in training. False: negative."""


class Pictures(Section):
    """Which training pictures the student gets: the first ``labelled`` (null: all; 0: none, for methods that read no
    annotations or those of all pictures) with their annotations, the rest without.
    ``zero_shot`` and ``few_shot`` take annotations of the labelled ones away, in that order."""

    labelled: int | None = pydantic.Field(ge=0)
    unlabelled: int | None = pydantic.Field(None, ge=0)
    """How many of the rest; all by default."""
    zero_shot: str | None = None
    """A split of the vocabulary: training does not see its unseen classes."""
    training_rule: Literal["ada-cm", "gen-vlkt"] = "ada-cm"
    """What goes with an unseen annotation: itself, or every annotation of the same human and object."""
    few_shot: FewShotSection | None = None
    tables: Roles = Roles()


class StudentSection(Pictures):
    method: str = next(iter(METHODS))


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


def read_section(document: dict[str, Any], where: str) -> tuple[Method, Any, Pictures]:
    """The same of a section's own keys; ``where`` stands before a key in messages: the file, the section and a dot."""
    method = method_named(str(document.get("method", next(iter(METHODS)))), f"{where}method")
    model = section_of(method.config, StudentSection)
    checked = validate(model, document, where)
    pictures = Pictures(**{name: getattr(checked, name) for name in Pictures.model_fields})
    with placed(where):
        return method, as_dataclass(method.config, checked), pictures


def check_student(setup: Setup) -> None:
    """Refuse a ``student:`` section, or a pair teacher's, with a mistake before a teacher has worked for it, and warn of what
    nobody means; a setup without one is fine."""
    from hoi_distill.pipeline.pair_teachers import as_student, in_its_section

    for name, section in setup.config.pair_teachers.items():
        where = f"{setup.path}: pair_teachers.{name}."
        labelled_count(setup, read_section(section, where)[2], where)
        if not is_folder(setup):
            with in_its_section(setup, name):
                _check_section(as_student(setup, name), where)
    if setup.config.student is not None and not is_folder(setup):
        _check_section(setup, f"{setup.path}: student.")


def rehearse_student(setup: Setup) -> None:
    """:func:`check_student` of what only building the networks tells. It imports torch: for a run that has work to do."""
    from hoi_distill.pipeline.pair_teachers import as_student, in_its_section

    if is_folder(setup):
        return
    for name in setup.config.pair_teachers:
        with in_its_section(setup, name):
            _rehearse_section(as_student(setup, name))
    if setup.config.student is not None:
        _rehearse_section(setup)


def _rehearse_section(setup: Setup) -> None:
    method, config, _ = student_section(setup)
    with placed(f"{setup.path}: student."):
        method.rehearse(config, setup.vocabulary)


def _check_section(setup: Setup, named: str) -> None:
    """:func:`check_student` of the section in the student's place; warnings begin with ``named``."""
    from hoi_distill.pipeline.labels import labels_of
    from hoi_distill.pipeline.pair_teachers import refuse_other_boxes

    method, config, pictures = student_section(setup)
    needs, where = method.needs(config, setup.vocabulary), f"{setup.path}: student."
    for role in (*needs.train, *needs.test):
        if (name := getattr(pictures.tables, role, role)) not in setup.nodes:
            raise UserError(
                f"{where}tables.{role}: there is no table {name!r}; there are {', '.join(setup.nodes) or 'none'}"
            )
    distinct = np.sort(np.unique(setup.sources["images"].splits["train"], return_index=True)[1])
    labels = labels_of(setup, pictures, method, needs, distinct)
    refuse_other_boxes(setup, config, pictures, needs)
    if setup.limit is not None:  # a trial's pictures say nothing of the whole
        return
    labelled = int(labels.labelled[distinct].sum())
    others = len(distinct) - labelled - int(labels.excluded[distinct].sum())
    unlabelled = min(others, others if pictures.unlabelled is None else pictures.unlabelled) if needs.unlabelled else 0
    for line in doubts(method, config, labelled, unlabelled):
        print(f"hoi-distill: warning: {named}{line}", file=sys.stderr)


def doubts(method: Method, config: Any, labelled: int, unlabelled: int) -> Iterator[str]:
    """What is allowed and hardly meant, one line each that begins with a key of the section: a teacher who is asked and
    not heard, and a training that does not see every picture.

    Args:
        labelled, unlabelled: training pictures that the student learns from.
    """
    for key, pictures in method.distilled(config, labelled, unlabelled).items():
        if not pictures:
            yield (
                f"{key}; nothing is distilled by it, as none of the {labelled + unlabelled:,} training pictures is one of its "
                "kind, and what the teacher answers for it is in vain; change it, or labelled and unlabelled_per_step"
            )
    if (epochs := method.epochs(config, labelled, unlabelled)) < 1:
        yield (
            f"{'steps' if hasattr(config, 'steps') else 'epochs'}: no more than {epochs:.2g} of an epoch, so that most pictures, "
            "and what a teacher says of them, are never looked at; raise it"
        )


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


def section_of(cls: type, base: type[Section] = Section, defaults: Any = None) -> type[Section]:
    """A section with the fields of a dataclass, and of the dataclasses in it: no key is unknown at any depth.

    Args:
        defaults: an instance whose values are the defaults, instead of the dataclass's own.
    """
    hints = get_type_hints(cls)
    own: dict[str, Any] = {}
    for field in fields(cls):
        kind, default = hints[field.name], _default(field) if defaults is None else getattr(defaults, field.name)
        if is_dataclass(kind) and isinstance(kind, type):
            inner = section_of(kind, defaults=None if default is ... else default)
            own[field.name] = (inner, ... if default is ... else inner())
        else:
            own[field.name] = (kind, default)
    return create_model(cls.__name__, __base__=base, **own)


def as_dataclass(cls: type, checked: Section) -> Any:
    """The dataclass that a section of :func:`section_of` describes."""
    hints = get_type_hints(cls)
    values = {}
    for field in fields(cls):
        value = getattr(checked, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"student.{field.name}: {value}; it must be a finite number")
        values[field.name] = as_dataclass(hints[field.name], value) if is_dataclass(hints[field.name]) else value
    return cls(**values)


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return ... if field.default is MISSING else field.default
