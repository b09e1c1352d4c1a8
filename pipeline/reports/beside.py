"""Which other runs a run's report is set beside: the one before, and the one that the user has named ``baseline``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hoi_distill.pipeline.records import name_of, outcomes_of, read_json
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.evaluate.metrics.average_precision import RECALL_GRIDS
from hoi_distill.stages.evaluate.metrics.differences import difference
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import HicoDetEvaluation
from hoi_distill.stages.evaluate.metrics.outcomes import Outcomes, draw_outcomes
from hoi_distill.stages.evaluate.pages.report import SETS, Beside
from hoi_distill.storage.errors import UserError

BASELINE = "baseline"
"""The name (``hoi-distill train --name baseline``) of the run that later ones are set beside."""


def runs_beside(run_dir: Path, test: Annotations, evaluation: HicoDetEvaluation) -> list[Beside]:
    """What a report says of the run before, and of the baseline. A run whose files cannot be read, or of other test images, is
    left out: a report never fails because of another run.

    Args:
        run_dir: the run's folder.
        test: the annotated test images.
        evaluation: the run's.
    """
    own, ours = _student(run_dir), None
    shown = []
    for title, folder in _others(run_dir):
        try:
            there, found = _student(folder), read_json(folder / "evaluation.json")
            if there.get("dataset") != own.get("dataset"):
                continue
            ours = ours or _outcomes(evaluation, test)
            theirs = outcomes_of(folder, found, test)
            differences = {key: difference([ours], [theirs], key) for key, _ in SETS}
            means = {key: found["default"].get(key) for key, _ in SETS}
        except (UserError, LookupError, TypeError, ValueError, AttributeError):
            continue
        address = f"../{quote(folder.name)}/report.html"
        shown.append(Beside(title, folder.name, means, differences, changed(there, own), address))
    return shown


def _others(run_dir: Path) -> Iterator[tuple[str, Path]]:
    """The baseline, and the run whose training ended last before this one's."""
    baseline = (run_dir.parent / BASELINE).resolve()
    if baseline.is_dir() and baseline != run_dir.resolve():
        yield "the baseline", baseline
    ended = {
        done.parent: done.stat().st_mtime_ns
        for done in run_dir.parent.glob("*/done.json")
        if not done.parent.is_symlink()
    }
    before = [folder for folder, when in ended.items() if when < ended.get(run_dir, 0) and folder.resolve() != baseline]
    if before:
        yield "the run before", max(before, key=lambda folder: (ended[folder], folder.name))


def _student(folder: Path) -> dict[str, Any]:
    return read_json(folder / "student.json")


def _outcomes(evaluation: HicoDetEvaluation, test: Annotations) -> Outcomes:
    grid = RECALL_GRIDS[evaluation.convention.recall_grid]
    return draw_outcomes(evaluation.ranking, evaluation.sets, grid, name_of(test))


def changed(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value there, value here) of every parameter of the method, number of images and table read that differs.

    Args:
        there: ``student.json`` of another run.
        here: of this one.
    """
    one, other = (
        _flat({key: run.get(key) for key in ("method", "student", "pictures")})
        | {f"table {name}": read["fingerprint"][:8] for name, read in (run.get("provenance") or {}).items()}
        for run in (there, here)
    )
    keys = dict.fromkeys([*one, *other])
    return [
        (key.removeprefix("student."), one.get(key, "not there"), other.get(key, "not there"))
        for key in keys
        if one.get(key) != other.get(key)
    ]


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {name: str(value) if len(str(value)) <= 40 else f"{str(value)[:38]}…"}
    found: dict[str, str] = {}
    for key, each in value.items():
        found |= _flat(each, f"{name}.{key}" if name else str(key))
    return found
