"""The ``student:`` section: a method, its parameters, and which pictures it gets."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import create_model

from hoi_distill.pipeline.config.documents import Section, explain, validate
from hoi_distill.stages.student.method import METHODS, Method, method_named
from hoi_distill.storage.errors import UserError


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


def read_section(document: dict[str, Any], where: str) -> tuple[Method, Any, Pictures]:
    """The method of a section, its parameters, and which pictures it gets.

    Args:
        document: the keys of the section.
        where: what stands before a key in messages: the file, the section and a dot.

    Raises:
        UserError: an unknown or wrong key.
    """
    method = method_named(str(document.get("method", next(iter(METHODS)))), f"{where}method")
    model = section_model(method)
    checked = validate(model, document, where)
    pictures = Pictures(**{name: getattr(checked, name) for name in Pictures.model_fields})
    try:
        config = method.config(**{field.name: getattr(checked, field.name) for field in fields(method.config)})
    except pydantic.ValidationError as error:  # keys that do not go together
        raise UserError(where + explain(error, document, model)) from None
    return method, config, pictures


def section_model(method: Method) -> type[StudentSection]:
    """The keys of a ``student:`` section of this method: those of every method and its own."""
    own: dict[str, Any] = {name: (field.annotation, field) for name, field in method.config.__pydantic_fields__.items()}
    return create_model(method.config.__name__, __base__=StudentSection, **own)
