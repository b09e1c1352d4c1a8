"""The catalogue of stages that a configuration can name, read from the stage classes."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import sys
from collections.abc import Sequence
from types import UnionType
from typing import Annotated, Any, TypedDict, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from hoi_distill.pipeline.graph.registry import STAGES, stage_class
from hoi_distill.stages.keys import EACH_ONCE
from hoi_distill.stages.stage import Stage
from hoi_distill.stages.teacher.weights import CHECKPOINT


class KeyEntry(TypedDict):
    """A key of a stage.

    Attributes:
        name: the key.
        type: what it takes, in words.
        default: its default; null too where it is required.
        required: whether it has no default.
        says: what it means.
    """

    name: str
    type: str
    default: Any
    required: bool
    says: str


class StageEntry(TypedDict):
    """A stage in the catalogue.

    Attributes:
        stage: its name in a configuration.
        table: the name of its tables in the cache.
        rows: what a row is: ``images`` or ``texts``.
        says: the first sentence of its description.
        description: its docstring.
        architectures: the model classes that it takes. A name with a star is a pattern.
        needs: how to install what is no dependency. null: nothing.
        keys: its keys.
        snippet: an example, in YAML.
    """

    stage: str
    table: str
    rows: str
    says: str
    description: str
    architectures: list[str]
    needs: str | None
    keys: list[KeyEntry]
    snippet: str


def catalogue() -> list[StageEntry]:
    """Every stage that a configuration can name."""
    return [_describe(name, stage_class(name)) for name in STAGES]


def first_words(lines: Sequence[str]) -> str:
    """The sentences that begin in the first line of a docstring, the last one to its end."""
    paragraph = " ".join(itertools.takewhile(str.strip, lines))
    end = re.compile(r"[.;](?= |$)").search(paragraph, len(lines[0]) - 1) if lines else None
    return paragraph[: end.start()] + "." if end else paragraph


def plain(docstring: str) -> str:
    """A docstring without reStructuredText's roles and double backticks: ":class:`Stage`" reads "Stage"."""
    return re.sub(r":[a-z]+:`~?(?:[\w.]+\.)?(\w+)`|``(.+?)``", lambda found: found[1] or found[2], docstring)


def _describe(name: str, stage: type[Stage]) -> StageEntry:
    lines = (inspect.getdoc(stage) or "").splitlines()
    return {
        "stage": name,
        "table": stage.name,
        "rows": stage.source,
        "says": plain(first_words(lines)),
        "description": plain("\n".join(lines)),
        "architectures": accepted(stage),
        "needs": getattr(sys.modules[stage.__module__], "INSTALL", None),
        "keys": [_key(key, field) for key, field in stage.Config.model_fields.items()],
        "snippet": _snippet(name, stage),
    }


def _key(name: str, field: FieldInfo) -> KeyEntry:
    return {
        "name": name,
        "type": type_name(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation),
        "default": None if field.is_required() else field.get_default(call_default_factory=True),
        "required": field.is_required(),
        "says": plain(" ".join((field.description or "").split())),
    }


def type_name(kind: Any) -> str:
    """A type in the words of the catalogue: without bounds; a checkpoint is ``folder, hub id, or {id, revision}``."""
    if get_origin(kind) is Annotated:
        return "folder, hub id, or {id, revision}" if CHECKPOINT in kind.__metadata__ else type_name(kind.__origin__)
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(type_name(each) for each in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {type_name(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        key, value = get_args(kind)
        return f"dict of {type_name(key)} to {type_name(value)}"
    return (
        inspect.formatannotation(kind).replace("typing.", "").replace("NoneType", "None").rpartition("hoi_distill.")[2]
    )


def accepted(stage: type[Stage]) -> list[str]:
    """The model classes that a stage takes. A name with a star is a pattern. [] where it takes no checkpoint."""
    endings: Sequence[str] = getattr(stage, "architectures", ())
    return [beginning + ending for beginning in getattr(stage, "families", ("",)) for ending in endings]


def _snippet(name: str, stage: type[Stage]) -> str:
    lines = [f"{stage.name}:", f"  stage: {name}"]
    for key, field in stage.Config.model_fields.items():
        if CHECKPOINT in field.metadata:
            lines.append(f"  {key}: {getattr(stage, 'example', '/a/folder/or/hub-id')}")
        elif EACH_ONCE in field.metadata:
            lines.append(
                f"  {key}: {getattr(stage, 'asks', 'prompts') if field.is_required() else json.dumps(field.default)}"
            )
        elif field.is_required():
            lines.append(f"  {key}: ...")
    return "\n".join(["tables:", *(f"  {line}" for line in lines)])
