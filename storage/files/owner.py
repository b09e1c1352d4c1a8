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
import uuid
from pathlib import Path

TAG = re.compile(r"([0-9a-f]{12})-(\d+)-")
"""How names of temporary files begin. What is named otherwise is somebody else's and never dead."""
STALE_SECONDS = 24 * 3600.0
"""A leftover of a host that cannot be asked counts as dead when it is this old."""


@functools.cache
def _host() -> str:
    parts = [os.uname().nodename]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
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


def clock_of(folder: Path) -> float:
    """What time it is (seconds since 1970) by the clock that sets the modification times of files in ``folder``. This
    machine's own clock may be days off, and what others wrote a moment ago would look old. Raises ``OSError``."""
    probe = folder / f"{tag()}-{uuid.uuid4().hex[:12]}.clock"
    try:
        with open(probe, "xb") as file:
            return os.fstat(file.fileno()).st_mtime
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def leftovers(folder: Path, tagged: re.Pattern[str] = TAG) -> list[Path]:
    """What dead processes left in a folder. Nothing where that cannot be known.

    Args:
        folder: where to look.
        tagged: what their names match; it begins with the tag.
    """
    found = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(folder) if tagged.match(name)]
        now = clock_of(folder) if names else 0.0
        for name in names:
            with contextlib.suppress(OSError):
                if is_dead(name, now - os.stat(folder / name).st_mtime):
                    found.append(folder / name)
    return found


def sweep(folder: Path) -> int:
    """Remove the files that dead processes left in ``folder``; returns how many."""
    swept = 0
    for path in leftovers(folder):
        with contextlib.suppress(OSError):
            path.unlink()
            swept += 1
    return swept
