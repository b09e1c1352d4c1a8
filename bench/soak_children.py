"""Processes that are forked off a warm one, do one thing, and may die of it; and what is learnt of them."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.soak_faults import Fault, inject
from hoi_distill.storage.errors import InputFailure, UserError, WorkStopped

Send = Callable[[Any], None]
HANGS_AFTER = 180.0
"""Seconds; generous, as the machine may be busy."""


@dataclass(frozen=True)
class Child:
    """What one process is to do: ``action(send)`` returns its exit code, and may send anything that pickles."""

    name: str
    action: Callable[[Send], int]
    fault: Fault = field(default_factory=Fault)

    def __str__(self) -> str:
        return f"{self.name}: {self.fault}"


@dataclass
class Ended:
    """How it went. ``code`` as a command's: 0 done, 1 and 2 refused in one line, 3 incomplete; None where it was killed
    as planned. ``said``: what it sent. ``crash``: a traceback, a signal or a hang that nobody planned, else empty."""

    child: Child
    code: int | None = None
    said: list[Any] = field(default_factory=list)
    refusal: str = ""
    crash: str = ""


def run(children: Sequence[Child], root: str) -> list[Ended]:
    """Fork all, wait for all. Faults strike at operations below ``root``."""
    sys.stdout.flush()
    started = [(Ended(child), *_fork(child, root)) for child in children]
    for ended, (status, data, output) in zip([each[0] for each in started], _gather(started), strict=True):
        _judge(ended, status, data, output)
    return [each[0] for each in started]


def _fork(child: Child, root: str) -> tuple[int, int, int]:
    data_read, data_write = os.pipe()
    out_read, out_write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(data_write)
        os.close(out_write)
        return pid, data_read, out_read

    def send(message: Any) -> None:
        blob = pickle.dumps(message)
        view = memoryview(len(blob).to_bytes(4, "big") + blob)
        while view:
            view = view[os.write(data_write, view) :]

    code = 99
    try:
        os.close(data_read)
        os.close(out_read)
        os.dup2(out_write, 1)
        os.dup2(out_write, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        faulthandler.enable(2)
        inject(child.fault, root)
        code = child.action(send)
    except (UserError, WorkStopped, InputFailure) as error:
        send(("refused", str(error)))
        code = 2
    except OSError as error:  # which the command line, had it been called, would have said in a line
        if error.errno is None:
            send(("traceback", traceback.format_exc()))
        else:
            send(("refused", f"{error.filename or 'a file'}: {error.strerror}"))
            code = 2
    except BaseException:
        send(("traceback", traceback.format_exc()))
        raise  # no further than os._exit below
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    raise AssertionError


def _gather(started: Sequence[tuple[Ended, int, int, int]]) -> list[tuple[int, bytes, bytes]]:
    """``(wait status, data, output)`` of each, killed at its moment or when it hangs (status -1)."""
    began = time.monotonic()
    pieces: dict[int, list[bytes]] = {}
    selector = selectors.DefaultSelector()
    deadline: dict[int, float] = {}
    for ended, pid, data, output in started:
        for descriptor in (data, output):
            pieces[descriptor] = []
            selector.register(descriptor, selectors.EVENT_READ, pid)
        fault = ended.child.fault
        deadline[pid] = began + (fault.seconds if fault.kind == "moment" else HANGS_AFTER)
    late: set[int] = set()
    while selector.get_map():
        pending = [deadline[pid] for pid in deadline.keys() - late]
        wait = max(min(pending) - time.monotonic(), 0) if pending else None
        for key, _ in selector.select(wait):
            block = os.read(key.fd, 1 << 16)
            pieces[key.fd].append(block)
            if not block:
                selector.unregister(key.fd)
        for pid in deadline.keys() - late:
            if time.monotonic() >= deadline[pid]:
                late.add(pid)
                os.kill(pid, signal.SIGKILL)  # a zombie until it is waited for: its number is nobody else's
    selector.close()
    results = []
    for ended, pid, data, output in started:
        _, status = os.waitpid(pid, 0)
        os.close(data)
        os.close(output)
        hung = pid in late and ended.child.fault.kind != "moment"
        results.append((-1 if hung else status, b"".join(pieces[data]), b"".join(pieces[output])))
    return results


def _judge(ended: Ended, status: int, data: bytes, output: bytes) -> None:
    position = 0
    while position + 4 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        blob = data[position + 4 : position + 4 + size]
        position += 4 + size
        if len(blob) == size:  # the last may be torn by a kill
            ended.said.append(pickle.loads(blob))
    said = {message[0]: message[1] for message in ended.said if isinstance(message, tuple)}
    text = output.decode(errors="replace")
    lines = [line for line in text.splitlines() if line.startswith("hoi-distill: ")]
    ended.refusal = said.get("refused", lines[-1] if lines else "")
    if status == -1:
        ended.crash = f"hung for {HANGS_AFTER:.0f} s\n{text[-2000:]}"
    elif os.WIFSIGNALED(status):
        if not (ended.child.fault.kills and os.WTERMSIG(status) == signal.SIGKILL):
            ended.crash = f"signal {signal.Signals(os.WTERMSIG(status)).name}\n{text[-3000:]}"
    else:
        ended.code = os.WEXITSTATUS(status)
        if "traceback" in said:
            ended.crash = said["traceback"]
        elif ended.code in (1, 2) and (not ended.refusal or "\n" in ended.refusal):
            ended.crash = f"ended with {ended.code} and not one line: {ended.refusal or text[-2000:]}"
        elif ended.code not in (0, 1, 2, 3):
            ended.crash = f"ended with {ended.code}\n{text[-2000:]}"
