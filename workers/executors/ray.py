"""The Ray executor: a pool of actors, each one worker, and a driver that hands them tasks.

Why Ray core actors and not Ray Data. A task is a block of cells, and all that comes back of it is a small report:
the values go from the worker to the cache, not through Ray's object store. Ray Data moves blocks between operators,
which buys nothing here, and what is wanted here it does not offer: handing the next task to whoever is idle; learning
*which* task took its worker along, to split it until the one bad row is found; committing what is in flight when the
user asks to stop. Ray Data also hangs when its actors reserve every CPU. The driver's loop below is short and every
rule in it is ours to test.

Rules of the driver:

* An idle worker has up to two tasks: one computes while the other is written.
* A worker that dies is replaced. If it held one task, that task is the suspect and is split in halves (a single row: by
  table); if it held two, both are run again, each alone on a worker. A row that takes its worker along three times
  alone becomes a failure cell. Commits are idempotent, so running a task again is harmless.
* An exception from a task (memory, device, I/O, a bug) stops the run: what is in flight is committed, then it is
  raised.
* Once a second a worker says where its tasks are. One that answers nothing for 90 s (stopped, or its node is cut off), or
  that makes no step in ``hang_after``, is replaced like a dead one; but no row is blamed for it, for what hangs is
  mostly a disk or a network. A task that hangs three times alone stops the run.
* Where no worker starts within ``start_within``, or no node is left, the run stops.
* 30 deaths without one finished task between them stop the run: that is the machine or the stage, not a row.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from typing_extensions import override

from hoi_distill.storage.errors import UserError, WorkStopped
from hoi_distill.workers.executors.ray_actor import Actor, Parcels
from hoi_distill.workers.executors.ray_session import (
    attached_ray,
    check_nodes,
    cluster_address,
    living_nodes,
    local_ray,
    unbroken,
)
from hoi_distill.workers.pulse import READING, Beat
from hoi_distill.workers.task import FailureLimit, Target, Task, TaskReport, Workload

LOG = logging.getLogger(__name__)

IN_FLIGHT = 2
TRIES_ALONE = 3
DEATHS_IN_A_ROW = 30
FAILED_STARTS_IN_A_ROW = 5
BEAT_SECONDS = 1.0
SILENT_SECONDS = 90.0
"""A worker that answers nothing for so long is stopped, or its node is cut off: to answer takes it no work."""
HANG_SECONDS = 1800.0
START_SECONDS = 100.0
NODES_SECONDS = 5.0
"""While no worker runs, how often the cluster is asked whether it has a node."""
TOLD_SECONDS = 60.0
"""A step that takes longer is told of. Of the same worker the next one told of, or the same, has taken twice as long."""
AWAKE_SECONDS = 1.0
"""At most so much of the time between two looks counts: what a suspended machine sleeps is nobody's silence."""


Watcher = Callable[[Sequence[Beat]], None]


def execute(tasks: Workload, *, workers: int, report: Callable[[TaskReport], None], stop: threading.Event) -> None:
    """Run the tasks on ``workers`` Ray actors; see :meth:`RayExecutor.execute`."""
    with RayExecutor(workers) as executor:
        executor.execute(tasks, report=report, stop=stop)


class RayExecutor:
    """A Ray session: the cluster at ``RAY_ADDRESS``, or our own local Ray, which ends with the ``with`` block.

    Args:
        workers: how many actors compute.
        hang_after: seconds without a step after which a worker is replaced.
        start_within: seconds in which the first worker has to start.
    """

    def __init__(self, workers: int, hang_after: float = HANG_SECONDS, start_within: float = START_SECONDS) -> None:
        self.workers = max(1, workers)
        self.hang_after, self.start_within = hang_after, start_within
        self._attached = False
        self._session = ExitStack()

    def __enter__(self) -> RayExecutor:
        address = cluster_address()
        self._attached = address != "local"
        with unbroken():
            self._session.enter_context(attached_ray(address) if self._attached else local_ray())
        return self

    def gpus(self) -> float:
        """How many the cluster has."""
        import ray

        return float(ray.cluster_resources().get("GPU", 0))

    def __exit__(self, *_: object) -> None:
        with unbroken():
            self._session.close()

    def execute(
        self,
        tasks: Workload,
        *,
        report: Callable[[TaskReport], None],
        stop: threading.Event,
        beat: Watcher | None = None,
    ) -> None:
        """Run the tasks, in about their order.

        Args:
            tasks: what to do.
            report: called in this thread once a task's cells are committed.
            stop: once set, each worker ends its batch and commits what it has computed, and this returns.
            beat: called in this thread, about once a second, with all that is under way.

        Raises:
            UserError: too many inputs failed, no worker starts, workers keep dying, or (on a cluster) a node cannot read
                the cache or the sources.
            WorkStopped: a task hangs, or Ray's last node is gone.
            Exception: what a stage or the storage raised on a worker. Committed tasks stay committed.
        """
        if not tasks.targets or stop.is_set():
            return
        if self._attached:
            check_nodes(tasks, stop)
        pool = _Pool(self.workers, tasks, report, beat=beat, hang_after=self.hang_after, start_within=self.start_within)
        try:
            pool.run(stop)
        finally:
            pool.kill()


@dataclass
class _Job:
    """A task on its way. A suspect was on a worker that died and has to run alone."""

    task: Task
    suspect: bool = False
    deaths: int = 0
    hangs: int = 0


@dataclass
class _Member:
    """An actor with the jobs it holds, by the reference of their answer.

    Attributes:
        asked: the reference of its next beats, and when they were asked for.
        quiet: seconds since its last step; ``unheard``: since its last answer; both only while it holds a job.
        patience: how quiet it may be before that is told.
    """

    actor: Any
    starting: Any
    number: int
    jobs: dict[Any, _Job] = field(default_factory=dict)
    where: str = ""
    asked: tuple[Any, float] = (None, 0.0)
    beats: tuple[Beat, ...] = ()
    quiet: float = 0.0
    unheard: float = 0.0
    patience: float = field(default_factory=lambda: TOLD_SECONDS)
    blamed: bool | None = None
    """None while it lives; then whether its only job is to blame."""

    @override
    def __str__(self) -> str:
        return f"worker {self.number} ({self.where})"

    def task(self) -> str:
        """The task that it computes, or else the first that it holds."""
        doing = next((beat.task_id for beat in self.held() if beat.doing != READING), None)
        return doing or next(iter(self.jobs.values())).task.task_id

    def held(self) -> list[Beat]:
        """The last beats of the tasks that it still holds."""
        names = {job.task.task_id for job in self.jobs.values()}
        return [beat for beat in self.beats if beat.task_id in names]


class _Pool:
    """The driver's side of the actors: who is alive, who holds what, what is left."""

    def __init__(
        self,
        size: int,
        tasks: Workload,
        report: Callable[[TaskReport], None],
        *,
        beat: Watcher | None = None,
        hang_after: float = HANG_SECONDS,
        start_within: float = START_SECONDS,
    ) -> None:
        self._tasks = iter(tasks)
        self._queue: deque[_Job] = deque()
        self._suspects: deque[_Job] = deque()
        self._members: list[_Member] = []
        self._report = report
        self._limit = FailureLimit()
        self._error: BaseException | None = None
        self._deaths = self._failed_starts = 0
        self._size = size
        self._beat, self._hang_after, self._start_within = beat, hang_after, start_within
        self._made = 0
        self._idle = 0.0
        self._parcels = Parcels(tasks.targets)
        self._make = _actor_factory(size, tasks.targets, self._parcels.packed)

    def run(self, stop: threading.Event) -> None:
        import ray

        told = False
        looked = time.monotonic()
        while True:
            halted = stop.is_set() or self._error is not None
            if not halted:
                self._queue.extend(
                    _Job(task) for task in islice(self._tasks, IN_FLIGHT * self._size - len(self._queue))
                )
                self._staff()
                self._dispatch()
            elif not told:
                told = True
                for member in self._members:
                    member.actor.stop.remote()
            waiting = {ref: member for member in self._members for ref in member.jobs}
            if not waiting and (halted or not (self._queue or self._suspects)):
                break
            if not halted:
                waiting |= {member.starting: member for member in self._members if member.starting is not None}
            self._ask()
            waiting |= {member.asked[0]: member for member in self._members if member.asked[0] is not None}
            done, _ = ray.wait(list(waiting), timeout=0.1)  # signals are handled between two waits
            for ref in done:
                self._settle(waiting[ref], ref)
            now = time.monotonic()
            self._watch(min(now - looked, AWAKE_SECONDS))
            looked = now
        if self._error is not None:
            raise self._error

    def kill(self) -> None:
        """End every actor at once; what they have not committed is lost."""
        for member in self._members:
            _kill(member.actor)

    def _staff(self) -> None:
        """Start actors until there is one for every outstanding job, or the pool is full."""
        outstanding = len(self._queue) + len(self._suspects) + sum(len(member.jobs) for member in self._members)
        alive = sum(member.blamed is None for member in self._members)
        for _ in range(min(self._size, outstanding) - alive):
            actor = self._make()
            self._made += 1
            self._members.append(_Member(actor, actor.ready.remote(), self._made))

    def _dispatch(self) -> None:
        """Suspects first, each on an empty worker, which then takes nothing else; the rest evenly, two to a worker."""
        for depth in range(1, IN_FLIGHT + 1):
            for member in self._members:
                if member.blamed is not None or member.starting is not None:
                    continue
                if self._suspects:
                    source = self._suspects if not member.jobs else None
                else:
                    room = len(member.jobs) < depth and not any(job.suspect for job in member.jobs.values())
                    source = self._queue if room else None
                if source:
                    job = source.popleft()
                    if not member.jobs:
                        member.quiet = member.unheard = 0.0
                    member.jobs[member.actor.run.remote(*self._parcels.pack(job.task))] = job

    def _ask(self) -> None:
        """Ask the workers that have begun where their tasks are."""
        now = time.monotonic()
        for member in self._members:
            ref, asked = member.asked
            if ref is None and member.jobs and member.blamed is None and now - asked >= BEAT_SECONDS:
                member.asked = member.actor.beats.remote(), now

    def _watch(self, awake: float) -> None:
        """Count the silence of workers, tell of it, and end it."""
        for member in [member for member in self._members if member.jobs and member.blamed is None]:
            member.quiet += awake
            member.unheard += awake
            if member.quiet >= self._hang_after or member.unheard >= SILENT_SECONDS:
                self._replace(member)
            elif member.quiet >= member.patience:
                member.patience *= 2
                LOG.warning("task %s has been running for %s on %s", member.task(), _minutes(member.quiet), member)
        started = any(member.starting is None and member.blamed is None for member in self._members)
        self._idle = 0.0 if started else self._idle + awake
        nodes = self._idle % NODES_SECONDS < awake and self._idle >= NODES_SECONDS
        if self._idle >= self._start_within or (nodes and not living_nodes()):
            self._error = self._error or _no_worker(self._idle)

    def _replace(self, member: _Member) -> None:
        """A worker hangs: its tasks are run again, each alone. Nobody waits for its answers."""
        LOG.warning(
            "%s has made no step in task %s for %s; it is replaced and its tasks are run again",
            member, member.task(), _minutes(member.quiet),
        )  # fmt: skip
        _kill(member.actor)
        self._members.remove(member)
        self._deaths += 1
        for job in member.jobs.values():
            job.hangs += len(member.jobs) == 1
            job.suspect = True
            if job.hangs >= TRIES_ALONE:
                self._error = self._error or WorkStopped(
                    f"stopped: task {job.task.task_id} made no step in {_minutes(member.quiet)}, {TRIES_ALONE} times alone, "
                    f"last on {member}; its first input is {job.task.uris[0][:200]}; what is committed is kept. "
                    "Mend what it waits for, or raise workers.hang_after"
                )
            else:
                self._suspects.append(job)

    def _settle(self, member: _Member, ref: Any) -> None:
        """Take one answer: of an actor that started, of a job, or where jobs are."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            answer = ray.get(ref)
        except RayTaskError as failure:
            cause = failure.cause if isinstance(failure.cause, BaseException) else failure
            cause.add_note(f"{member.jobs[ref].task.task_id}, on a Ray worker: {failure}")
            self._error = self._error or cause
            del member.jobs[ref]
            return
        except RayError as death:
            self._bury(member, ref, death)
            return
        member.unheard = 0.0
        if ref == member.starting:
            member.starting, member.where, self._failed_starts = None, answer, 0
            return
        if ref == member.asked[0]:
            member.asked = None, member.asked[1]
            self._hear(member, answer)
            return
        del member.jobs[ref]
        member.quiet = 0.0
        self._deaths = 0
        if answer is not None:
            self._count(answer)

    def _hear(self, member: _Member, beats: tuple[Beat, ...]) -> None:
        if [beat.place for beat in beats] != [beat.place for beat in member.beats]:
            member.quiet = 0.0
        member.beats = beats
        if self._beat is not None:
            self._beat([beat for each in self._members for beat in each.held()])

    def _count(self, answer: TaskReport) -> None:
        self._report(answer)
        self._error = self._error or self._limit.add(answer)

    def _bury(self, member: _Member, ref: Any, death: Exception) -> None:
        """An actor died; ``ref`` is one of the answers that will not come. Its other jobs are settled as they turn up:
        one may have finished before the death."""
        if member.blamed is None:
            member.blamed = len(member.jobs) == 1
            self._deaths += 1
            held = ", ".join(job.task.task_id for job in member.jobs.values()) or "nothing"
            LOG.warning("a Ray worker died holding %s; it is replaced and its tasks are run again", held)
            _kill(member.actor)
        if ref == member.asked[0]:
            member.asked = None, member.asked[1]
        elif ref == member.starting:
            member.starting = None
            self._failed_starts += 1
        else:
            job = member.jobs.pop(ref)
            if member.blamed:
                self._split(job)
            else:
                job.suspect = True
                self._suspects.append(job)
        if not member.jobs and member.starting is None and member.asked[0] is None:
            self._members.remove(member)
        if self._failed_starts >= FAILED_STARTS_IN_A_ROW or self._deaths >= DEATHS_IN_A_ROW:
            reason = " ".join(str(death).split())[:300]
            self._error = self._error or UserError(
                f"stopped: Ray workers keep dying ({self._deaths} in a row without finishing a task); the last one: "
                f"{reason}; --executor inline shows what a stage does"
            )

    def _split(self, job: _Job) -> None:
        """A job died alone: look for the row in its halves; give a single row up after three times."""
        halves = job.task.halves()
        if halves:
            self._suspects.extend(_Job(half, suspect=True) for half in halves)
            return
        job.suspect = True
        job.deaths += 1
        if job.deaths < TRIES_ALONE:
            self._suspects.append(job)
            return
        from hoi_distill.workers.worker import record_failure

        self._count(record_failure(job.task, f"killed its worker {TRIES_ALONE} times alone"))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _no_worker(waited: float) -> WorkStopped | UserError:
    """What to say where no worker has started for so long."""
    import ray

    if not living_nodes():
        return WorkStopped(
            "stopped: Ray has no node left (its raylet was killed, perhaps for want of memory); what is committed is kept; "
            "run again"
        )
    free, total = (resources.get("CPU", 0.0) for resources in (ray.available_resources(), ray.cluster_resources()))
    return UserError(
        f"stopped: no Ray worker started within {_minutes(waited)}: {free:g} of {total:g} CPUs are free; wait until others are "
        "done, take fewer with --workers, or raise workers.start_within"
    )


def _kill(actor: Any) -> None:
    import ray

    try:
        ray.kill(actor, no_restart=True)
    except Exception:  # it is dead already, or its cluster is gone
        LOG.debug("an actor could not be killed", exc_info=True)


def _actor_factory(size: int, targets: Sequence[Target], packed: Sequence[bytes]) -> Callable[[], Any]:
    """Starts an actor that may fill any of the targets. All of them together reserve less than the cluster has, so that
    nothing that Ray itself schedules starves; a GPU is shared where there are more workers than GPUs."""
    import ray

    total = ray.cluster_resources()
    resources = [target.stage.resources for target in targets]
    cpus = min(max(r.cpus for r in resources), 0.9 * total.get("CPU", 1.0) / size)
    gpus = min(max(r.gpus for r in resources), total.get("GPU", 0.0) / size)
    if any(r.gpus for r in resources) and not gpus:
        LOG.warning("no GPU in the Ray cluster: tables that reserve one are computed on CPUs")
    options = {
        "num_cpus": _quantity(cpus),
        "num_gpus": _quantity(gpus),
        "max_restarts": 0,
        "max_task_retries": 0,
        "max_concurrency": IN_FLIGHT + 2,  # for stop() and beats()
        "scheduling_strategy": "SPREAD",
    }
    threads = max(1, int(total.get("CPU", 1)) // size)
    actor_class = ray.remote(Actor).options(**options)
    return lambda: actor_class.remote(threads, packed, size)


def _quantity(amount: float) -> float:
    """Ray takes fractions below one and whole numbers above."""
    return float(int(amount)) if amount >= 1 else int(amount * 100) / 100
