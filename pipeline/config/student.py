"""The ``student:`` section: a method, its parameters, and the images, annotations and tables that it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import create_model

from hoi_distill.pipeline.config.documents import Section, explain, validate
from hoi_distill.stages.data.sampling.splits import RARE_BELOW
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
    instances: str = "instances"
    pair_answers: str = "pair_answers"

    def name_of(self, role: str) -> str:
        """The table that plays a role. What is no role is a table's own name."""
        name: str = getattr(self, role, role)
        return name


class FewShotSection(Section):
    """A few annotations of each class, drawn among the labelled images; the images without any count as unlabelled."""

    shots: int = pydantic.Field(ge=1)
    seed: int = 0
    classes: Literal["hoi", "verb"] = "hoi"
    file: Path | None = None
    """A list saved before, of the same shots, seed and classes, instead of drawing one."""
    ignore_dropped: bool = True
    """What was not drawn is neither positive nor negative in training. False: negative."""


class DataSection(Section):
    """Which training images, annotations and tables the student gets.

    The first ``labelled`` images come with their annotations, the others without. null means all, "annotated" those that
    the annotations of a folder name. 0 means none: for methods that read no annotations, or those of all images.
    ``zero_shot``, then ``few_shot``, then ``validation`` take annotations of the labelled images away.
    """

    labelled: Annotated[int, pydantic.Field(ge=0)] | Literal["annotated"] | None
    unlabelled: int | None = pydantic.Field(None, ge=0)
    """How many of the rest; all by default."""
    zero_shot: str | None = None
    """A split of the vocabulary: training does not see its unseen classes."""
    training_rule: Literal["ada-cm", "gen-vlkt"] = "ada-cm"
    """What goes with an unseen annotation: itself, or every annotation of the same human and object."""
    few_shot: FewShotSection | None = None
    validation: Annotated[float, pydantic.Field(gt=0, lt=1)] | Path | None = None
    """Labelled images that are held out of the training, to choose the best student by: a share of them, or a text file
    with their names, one a line."""
    validate_every: int | None = pydantic.Field(None, ge=1)
    """Steps between two looks at them; by default a twentieth of the training."""
    patience: int = pydantic.Field(0, ge=0)
    """So many looks in a row without a better student end the training; 0: it goes on to its last step."""
    rare_below: int = pydantic.Field(RARE_BELOW, ge=1)
    """An interaction with fewer annotated training pairs counts as rare."""
    tables: Roles = Roles()


class StudentSection(DataSection):
    method: str = next(iter(METHODS))


class StudentSpec(NamedTuple):
    """A section that is read: of the student or of a pair teacher.

    Attributes:
        method: how it is trained.
        config: the method's parameters, an instance of its ``config`` class.
        data: the images, annotations and tables that it gets.
    """

    method: Method
    config: Any
    data: DataSection


def read_section(document: Mapping[str, Any], where: str) -> StudentSpec:
    """Read and check the section of a student or a pair teacher.

    Args:
        document: the keys of the section.
        where: what stands before a key in messages: the file, the section and a dot.

    Raises:
        UserError: an unknown or wrong key.
    """
    method = method_named(str(document.get("method", next(iter(METHODS)))), f"{where}method")
    model = section_model(method)
    checked = validate(model, document, where)
    data = DataSection(**{name: getattr(checked, name) for name in DataSection.model_fields})
    try:
        config = method.config(**{field.name: getattr(checked, field.name) for field in fields(method.config)})
    except pydantic.ValidationError as error:  # keys that do not go together
        raise UserError(where + explain(error, document, model)) from None
    return StudentSpec(method, config, data)


def section_model(method: Method) -> type[StudentSection]:
    """The keys of a ``student:`` section of this method: those of every method and its own."""
    own: dict[str, Any] = {name: (field.annotation, field) for name, field in method.config.__pydantic_fields__.items()}
    return create_model(method.config.__name__, __base__=StudentSection, **own)
