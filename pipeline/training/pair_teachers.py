"""Pair teachers: networks that are trained while the cache is filled. Tables below store their outputs (LINK, section 3).

A configuration names them under ``pair_teachers:``, each a section like ``student:``. A table whose stage has a
``teacher`` belongs to one of them. The fingerprint of such a table contains the teacher's training, and with it the cells
that the training reads. Until those cells are filled, the table is planned as unknown.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from hoi_distill.pipeline.console.watch import Watch
from hoi_distill.pipeline.planning.plan import TablePlan
from hoi_distill.pipeline.training.binding import TeacherTraining, teacher_training
from hoi_distill.pipeline.training.fit import fit, is_trained, on_disk, trained_student
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.storage.files.address import ObjectPath
from hoi_distill.storage.files.lock import alone
from hoi_distill.storage.shared_folder import is_shared, share


def train_missing(
    workspace: Workspace, plans: Mapping[str, TablePlan], names: Iterable[str], stop: threading.Event
) -> None:
    """Train the teachers that these tables need and that are not trained yet.

    A training that was killed goes on where it was. Of several runs of a machine one trains, and the others wait for it. A
    teacher of a cache in an object store is put there; of several machines that train it the first one's stands.

    Args:
        workspace: the teachers' sections, and the cache.
        plans: of all tables.
        names: of the tables.
        stop: once set, training ends.

    Raises:
        KeyboardInterrupt: ``stop`` was set; the training's state is saved.
    """
    for name in dict.fromkeys(t.name for table in names if (t := getattr(plans[table].node.stage, "teacher", None))):
        teacher = teacher_training(workspace, name, plans)
        assert teacher is not None
        folder, checkpoint = teacher.folder, teacher.checkpoint
        if isinstance(checkpoint, ObjectPath) and is_shared(checkpoint):
            continue
        used = {planned.table.dir for planned in teacher.request.train.values()}
        lock = workspace.cache.local / "leases" / f"{folder.name}.lock"
        lock.parent.mkdir(exist_ok=True)
        with (
            workspace.cache.lease("reader", [*used, folder]),
            alone(lock, stop, functools.partial(_wait, name, folder)),
        ):
            if not is_trained(folder, teacher.request.fingerprint) or trained_student(folder) is None:
                _train(teacher, name, stop)
            if isinstance(checkpoint, ObjectPath):
                share(folder / "checkpoint", checkpoint)


def _wait(name: str, folder: Path) -> None:
    print(f"Another run is training pair teacher {name} ({folder.name}); waiting for it.")


def _train(teacher: TeacherTraining, name: str, stop: threading.Event) -> None:
    own, folder = teacher.workspace, teacher.folder
    named = replace(own, config=own.config.model_copy(update={"name": f"pair teacher {name}"}))
    with on_disk(folder), Watch(f"pair teacher {name}") as watch:
        folder.mkdir(parents=True, exist_ok=True)
        fit(named, teacher.request, folder, stop, watch)
