"""Phase-1 teachers: networks that are trained on annotations as part of filling the cache, so that tables below can hold
what they answer (LINK, section 3).

A configuration names them under ``pair_teachers:``, each a section like ``student:``. A table whose stage has a
``teacher`` belongs to one of them. What such a teacher is depends on its training, and that on the cells it reads, so its
tables have a fingerprint only once those are filled: until then they are planned as unknown.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hoi_distill.pipeline.console.watch import Watch
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.training.binding import _folder, _resolved, as_student
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.storage.files.lock import alone

if TYPE_CHECKING:
    from hoi_distill.pipeline.training.request import Resolved


def train_missing(
    workspace: Workspace, plans: Mapping[str, TablePlan], names: Iterable[str], stop: threading.Event
) -> None:
    """Train the teachers that these tables need and that are not trained yet. A killed training goes on where it was; of
    several runs one trains, and the others wait for it.

    Raises:
        KeyboardInterrupt: ``stop`` was set; the training's state is saved.
    """
    from hoi_distill.pipeline.training.fit import is_trained, trained_student

    for name in dict.fromkeys(t.name for table in names if (t := getattr(plans[table].node.stage, "teacher", None))):
        resolved = _resolved(workspace, name, plans)
        assert resolved is not None
        folder = _folder(workspace, resolved)
        used = sorted({planned.table.dir for planned in resolved.train.values()})
        with (
            workspace.cache.lease("reader", [*used, folder]),
            alone(
                workspace.cache.root / "leases" / f"{folder.name}.lock", stop, functools.partial(_wait, name, folder)
            ),
        ):
            if not is_trained(folder, resolved.fingerprint) or trained_student(folder) is None:
                _train(workspace, name, resolved, folder, stop)


def _wait(name: str, folder: Path) -> None:
    print(f"Another run is training pair teacher {name} ({folder.name}); waiting for it.")


def _train(workspace: Workspace, name: str, resolved: Resolved, folder: Path, stop: threading.Event) -> None:
    from hoi_distill.pipeline.training.fit import fit, on_disk

    own = as_student(workspace, name)
    named = replace(own, config=own.config.model_copy(update={"name": f"pair teacher {name}"}))
    with on_disk(folder), Watch(f"pair teacher {name}") as watch:
        folder.mkdir(parents=True, exist_ok=True)
        fit(named, resolved, folder, stop, watch)
