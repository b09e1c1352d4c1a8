"""Ray's sessions: our own on this machine, or the user's cluster. Both start and end without a trace and a torn process."""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files import owner
from hoi_distill.storage.files.address import SCHEMES, place_at
from hoi_distill.storage.files.stores import store_of
from hoi_distill.storage.files.uri import can_read
from hoi_distill.workers.task import Workload

if TYPE_CHECKING:
    from ray import ObjectRef

LOG = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
PROBE_SECONDS = 60
READABLE = 8
"""Sources that are tried until the driver can read one."""
CONNECT_SECONDS = 10
SOCKET_BYTES = 107
"""The longest path of a socket (of any Unix domain socket on Linux)."""
SESSION = f"/hoi-ray-01234567/r/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
"""What our Ray appends to its temporary folder."""
START_SECONDS = 100
END_SECONDS = 15
MEND = "start it, or unset RAY_ADDRESS to use a local Ray"
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a gRPC client begins: HTTP/2's preface and empty settings (RFC 9113, section 3.4). A server answers with its own."""
ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM}


@contextmanager
def unbroken() -> Iterator[None]:
    """For Ray's start and end, in the midst of which its core crashes or hangs when a signal's handler raises.

    A handler runs at once all the same, but one that raises KeyboardInterrupt ends the process here and now with exit
    code 130: the kernel ends our own Ray with its driver, and the next run sweeps its folder. Ray installs no handlers of
    its own meanwhile; the one that it has for SIGTERM leaves without a word.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    ours = {number: handler for number, handler in before.items() if callable(handler)}

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            ours[signal.Signals(number)](number, frame)
        except KeyboardInterrupt:
            os.write(2, b"Interrupted. What was committed is kept; the same command goes on from here.\n")
            os._exit(130)

    for number in ours:
        signal.signal(number, handle)
    install = signal.signal
    signal.signal = lambda n, new: signal.getsignal(n) if n in ours else install(n, new)  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = install
        for number, handler in ours.items():
            signal.signal(number, handler)


@contextmanager
def _in_time(mend: str) -> Iterator[None]:
    """For Ray's start, which waits for good within its core where a process of its own or of a cluster says nothing: ends
    the command with one line. As in :func:`unbroken`, the kernel ends our own Ray with it."""

    def give_up() -> None:
        os.write(2, f"hoi-distill: Ray does not start within {START_SECONDS} s; {mend}\n".encode())
        os._exit(2)

    timer = threading.Timer(START_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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


def cluster_address() -> str:
    """``RAY_ADDRESS``, or ``local`` where it is unset or empty (Ray's own rule).

    Raises:
        UserError: it is the dashboard's.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip() or "local"
    scheme, separator, rest = address.partition("://")
    if separator and scheme in ("http", "https"):
        host = rest.partition("/")[0].rpartition(":")[0] or rest.partition("/")[0]
        raise UserError(
            f"RAY_ADDRESS={address}: that is the address of a dashboard; give the cluster's own, {host}:6379, "
            "or unset RAY_ADDRESS to use a local Ray"
        )
    return address


@contextmanager
def local_ray() -> Iterator[None]:
    """Our own Ray on this machine: a random token that only this user can read, no dashboard, no usage statistics.

    Ray opens its temporary folder to everybody, so it lies below one of ours that only this user can enter: nobody else
    reaches the token or a socket. The token's name says whose the folder is.

    Raises:
        UserError: the folder cannot be made, or Ray does not start.
    """
    parent = _temporary()
    _sweep(parent)
    with _folder(parent) as folder:
        token = Path(folder, f"{owner.tag()}-token")
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_token())
        variables = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_worker_niceness": "0",  # else the workers of a run give way to everything else on the machine
        }
        with _environment(**variables):
            import ray

            before = _children()
            again = "run again when this machine is less busy, or with --executor inline"
            try:
                with _in_time(again), _sheltered():
                    ray.init(
                        address="local",
                        num_cpus=max(len(os.sched_getaffinity(0)), 1),
                        object_store_memory=OBJECT_STORE_BYTES,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        _temp_dir=f"{folder}/r",
                    )
            except Exception as error:
                for process in _children() - before:
                    os.kill(process, signal.SIGKILL)
                ray.shutdown()
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"Ray does not start on this machine ({reason}); {again}") from error
            try:
                _silence()
                yield
            finally:
                with _hurried(_children() - before):
                    ray.shutdown()


@contextmanager
def _sheltered() -> Iterator[None]:
    """What starts meanwhile takes no SIGTERM and no SIGHUP for as long as it lives, as Ray sees to for SIGINT: Slurm and a
    closing terminal send theirs to every process, and a Ray that went first would take along what is still to be
    committed. Other threads of this process take them as ever."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _hurried(processes: set[int]) -> Iterator[None]:
    """Ray ends each of its processes by SIGTERM, waits a second, and kills it. As ours do not take SIGTERM, this kills them
    when it has come. One that had it before, from somebody else, has to wait the second. Where Ray itself waits for one
    that does not answer, all are killed in the end."""
    until = time.monotonic() + END_SECONDS
    every = set(processes)
    processes = {process for process in processes if not _asked_to_end(process)}
    ended = threading.Event()

    def hurry() -> None:
        while not ended.wait(0.05):
            for process in every if time.monotonic() > until else filter(_asked_to_end, processes):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    helper = threading.Thread(target=hurry, name="hurry", daemon=True)
    helper.start()
    try:
        yield
    finally:
        ended.set()
        helper.join()


def _asked_to_end(process: int) -> bool:
    """Whether a SIGTERM waits for the process."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        pending = next(line for line in lines if line.startswith("ShdPnd:"))
        return bool(int(pending.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def _children() -> set[int]:
    """Processes that this one has started; none where the kernel does not tell."""
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found |= {int(process) for process in listing.read_text().split()}
    return found


def _temporary() -> Path:
    """The folder below which our Ray's lies. Not ``$TMPDIR``: a socket's path has to be short."""
    given = os.environ.get("RAY_TMPDIR") or "/tmp"
    parent = Path(given).absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        mode = parent.stat().st_mode
    except OSError as error:
        raise UserError(f"RAY_TMPDIR={given}: cannot be made ({error.strerror}); give a folder, or unset it") from None
    if excess := max(len(os.fsencode(parent)) + len(SESSION) - SOCKET_BYTES, 0):
        raise UserError(
            f"RAY_TMPDIR={given}: {excess} bytes too long for the paths of Ray's sockets; give a shorter one, or unset it"
        )
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise UserError(
            f"RAY_TMPDIR={given}: everybody may replace what lies in it; give a folder of your own, or chmod +t it"
        )
    return parent


@contextmanager
def _folder(parent: Path) -> Iterator[str]:
    """A new folder that only this user can enter, until the end."""
    try:
        made = tempfile.TemporaryDirectory(prefix="hoi-ray-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(
            f"{parent}: Ray's temporary folder cannot be made there ({error.strerror}); set RAY_TMPDIR to another one"
        ) from None
    with made as folder:
        yield folder


def _sweep(parent: Path) -> None:
    """Remove the folders of drivers that were killed before they could. What another container left is not judged by its
    age: a run may take weeks."""
    for folder in parent.glob("hoi-ray-*"):
        with suppress(OSError):
            if any(owner.is_dead(entry.name, 0.0, math.inf) for entry in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def attached_ray(address: str) -> Iterator[None]:
    """The user's cluster. Our package travels with the job; the cluster goes on when we leave."""
    import ray

    _answers(address)
    mend = f"RAY_ADDRESS={address}: {MEND}"
    try:
        with _in_time(mend):
            ray.init(
                address=address,
                runtime_env={"py_modules": list(sys.modules["hoi_distill"].__path__), "excludes": ["**/__pycache__"]},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"RAY_ADDRESS={address}: cannot join that cluster ({reason}); {MEND}") from error
    try:
        _silence()
        yield
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raises UserError where nobody listens at ``host:port``, or somebody who does not speak as Ray does: Ray itself would
    try for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not (separator and port.isdigit()):
        return  # "auto"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return
            connection.sendall(HELLO)
            answer = connection.recv(len(HELLO))
    except TimeoutError:
        raise UserError(f"RAY_ADDRESS={address}: accepts and says nothing for {CONNECT_SECONDS} s; {MEND}") from None
    except (OSError, OverflowError) as error:
        raise UserError(f"RAY_ADDRESS={address}: no cluster answers ({error}); {MEND}") from None
    if answer[3:4] != b"\x04":
        raise UserError(f"RAY_ADDRESS={address}: what answers there is no Ray cluster; {MEND}")


def living_nodes() -> dict[str, str]:
    """Names of the cluster's nodes that compute, by id; as far as Ray knows, which takes half a minute to miss one."""
    import ray

    return {n["NodeID"]: n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}


def _silence() -> None:
    """Ray prints the raylet's paragraphs about dead workers to stdout, asked or not, where they would mix with what a
    command answers. The driver says it in one logged line; Ray's own words go to the debug log."""
    printer = importlib.import_module("ray._private.worker")
    setattr(printer, "print_to_stdstream", lambda data, **_: LOG.debug("%s", data.get("lines")))  # noqa: B010


def check_nodes(tasks: Workload, stop: threading.Event) -> None:
    """Every node must see the same cache folder and be able to read a source. A node that has left is left out.

    Args:
        tasks: whose cache folder and sources.
        stop: once set, nobody waits for answers.

    Raises:
        UserError: names a node that lacks something, or says that there is no node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    roots = sorted({target.table.root for target in tasks.targets})
    decodes = any(target.stage.decodes for target in tasks.targets)
    sources = (uri for task in tasks if task.tables[0].stage.decodes for uri in task.uris) if decodes else iter(())
    samples = list(islice((uri for uri in islice(sources, READABLE) if can_read(uri)), 1))
    marks = [place_at(root) / f".probe-{uuid.uuid4().hex}" for root in roots]
    probe = ray.remote(_unreadable)
    nodes = living_nodes()
    try:
        for mark in marks:
            store_of(mark).prepare([mark.parent])
            store_of(mark).replace(mark, mark.name.encode())
        answers = {
            probe.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            ).remote([str(mark) for mark in marks], samples): name
            for node, name in nodes.items()
        }
        late = _await(list(answers), stop)
        if stop.is_set():
            return
        for ref in late:
            raise UserError(
                f"node {answers[ref]} did not answer within {PROBE_SECONDS} s; is it overloaded or cut off?"
            )
        if not sum(_take(ref, name) for ref, name in answers.items()):
            raise UserError(
                "the Ray cluster has no node with a CPU; start one, or unset RAY_ADDRESS to use a local Ray"
            )
    finally:
        for mark in marks:
            store_of(mark).delete(mark)


def _await(answers: list[ObjectRef[Any]], stop: threading.Event) -> list[ObjectRef[Any]]:
    """Wait for all; those that have not come in time."""
    import ray

    until = time.monotonic() + PROBE_SECONDS
    while answers and time.monotonic() < until and not stop.is_set():
        _, answers = ray.wait(answers, num_returns=len(answers), timeout=0.5)
    return answers


def _take(answer: ObjectRef[Any], node: str) -> bool:
    """Whether a node is there and lacks nothing; UserError says what it lacks."""
    import ray
    from ray.exceptions import RayError, RayTaskError, RuntimeEnvSetupError

    try:
        problems = ray.get(answer)
    except (RayTaskError, RuntimeEnvSetupError) as error:
        problems = [f"cannot run the project ({' '.join(str(error).split())[-300:]})"]
    except RayError as error:
        LOG.warning("node %s has left the Ray cluster; the run goes on without it", node)
        LOG.debug("its probe: %s", error)
        return False
    for problem in problems:
        mend = (
            "give it the same access" if any(scheme in problem for scheme in SCHEMES) else "mount the same folder there"
        )
        raise UserError(f"node {node} of the Ray cluster {problem}; {mend}")
    return True


def _unreadable(marks: list[str], sources: list[str]) -> list[str]:
    """On a node: what it cannot do with the cache's probe files and with sample sources."""
    problems = []
    for mark in map(place_at, marks):
        try:
            is_seen = store_of(mark).read(mark) == mark.name.encode()
        except (OSError, UserError):
            is_seen = False
        if not is_seen:
            problems.append(f"does not see the cache {mark.parent}")
        elif isinstance(mark, Path) and not os.access(mark.parent, os.W_OK):
            problems.append(f"may not write to the cache {mark.parent}")
    problems += [f"cannot read {source}" for source in sources if not can_read(source)]
    return problems
