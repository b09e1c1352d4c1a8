"""Ray's sessions: our own on this machine, or the user's cluster. Both start and end without a trace and a torn process."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType

from storage.errors import UserError
from workers.task import Task

LOG = logging.getLogger(__name__)

PACKAGES = ("pipeline", "stages", "storage", "workers")
OBJECT_STORE_BYTES = 128 * 2**20
PROBE_SECONDS = 120
CONNECT_SECONDS = 10


@contextmanager
def unbroken() -> Iterator[None]:
    """For Ray's start and end, in the midst of which its core crashes or hangs when a signal's handler raises.

    A handler runs at once all the same, but one that raises KeyboardInterrupt ends the process here and now with exit
    code 130: the kernel ends our own Ray with its driver, and the next run sweeps its folder. Handlers that Ray itself
    installs go again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in before.items() if callable(handler)}

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            ours[signal.Signals(number)](number, frame)
        except KeyboardInterrupt:
            os.write(2, b"Interrupted. What was committed is kept; the same command goes on from here.\n")
            os._exit(130)

    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


@functools.cache
def _token() -> str:
    """This process' secret: Ray keeps the first one that it has read for as long as the process lives."""
    return secrets.token_hex(32)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables for Ray. Its core reads them when first imported, so it is told to read them again."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    config = importlib.import_module("ray._raylet").Config

    try:
        config.initialize("")
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        config.initialize("")


@contextmanager
def local_ray(workers: int) -> Iterator[None]:
    """Our own Ray on this machine: a random token that only this user can read, no dashboard, no usage statistics."""
    parent = os.environ.get("RAY_TMPDIR", "/tmp")  # not $TMPDIR: a socket's path has to be short
    _sweep(Path(parent))
    with tempfile.TemporaryDirectory(
        prefix=f"hoi-ray-{os.getpid()}-", dir=parent, ignore_cleanup_errors=True
    ) as folder:
        token = Path(folder, "token")
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_token())
        variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
        with _environment(**variables):
            import ray

            try:
                ray.init(
                    address="local",
                    num_cpus=max(len(os.sched_getaffinity(0)), 1),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=folder,
                )
                _silence()
                yield
            finally:
                ray.shutdown()


def _sweep(parent: Path) -> None:
    """Remove the folders of drivers that were killed before they could."""
    for folder in parent.glob("hoi-ray-*-*"):
        owner = folder.name.split("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def attached_ray(address: str) -> Iterator[None]:
    """The user's cluster. Our packages travel with the job; the cluster goes on when we leave."""
    import ray

    _answers(address)
    specs = [importlib.util.find_spec(package) for package in PACKAGES]
    modules = [spec.submodule_search_locations[0] for spec in specs if spec and spec.submodule_search_locations]
    try:
        ray.init(
            address=address,
            runtime_env={"py_modules": modules, "excludes": ["**/__pycache__"]},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"RAY_ADDRESS={address}: cannot join that cluster ({' '.join(str(error).split())[:200]}); "
            "start it, or unset RAY_ADDRESS to use a local Ray"
        ) from error
    try:
        _silence()
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raises UserError where nobody listens at ``host:port``: Ray itself would try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not (separator and port.isdigit()):
        return  # "auto"
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"RAY_ADDRESS={address}: no cluster answers ({error}); start it, or unset RAY_ADDRESS to use a local Ray"
        ) from None


def _silence() -> None:
    """Ray prints the raylet's paragraphs about dead workers to stdout, asked or not, where they would mix with what a
    command answers. The driver says it in one logged line; Ray's own words go to the debug log."""
    printer = importlib.import_module("ray._private.worker")
    setattr(printer, "print_to_stdstream", lambda data, **_: LOG.debug("%s", data.get("lines")))  # noqa: B010


def check_nodes(tasks: Sequence[Task]) -> None:
    """Every node must see the same cache folder and be able to read a source; UserError names one that does not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    roots = sorted({part.table.root for task in tasks for part in task.parts})
    sources = (uri for task in tasks if task.parts[0].stage.decodes for uri in task.uris)
    samples = list(islice((uri for uri in sources if os.access(uri, os.R_OK)), 1))
    marks = [Path(root, f".probe-{uuid.uuid4().hex}") for root in roots]
    nodes = {n["NodeID"]: n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}
    probe = ray.remote(_unreadable)
    try:
        for mark in marks:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(mark.name)
        answers = {
            probe.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            ).remote([str(mark) for mark in marks], samples): name
            for node, name in nodes.items()
        }
        done, late = ray.wait(list(answers), num_returns=len(answers), timeout=PROBE_SECONDS)
        for ref in late:
            raise UserError(
                f"node {answers[ref]} did not answer within {PROBE_SECONDS} s; is it overloaded or cut off?"
            )
        for ref in done:
            for problem in ray.get(ref):
                raise UserError(f"node {answers[ref]} of the Ray cluster {problem}; mount the same folder there")
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def _unreadable(marks: list[str], sources: list[str]) -> list[str]:
    """On a node: what it cannot do with the cache's probe files and with sample sources."""
    problems = []
    for mark in map(Path, marks):
        if not mark.is_file() or mark.read_text() != mark.name:
            problems.append(f"does not see the cache {mark.parent}")
        elif not os.access(mark.parent, os.W_OK):
            problems.append(f"may not write to the cache {mark.parent}")
    for source in sources:
        if not os.access(source, os.R_OK):
            problems.append(f"cannot read {source}")
    return problems
