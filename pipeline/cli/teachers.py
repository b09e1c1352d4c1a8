"""``hoi-distill teachers`` and ``hoi-distill detectors``: what may stand under ``stage:``, read off the stage classes."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hoi_distill.stages.stage import Stage

FROM_SETUP = ("annotations", "verbs", "objects", "hois", "questions")
"""Arguments that the graph fills in from the dataset and its vocabulary."""
FIRST = ("checkpoint", "columns")

Name = Annotated[str | None, typer.Argument(help="One stage: everything about it, with a snippet of configuration.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a list.")]


def teachers(stage: Name = None, as_json: Json = False) -> None:
    """List what a teacher can be asked for: stages, the checkpoints they take, their keys."""
    _tell(stage, as_json, detectors=False)


def detectors(stage: Name = None, as_json: Json = False) -> None:
    """List where boxes can come from: stages, the checkpoints they take, their keys."""
    _tell(stage, as_json, detectors=True)


def _tell(stage: str | None, as_json: bool, detectors: bool) -> None:
    from hoi_distill.storage.errors import UserError

    found = [entry for entry in catalogue() if (entry["table"] == "detections") == detectors]
    if stage is not None:
        names = [entry["stage"] for entry in found]
        if stage not in names:
            other = "teachers" if detectors else "detectors"
            elsewhere = any(entry["stage"] == stage for entry in catalogue())
            hint = f"hoi-distill {other} {stage} knows it" if elsewhere else f"there are {', '.join(names)}"
            raise UserError(f"{stage}: no such stage here; {hint}")
        found = [entry for entry in found if entry["stage"] == stage]
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for entry in found:
        print(_short(entry) if stage is None else _long(entry))


def catalogue() -> list[dict[str, Any]]:
    """One record a stage: ``stage, table, rows, says, description, architectures, needs, keys, snippet``.

    ``keys`` lists ``{name, type, default, required}``; ``needs`` is how to install what is no dependency, or null.
    """
    from hoi_distill.pipeline.graph.builder import STAGES

    return [_describe(name, where) for name, where in STAGES.items()]


def first_words(lines: Sequence[str]) -> str:
    """The first line of a docstring, to the end of its last sentence, which may go on over several."""
    paragraph = " ".join(itertools.takewhile(str.strip, lines))
    end = re.compile(r"[.;](?= |$)").search(paragraph, len(lines[0]) - 1) if lines else None
    return paragraph[: end.start()] + "." if end else paragraph


def plain(docstring: str) -> str:
    """Without reStructuredText's roles and double backticks: ":class:`Stage`" reads "Stage"."""
    return re.sub(r":[a-z]+:`~?(?:[\w.]+\.)?(\w+)`|``(.+?)``", lambda found: found[1] or found[2], docstring)


def _describe(name: str, where: str) -> dict[str, Any]:
    from hoi_distill.pipeline.graph.builder import constructor_arguments

    module_name, _, attribute = where.partition(":")
    module = importlib.import_module(module_name)
    cls: type[Stage] = getattr(module, attribute)
    lines = (inspect.getdoc(cls) or "").splitlines()
    keys = [
        {
            "name": key,
            "type": inspect.formatannotation(kind).replace("typing.", "").replace("collections.abc.", ""),
            "default": None if default is ... else default,
            "required": default is ...,
        }
        for key, (kind, default) in constructor_arguments(cls).items()
        if key not in FROM_SETUP
    ]
    keys.sort(key=lambda key: FIRST.index(key["name"]) if key["name"] in FIRST else len(FIRST))
    for key in keys:
        if key["name"] == "checkpoint":
            key["type"] = "folder, hub id, or {id, revision}"
    return {
        "stage": name,
        "table": cls.name,
        "rows": cls.source,
        "says": plain(first_words(lines)),
        "description": plain("\n".join(lines)),
        "architectures": accepted(cls),
        "needs": getattr(module, "INSTALL", None),
        "keys": keys,
        "snippet": _snippet(name, cls, keys),
    }


def accepted(cls: type[Stage]) -> list[str]:
    """Names of the model classes a stage takes; a name with a star is a pattern. [] where it takes no checkpoint."""
    endings: Sequence[str] = getattr(cls, "architectures", ())
    return [beginning + ending for beginning in getattr(cls, "families", ("",)) for ending in endings]


def _snippet(name: str, cls: type[Stage], keys: Sequence[dict[str, Any]]) -> str:
    lines = [f"{cls.name}:", f"  stage: {name}"]
    for key in keys:
        if key["name"] == "checkpoint":
            lines.append(f"  checkpoint: {getattr(cls, 'example', '/a/folder/or/hub-id')}")
        elif key["name"] == "columns":
            lines.append("  columns: " + ("prompts" if key["required"] else json.dumps(key["default"])))
        elif key["required"]:
            lines.append(f"  {key['name']}: ...")
    return "\n".join(["tables:", *(f"  {line}" for line in lines)])


def _short(entry: dict[str, Any]) -> str:
    lines = [
        f"{entry['stage']}  (table {entry['table']}, a row a{'n image' if entry['rows'] == 'images' else ' text'})"
    ]
    lines += textwrap.wrap(entry["says"], 110)
    if entry["architectures"]:
        lines += textwrap.wrap("takes " + ", ".join(entry["architectures"]), 110, subsequent_indent="      ")
    if entry["needs"]:
        lines.append(f"needs {entry['needs']}")
    return "\n    ".join(lines)


def _long(entry: dict[str, Any]) -> str:
    keys = [
        f"  {key['name']}: {key['type']}" + (" (required)" if key["required"] else f" = {key['default']!r}")
        for key in entry["keys"]
    ]
    needs = [f"Needs: {entry['needs']}", ""] if entry["needs"] else []
    takes = ["Takes: " + ", ".join(entry["architectures"]), ""] if entry["architectures"] else []
    parts = [f"{entry['stage']} (table {entry['table']})", "", entry["description"], "", *takes, *needs]
    return "\n".join([*parts, "Keys:", *keys, "", entry["snippet"]])
