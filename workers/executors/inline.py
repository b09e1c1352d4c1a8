"""The in-process executor: one worker in this process, for debugging, profiling and machines without Ray."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from hoi_distill.storage.errors import WorkStopped
from hoi_distill.workers.pulse import Beat, Pulse
from hoi_distill.workers.task import FailureLimit, Task, TaskReport
from hoi_distill.workers.worker import SAVE_SECONDS, Worker

LOG = logging.getLogger(__name__)


def execute(
    tasks: Iterable[Task],
    *,
    report: Callable[[TaskReport], None],
    stop: threading.Event,
    device: str = "cpu",
    beat: Callable[[Sequence[Beat]], None] | None = None,
) -> None:
    """Run the tasks in order, in one worker: torch already uses the machine's cores. The next task computes while the last
    one is written.

    Args:
        tasks: what to do.
        report: called in this thread once a task's cells are committed.
        stop: once set, the current task ends after its batch, what it has computed is committed, and this returns.
        device: where stages compute.
        beat: called with all that is under way at each step of a task, in whichever thread makes it.

    Raises:
        UserError: too many inputs failed (:class:`hoi_distill.workers.task.FailureLimit`).
        Exception: what a stage or the storage raised. Committed tasks stay committed.
    """
    limit = FailureLimit()
    worker = Worker(device, stop=stop, pulse=Pulse(beat))

    def finish(written: Future[TaskReport]) -> None:
        done = written.result()
        report(done)
        worker.pulse.end(done.task_id)  # not before: its cells would be counted neither here nor there
        if error := limit.add(done):
            raise error

    with _saving(worker), ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        writing: Future[TaskReport] | None = None
        try:
            for task in tasks:
                if stop.is_set():
                    break
                result = worker.compute(task)
                if writing is not None:
                    previous, writing = writing, None
                    finish(previous)
                if result is not None:
                    writing = writer.submit(worker.commit, result)
        finally:
            worker.close()
            if writing is not None:
                finish(writing)


@contextmanager
def _saving(worker: Worker) -> Iterator[None]:
    """Commits what is computed before a batch that outlasts a stop."""
    ended = threading.Event()

    def save() -> None:
        while not ended.wait(0.5):
            if worker.stop.is_set():
                if not ended.wait(SAVE_SECONDS):
                    try:
                        worker.save()
                    except WorkStopped as error:
                        LOG.warning("what is computed so far could not be saved: %s", error)
                return

    saver = threading.Thread(target=save, name="save", daemon=True)
    saver.start()
    try:
        yield
    finally:
        ended.set()
        saver.join()
