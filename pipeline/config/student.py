"""The ``student:`` section: a method, its parameters, and which pictures it gets."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pydantic
from pydantic import create_model

from hoi_distill.pipeline.config.documents import Section, validate
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


def read_section(document: dict[str, Any], where: str) -> tuple[Method, Any, Pictures]:
    """The same of a section's own keys; ``where`` stands before a key in messages: the file, the section and a dot."""
    method = method_named(str(document.get("method", next(iter(METHODS)))), f"{where}method")
    model = section_of(method.config, StudentSection)
    checked = validate(model, document, where)
    pictures = Pictures(**{name: getattr(checked, name) for name in Pictures.model_fields})
    with placed(where):
        return method, as_dataclass(method.config, checked), pictures


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
