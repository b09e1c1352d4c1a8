"""``hoi-distill teachers`` and ``hoi-distill detectors``: print the catalogue of stages."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from hoi_distill.pipeline.graph.catalogue import StageEntry

Name = Annotated[str | None, typer.Argument(help="One stage: everything about it, with a snippet of configuration.")]
BOXES = ("detections", "object_boxes")
"""Tables that a detector fills."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a list.")]


def teachers(stage: Name = None, as_json: Json = False) -> None:
    """List what a teacher can be asked for: stages, the checkpoints they take, their keys."""
    _tell(stage, as_json, detectors=False)


def detectors(stage: Name = None, as_json: Json = False) -> None:
    """List where boxes can come from: stages, the checkpoints they take, their keys."""
    _tell(stage, as_json, detectors=True)


def _tell(stage: str | None, as_json: bool, detectors: bool) -> None:
    from hoi_distill.pipeline.graph.catalogue import catalogue

    found = [entry for entry in catalogue() if (entry["table"] in BOXES) == detectors]
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


def _short(entry: StageEntry) -> str:
    lines = [
        f"{entry['stage']}  (table {entry['table']}, a row a{'n image' if entry['rows'] == 'images' else ' text'})"
    ]
    lines += textwrap.wrap(entry["says"], 110)
    if entry["architectures"]:
        lines += textwrap.wrap("takes " + ", ".join(entry["architectures"]), 110, subsequent_indent="      ")
    if entry["needs"]:
        lines.append(f"needs {entry['needs']}")
    return "\n    ".join(lines)


def _long(entry: StageEntry) -> str:
    keys = []
    for key in entry["keys"]:
        keys.append(
            f"  {key['name']}: {key['type']}" + (" (required)" if key["required"] else f" = {key['default']!r}")
        )
        keys += textwrap.wrap(key["says"], 110, initial_indent="      ", subsequent_indent="      ")
    needs = [f"Needs: {entry['needs']}", ""] if entry["needs"] else []
    takes = ["Takes: " + ", ".join(entry["architectures"]), ""] if entry["architectures"] else []
    parts = [f"{entry['stage']} (table {entry['table']})", "", entry["description"], "", *takes, *needs]
    return "\n".join([*parts, "Keys:", *keys, "", entry["snippet"]])
