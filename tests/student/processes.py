"""Two processes that share the work of one, as a launcher would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def of_two_processes(program: str, *arguments: str) -> None:
    """Run a Python program in two processes (gloo) and see both end well. No teacher, worker or Ray may be imported by it."""
    common = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "LOCAL_RANK": "0",
    }  # fmt: skip
    command = [sys.executable, "-c", program + NO_TEACHER, *arguments]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=500)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors


NO_TEACHER = """
import sys
known = ("ray", "hoi_distill.workers", "hoi_distill.stages.teacher")
bad = [name for name in sys.modules if f"{name}.".startswith(tuple(f"{room}." for room in known))]
assert not bad, bad
"""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
