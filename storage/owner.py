"""Who wrote a temporary file or a note, and whether that process is still there.

A tag is ``<host>-<pid>``, where host is a digest of node name, boot and pid namespace: only processes that could see
each other's pids share it, so two containers of one name never take each other for dead.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import time
from pathlib import Path

TAG = re.compile(r"([0-9a-f]{12})-(\d+)-")
"""How names of temporary files begin. What is named otherwise is somebody else's and never dead."""
STALE_SECONDS = 24 * 3600.0
"""A leftover of a host that cannot be asked counts as dead when it is this old."""


@functools.cache
def _host() -> str:
    parts = [os.uname().nodename]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(read())
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()


def tag() -> str:
    """This process's tag."""
    return f"{_host()}-{os.getpid()}"


def is_dead(name: str, age_seconds: float, stale_seconds: float = STALE_SECONDS) -> bool:
    """Whether the process whose tag starts ``name`` is gone: asked directly on this host, judged by age elsewhere."""
    found = TAG.match(name)
    if found is None:
        return False
    host, pid = found.groups()
    if host != _host():
        return age_seconds > stale_seconds
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def sweep(folder: Path) -> int:
    """Remove what dead processes left in ``folder`` (files named ``<tag>-...``); returns how many."""
    swept = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if is_dead(entry.name, time.time() - entry.stat().st_mtime):
                    os.unlink(entry.path)
                    swept += 1
    return swept
