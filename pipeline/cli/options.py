"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="The setup, for example configs/pico.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key: student.seed=1 (repeatable).")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N images of each split: a trial run.")]
Rehash = Annotated[bool, typer.Option(help="Read every input file again, whatever its size and time say.")]
TimeLimit = Annotated[
    float | None,
    typer.Option(min=0.001, metavar="MINUTES", help="Stop after so long as Ctrl-C does, and exit with 130."),
]
INCOMPLETE = 3
"""The exit code where cells are empty or differ."""
