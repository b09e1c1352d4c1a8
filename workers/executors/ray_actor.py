"""A worker in a process of its own, and how tasks travel to it: what many tasks share goes once.

A table's stage may hold much (the names of all images of a boxes file). An actor gets it when it starts. A task
holds a number in its place.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from hoi_distill.workers.pulse import Beat
    from hoi_distill.workers.task import Target, Task, TaskReport


class Actor:
    """One worker in its own process.

    Args:
        threads: of torch.
        packed: every target that its tasks may have, pickled, see :class:`Parcels`.
        workers: how many there are.
    """

    def __init__(self, threads: int, packed: Sequence[bytes], workers: int = 1) -> None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        import ray

        from hoi_distill.workers.worker import SAVE_SECONDS, Worker

        self._save_after = SAVE_SECONDS
        self._worker = Worker("cuda" if ray.get_gpu_ids() else "cpu", readers=max(2, threads), workers=workers)
        self._packed = packed
        self._targets: dict[int, Target] = {}

    def ready(self) -> str:
        """Answers once the actor runs: where."""
        return f"{socket.gethostname()}, process {os.getpid()}"

    def beats(self) -> tuple[Beat, ...]:
        """Where its tasks are."""
        return self._worker.pulse.beats()

    def run(self, parcel: bytes, numbers: Sequence[int]) -> TaskReport | None:
        """Run a task.

        Args:
            parcel: the task without its targets, see :func:`pack`.
            numbers: of its targets. They are kept until a task has others: an opened stage may hold a model.
        """
        have = self._targets
        targets = {number: have.get(number) or pickle.loads(self._packed[number]) for number in numbers}
        self._targets = targets
        return self._worker.run(unpack(parcel, targets))

    def stop(self) -> None:
        """End with the present batch, and commit what is computed."""
        self._worker.stop.set()
        time.sleep(self._save_after)
        self._worker.save()


class Parcels:
    """Packs tasks for actors.

    Args:
        targets: every table that one of the tasks fills.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        from ray import cloudpickle

        self.packed: list[bytes] = [cloudpickle.dumps(target) for target in targets]
        self._targets = dict(enumerate(targets))
        self._numbers = {id(target): number for number, target in self._targets.items()}

    def pack(self, task: Task) -> tuple[bytes, list[int]]:
        """The arguments of :meth:`Actor.run`."""
        numbers = [self._numbers[id(table.target)] for table in task.tables]
        return pack(task, {number: self._targets[number] for number in numbers}), numbers


def pack(task: Task, targets: Mapping[int, Target]) -> bytes:
    """A task, with numbers in the place of its targets (``targets``, by number) and of the names of their columns."""
    file = io.BytesIO()
    _Pickler(file, {id(shared): name for name, shared in _shared(targets)}).dump(task)
    return file.getvalue()


def unpack(parcel: bytes, targets: Mapping[int, Target]) -> Task:
    """The task that was packed, with the targets of these numbers."""
    task: Task = _Unpickler(io.BytesIO(parcel), dict(_shared(targets))).load()
    return task


Name = tuple[int, str]


def _shared(targets: Mapping[int, Target]) -> Iterable[tuple[Name, Any]]:
    """What tasks have in common, by name."""
    for number, target in targets.items():
        yield (number, "target"), target
        yield (number, "columns"), target.stage.columns


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, names: Mapping[int, Name]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._names = names

    @override
    def persistent_id(self, obj: Any) -> Name | None:
        return self._names.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: Mapping[Name, Any]) -> None:
        super().__init__(file)
        self._shared = shared

    @override
    def persistent_load(self, pid: Name) -> Any:
        return self._shared[pid]
