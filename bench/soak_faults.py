"""Faults at file operations, inside the process that they strike.

:func:`inject` replaces what the code calls to touch files (``os``, ``open``, maps, LMDB, SQLite) by versions that count the
operations below one folder and, at the chosen one, raise what a disk would, tear a write in two, or end the process.
"""

from __future__ import annotations

import builtins
import errno
import inspect
import io
import os
import random
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.EDQUOT, errno.EACCES)
OF_WRITES = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
"""What only an operation that writes can meet: the first one from the chosen operation on."""
LASTING = {"full": errno.ENOSPC, "read-only": errno.EROFS, "gone": errno.ESTALE}
"""What goes on failing once it began: for all that writes, or (``gone``) for everything."""


@dataclass(frozen=True)
class Fault:
    """What befalls one process.

    Attributes:
        kind: ``none``; ``kill``, ``error`` at one operation; ``full``, ``read-only``, ``gone`` from it on; ``limit``: no file
            may grow beyond ``at`` bytes; ``moment``: killed from outside after ``seconds``; ``power``: killed, and what was
            not synced is gone.
        at: the operation, counted from 1.
        after: a kill comes after the operation, not before it.
        clock: seconds that this process's clock is wrong by.
    """

    kind: str = "none"
    at: int = 0
    errno: int = 0
    after: bool = False
    seconds: float = 0.0
    clock: float = 0.0

    @property
    def kills(self) -> bool:
        """Whether it ends the process."""
        return self.kind in ("kill", "power", "moment")

    def __str__(self) -> str:
        said = {
            "none": "",
            "kill": f"killed {'after' if self.after else 'before'} operation {self.at}",
            "power": f"power lost at operation {self.at}",
            "moment": f"killed after {self.seconds:.3f} s",
            "error": f"{errno.errorcode.get(self.errno)} {'from' if self.errno in OF_WRITES else 'at'} operation {self.at}",
            "limit": f"no file beyond {self.at} bytes",
        }.get(self.kind, f"{self.kind} from operation {self.at}")
        jump = f"clock off by {self.clock:+.0f} s" if self.clock else ""
        return ", ".join(filter(None, (said, jump))) or "undisturbed"


def draw(generator: random.Random, operations: int, seconds: float) -> Fault:
    """A random fault of a process that does about so many operations in about so many seconds; often none."""
    clock = 0.0
    if generator.random() < 0.2:
        clock = generator.choice((-1, 1)) * 10 ** generator.uniform(0, 8.5)
    kind = generator.choices(
        ("none", "kill", "power", "moment", "error", "full", "read-only", "gone", "limit"),
        (40, 18, 6, 8, 18, 4, 2, 2, 2),
    )[0]
    at = min(1 + int(generator.expovariate(2.5 / operations)), 4 * operations)
    if kind == "limit":
        at = int(10 ** generator.uniform(0, 4.5))
    return Fault(
        kind, at, generator.choice(ERRORS), generator.random() < 0.5, generator.uniform(0, seconds), clock
    )  # fmt: skip


class _Injector:
    """Counts operations below ``root`` and strikes."""

    def __init__(self, fault: Fault, root: str) -> None:
        self.fault, self.root, self.count, self.struck = fault, root, 0, False
        self.lock = threading.Lock()
        self.unsynced: dict[int, str] = {}  # inode -> path, for a loss of power

    def concerns(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.root)

    def number(self) -> int:
        with self.lock:
            self.count += 1
            return self.count

    def before(self, path: Any, writes: bool) -> int:
        """Strike before an operation, or say which one it is."""
        number = self.number()
        self.strike(number, path, writes)
        return number

    def strike(self, number: int, path: Any, writes: bool) -> None:
        fault = self.fault
        if number == fault.at and (fault.kind == "power" or (fault.kind == "kill" and not fault.after)):
            self.die()
        code = 0
        if (
            fault.kind == "error"
            and number >= fault.at
            and not self.struck
            and (writes or fault.errno not in OF_WRITES)
        ):
            code, self.struck = fault.errno, True
        if number >= fault.at and fault.kind in LASTING and (writes or fault.kind == "gone"):
            code = LASTING[fault.kind]
        if code:  # as the system says it: writes and syncs, which have a descriptor, name no file
            raise OSError(code, os.strerror(code), *([] if path is None else [os.fspath(path)]))

    def done(self, number: int) -> None:
        if number == self.fault.at and self.fault.kind == "kill" and self.fault.after:
            self.die()

    def die(self) -> None:
        if self.fault.kind == "power":
            for inode, path in self.unsynced.items():
                for name in (path, *_namesakes(path, inode)):
                    if os.path.exists(name) and _stat(name).st_ino == inode:
                        os.truncate(name, 0)
                        break
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


_stat = os.stat


def _namesakes(path: str, inode: int) -> list[str]:
    """Other names of a file that was renamed or linked: looked for in the table's own folders."""
    near = Path(path).parent.parent
    return [str(each) for each in near.rglob("*") if each.is_file() and each.stat().st_ino == inode]


def inject(fault: Fault, root: str) -> None:
    """Let ``fault`` befall this process, at operations below ``root``. There is no way back: for a process that ends soon."""
    if fault.clock:
        real_time, real_ns, ns = time.time, time.time_ns, int(fault.clock * 1e9)
        time.time = lambda: real_time() + fault.clock
        time.time_ns = lambda: real_ns() + ns
    if fault.kind == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.at, resource.RLIM_INFINITY))
    if fault.kind in ("none", "moment", "limit"):
        return
    injector = _Injector(fault, root)
    for name in ("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "utime", "truncate"):
        _wrap(injector, os, name, writes=name not in ("unlink", "remove", "rmdir"))
    for name in ("stat", "lstat", "scandir", "listdir"):
        _wrap(injector, os, name, writes=False)
    _wrap(injector, pa, "memory_map", writes=False)
    _wrap_os_open(injector)
    _wrap_fsync(injector)
    _wrap_open(injector)
    _wrap_sqlite(injector)


def _wrap(injector: _Injector, module: Any, name: str, writes: bool) -> None:
    real: Callable[..., Any] = getattr(module, name)

    def wrapped(*args: Any, **options: Any) -> Any:
        if not args or not injector.concerns(args[0]):
            return real(*args, **options)
        number = injector.before(args[0], writes)
        result = real(*args, **options)
        injector.done(number)
        return result

    setattr(module, name, wrapped)


def _wrap_os_open(injector: _Injector) -> None:
    real = os.open

    def wrapped(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if not injector.concerns(path):
            return real(path, flags, *args, **options)
        number = injector.before(path, bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
        descriptor = real(path, flags, *args, **options)
        injector.done(number)
        return descriptor

    os.open = wrapped


def _wrap_fsync(injector: _Injector) -> None:
    real = os.fsync

    def wrapped(descriptor: int) -> None:
        number = injector.before(None, writes=True)
        real(descriptor)
        injector.unsynced.pop(os.fstat(descriptor).st_ino, None)
        injector.done(number)

    os.fsync = wrapped  # type: ignore[assignment]


def _wrap_open(injector: _Injector) -> None:
    real = builtins.open

    class Written(io.FileIO):
        """A file whose writes are operations; the one that is struck gets half of its bytes to the disk."""

        def write(self, data: Any) -> int:
            number = injector.number()
            view = memoryview(data).cast("B")
            if number == injector.fault.at and view.nbytes > 1:
                super().write(view[: view.nbytes // 2])
            injector.strike(number, None, writes=True)
            if number == injector.fault.at and injector.fault.kind == "kill":
                injector.die()
            return super().write(view)

    signature = inspect.signature(real)

    def opened(file: Any, *args: Any, **options: Any) -> Any:
        """``open``, whose arguments are those of the real one."""
        if not injector.concerns(file):
            return real(file, *args, **options)
        given = signature.bind(file, *args, **options)
        given.apply_defaults()
        mode, asked = given.arguments["mode"], given.arguments
        writes = any(letter in mode for letter in "wax+")
        number = injector.before(file, writes)
        if not writes or "+" in mode:
            result: Any = real(file, *args, **options)
        else:
            raw = Written(os.fspath(file), mode.replace("b", "").replace("t", ""))
            injector.unsynced[os.fstat(raw.fileno()).st_ino] = os.fspath(file)
            result = raw
            if asked["buffering"] != 0:
                result = io.BufferedWriter(raw)
                if "b" not in mode:
                    result = io.TextIOWrapper(result, asked["encoding"] or "utf-8", asked["errors"], asked["newline"])
        injector.done(number)
        return result

    builtins.open = io.open = opened


def _wrap_sqlite(injector: _Injector) -> None:
    real = sqlite3.connect
    words = {
        errno.ENOSPC: "database or disk is full",
        errno.EDQUOT: "database or disk is full",
        errno.EROFS: "attempt to write a readonly database",
        errno.EACCES: "unable to open database file",
    }

    def meet(path: Any, writes: bool) -> None:
        try:
            injector.done(injector.before(path, writes))
        except OSError as error:
            raise sqlite3.OperationalError(words.get(error.errno or 0, "disk I/O error")) from None

    def connect(path: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        if not injector.concerns(path):
            return real(path, *args, **options)

        class Connection(sqlite3.Connection):
            def execute(self, text: str, *values: Any) -> sqlite3.Cursor:
                meet(path, not text.startswith("SELECT"))
                return super().execute(text, *values)

            def executescript(self, text: str) -> sqlite3.Cursor:
                meet(path, writes=True)
                return super().executescript(text)

        meet(path, writes=False)
        return real(path, *args, factory=Connection, **options)

    sqlite3.connect = connect  # type: ignore[assignment]
