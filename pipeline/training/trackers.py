"""Experiment trackers by name, through Accelerate: hyper-parameters, what is logged at a step, and the test's mAP."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

ELSEWHERE = ("wandb", "mlflow")
"""Trackers besides TensorBoard, which is always written beside ``metrics.jsonl``."""


@dataclass(frozen=True)
class Trackers:
    """The open trackers of a run.

    Attributes:
        trackers: the trackers.
    """

    trackers: Sequence[GeneralTracker]

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values at a step."""
        for tracker in self.trackers:
            tracker.log(dict(values), step=step)

    def close(self) -> None:
        """End the run in every tracker."""
        for tracker in self.trackers:
            tracker.finish()


def open_trackers(
    names: Sequence[str], folder: Path, run_name: str, hyperparameters: Mapping[str, Any], *, identity: str
) -> Trackers:
    """Open trackers for a run. A run that goes on is the same run there.

    Args:
        names: of :data:`ELSEWHERE`, or ``tensorboard``, which the training writes itself.
        folder: the run's folder. Its parent's name is the project.
        run_name: what the run is called.
        hyperparameters: nested sections; a key inside goes by its dotted path.
        identity: names the training, so that one that goes on is found again.

    Raises:
        UserError: a tracker is not installed.
    """
    from accelerate import PartialState

    refuse_missing(names)
    wanted = [name for name in names if name in ELSEWHERE]
    if wanted:
        PartialState()  # of which Accelerate's trackers ask whether this is the main process
    opened = [OPENERS[name](folder, run_name, identity) for name in wanted]
    for tracker in opened:
        tracker.start()
        tracker.store_init_configuration(dict(flat(hyperparameters)))
        if tracker.name == "mlflow":
            write_atomically(folder / "mlflow.json", json.dumps({"run_id": tracker.tracker.info.run_id}) + "\n")
    return Trackers(opened)


def refuse_missing(names: Sequence[str]) -> None:
    """Raises UserError, beginning with ``trackers``, where a tracker is not installed."""
    for name in names:
        if name in ELSEWHERE and importlib.util.find_spec(name) is None:
            raise UserError(f"trackers: {name} is not installed here; run: pip install 'hoi-distill[{name}]'")


def flat(section: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` as [("a.b", 1)]; what is no number, text or truth as text."""
    found: list[tuple[str, Any]] = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value if isinstance(value, int | float | str | bool) else str(value)))
    return found


def _wandb(folder: Path, run_name: str, identity: str) -> GeneralTracker:
    from accelerate.tracking import WandBTracker

    return WandBTracker(folder.parent.name, name=run_name, id=identity, resume="allow", dir=str(folder))


def _mlflow(folder: Path, run_name: str, identity: str) -> GeneralTracker:
    from accelerate.tracking import MLflowTracker

    try:
        run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
    except (OSError, ValueError, LookupError, TypeError):
        run_id = None
    return MLflowTracker(folder.parent.name, run_id=run_id, run_name=run_name, tags={"training": identity})


OPENERS: Mapping[str, Callable[[Path, str, str], GeneralTracker]] = {"wandb": _wandb, "mlflow": _mlflow}
"""What opens each tracker, given the run's folder, its name and the training's identity."""
