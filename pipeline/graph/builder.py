"""One stage from the keys of its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from hoi_distill.pipeline.config.documents import hint, validate
from hoi_distill.pipeline.config.schema import TableSection
from hoi_distill.pipeline.graph.registry import STAGES, stage_class
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import StageConfig, StageContext
from hoi_distill.stages.stage import Stage
from hoi_distill.storage.errors import UserError

Made = TypeVar("Made", bound=Stage)


def build_stage(kind: str, parameters: Mapping[str, Any], context: StageContext, where: str) -> Stage:
    """Construct one stage.

    Args:
        kind: its name in :data:`STAGES`.
        parameters: the keys of its table, as written.
        context: what keys are looked up in.
        where: the file and the table, for messages.

    Raises:
        UserError: unknown stage, or an unknown or wrong key.
    """
    make = known_stage(kind, where)
    config = validate(make.Config, dict(parameters), f"{where}.", context)
    try:
        return construct(make, config, context)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def known_stage(kind: str, where: str) -> type[Stage]:
    """The class of a stage. Raises UserError where there is no stage of this name."""
    if kind not in STAGES:
        raise UserError(f"{where}.stage: unknown stage {kind!r}; {hint(kind, STAGES)}")
    return stage_class(kind)


def refuse_unknown_keys(kind: str, parameters: Iterable[str], where: str) -> None:
    """Check the names of a table's keys, without a dataset and without a checkpoint.

    Args:
        kind: the stage's name in :data:`STAGES`.
        parameters: the keys of its table that are the stage's own.
        where: the file and the table, for messages.

    Raises:
        UserError: unknown stage, or an unknown key.
    """
    own = known_stage(kind, where).Config.model_fields
    valid = sorted({*own, *TableSection.model_fields})
    listed = f"valid keys: {', '.join(valid)}"
    for key in parameters:
        if key not in own:
            raise UserError(f"{where}.{key}: unknown key; {hint(key, valid, listed)}")


def construct(make: type[Made], config: StageConfig, context: StageContext) -> Made:
    """Call a stage's constructor. The types of its arguments say what it gets.

    Args:
        make: the stage's class. An argument may be its ``Config``, the dataset's ``Vocabulary`` or its ``Annotations``.
        config: the keys of its table.
        context: the dataset.
    """
    given: dict[str, Any] = {}
    for name, kind in get_type_hints(make.__init__, localns={"Config": make.Config}).items():
        if kind is Vocabulary:
            given[name] = context.vocabulary
        elif kind is Annotations:
            given[name] = context.annotations()
        elif isinstance(kind, type) and isinstance(config, kind):
            given[name] = config
    return make(**given)
