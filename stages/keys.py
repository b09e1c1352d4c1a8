"""The keys of a table in a configuration: the base of every stage's ``Config``, and the types that such keys have.

A key's type says what it is and finds what it names. Where a configuration is read, types are given a
:class:`StageContext` to look things up in; in a program one gives a ``Config`` the things themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast, dataclass_transform

import numpy as np
import pydantic.dataclasses
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError, did_you_mean

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""No key is unknown, every number is finite, and the text below a key describes it."""


Settings = TypeVar("Settings")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def settings(cls: type[Settings]) -> type[Settings]:
    """A frozen dataclass of keys, checked whenever one is made. ``__post_init__`` may refuse keys that do not go together
    with a UserError that begins with one of them."""
    return cast(type[Settings], pydantic.dataclasses.dataclass(frozen=True, config=STRICT)(cls))


class StageConfig(BaseModel):
    """The keys of a table beside ``stage``, ``splits`` and ``shard_rows``. None is unknown, none can be changed."""

    model_config = ConfigDict(**STRICT, frozen=True, arbitrary_types_allowed=True)


@dataclass(frozen=True)
class StageContext:
    """What keys are looked up in.

    Attributes:
        vocabulary: the classes of the dataset.
        splits: the annotations of the dataset, by split.
        digests: remembers the digests of weight files; None reads the files.
        derived: remembers the digests of the tensors in weight files; None reads the files.
        pair_teachers: the networks of ``pair_teachers:``, by name.
    """

    vocabulary: Vocabulary
    splits: Mapping[str, Annotations]
    digests: Callable[[Sequence[Path]], np.ndarray] | None = None
    derived: Callable[[Path, str, Callable[[], str]], str] | None = None
    pair_teachers: Mapping[str, Any] = field(default_factory=dict)

    def annotations(self) -> Annotations:
        """All splits as one, for stages that look up an image's record by its name."""
        splits = list(self.splits.values())
        if len(splits) == 1:
            return splits[0]
        ends = np.cumsum([0, *(len(split.human_box) for split in splits)])
        offsets = [split.pair_offsets[1:] + end for split, end in zip(splits, ends, strict=False)]
        columns = ("image_id", "width", "height", "human_box", "object_box", "object", "verb", "hoi")
        stacked: dict[str, Any] = {name: np.concatenate([getattr(split, name) for split in splits]) for name in columns}
        return replace(
            splits[0],
            split="+".join(split.split for split in splits),
            path=[path for split in splits for path in split.path],
            pair_offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
            image_hois=None,
            **stacked,
        )


SENTENCES: dict[str, Callable[[Vocabulary], Iterable[str]]] = {
    "prompts": Vocabulary.prompts,
    "verb_prompts": Vocabulary.verb_prompts,
    "object_prompts": Vocabulary.object_prompts,
    "printed_prompts": Vocabulary.printed_prompts,
    "printed_verb_prompts": Vocabulary.printed_verb_prompts,
    "printed_object_prompts": Vocabulary.printed_object_prompts,
    "verification_questions": Vocabulary.questions,
    "pair_questions": Vocabulary.pair_questions,
    "object_names": Vocabulary.object_names,
}
"""Words that stand for sentences or names of the vocabulary among a table's columns."""


def _written_out(columns: Any, info: ValidationInfo) -> Any:
    """Columns with the sentences in place of :data:`SENTENCES`' words, which may stand alone or in a list.

    Raises:
        UserError: a text that is none of these words.
    """
    if not isinstance(info.context, StageContext):
        return columns
    if isinstance(columns, str) and columns not in SENTENCES:
        near = did_you_mean(columns, SENTENCES)
        raise UserError(f"expected a list, or {', '.join(SENTENCES)}; got {columns!r}{near}")
    listed = [columns] if isinstance(columns, str) else columns
    if not isinstance(listed, list) or not any(isinstance(each, str) and each in SENTENCES for each in listed):
        return columns
    found: dict[Any, None] = {}  # each sentence once
    for each in listed:
        found |= dict.fromkeys(SENTENCES[each](info.context.vocabulary) if each in SENTENCES else [each])
    return tuple(found)


def _each_once(columns: tuple[str, ...]) -> tuple[str, ...]:
    if not columns or len(set(columns)) != len(columns):
        raise UserError("expected at least one column, each once")
    return columns


_WRITTEN_OUT = BeforeValidator(_written_out, json_schema_input_type=Literal[tuple(SENTENCES)] | list[str])
EACH_ONCE = AfterValidator(_each_once)
Columns = Annotated[tuple[str, ...], _WRITTEN_OUT, EACH_ONCE]
"""The questions put to a teacher: a list, or one of :data:`SENTENCES`."""
View = Literal["original", "flip"]
Views = Annotated[tuple[View, ...], EACH_ONCE]
"""``original``, and ``flip``, the preprocessed image mirrored left to right."""
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
"""A probability of dropping, or a decay: below 1."""
GpuShare = NotNegative


def _pair_teacher(given: Any, name_of: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """The pair teacher that a configuration names; in a program, the teacher itself."""
    if not isinstance(info.context, StageContext):
        return given
    name, known = name_of(given), info.context.pair_teachers
    if name not in known:
        there = f"there are {', '.join(known)}" if known else "name one under pair_teachers"
        raise UserError(f"no pair teacher {name!r}; {there}")
    return known[name]


PAIR_TEACHER = WrapValidator(_pair_teacher)
if TYPE_CHECKING:
    PairTeacherKey = Any
else:
    PairTeacherKey = Annotated[str, PAIR_TEACHER]
    """The name of a network of ``pair_teachers:``."""
