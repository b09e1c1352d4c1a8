"""What DVC and Snakemake need to find that nothing is to be done, over as many files as ours.

Each tool gets an environment of its own from the package index, in ``.peers``. One that cannot be installed is named as absent.

    python -m bench.planning_peers FILES
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.peers.environments import environment
from hoi_distill.storage.file_digests import DigestMemory

PER_FOLDER, PER_BLOCK = 10_000, 2048
SNAKEFILE = """
blocks = range(0, {files}, {block})
rule all:
    input: [f"done/{{start}}.txt" for start in blocks]
rule block:
    input: lambda wildcards: open(f"lists/{{wildcards.start}}.txt").read().split()
    output: "done/{{start}}.txt"
    shell: "touch {{output}}"
"""


OURS = f"""
import sys
from pathlib import Path
from {DigestMemory.__module__} import DigestMemory
DigestMemory(sys.argv[1]).digests(Path(sys.argv[2]).read_text().split())
"""


class Peer(NamedTuple):
    """What one tool took.

    Attributes:
        name: the tool's.
        files: how many it looked up.
        cpu_seconds: of the look-up, None where the tool is absent.
        remark: what it did, or why it is absent.
    """

    name: str
    files: int
    cpu_seconds: float | None
    remark: str


def look_up(files: int) -> list[Peer]:
    """Ours, DVC and Snakemake over the same files, each with everything done already.

    Args:
        files: how many.
    """
    with tempfile.TemporaryDirectory(prefix="bench-planning-peers-") as folder:
        root = Path(folder)
        paths = _write_files(root, files)
        memory = DigestMemory(root / "digests.sqlite")
        memory.digests(paths)
        command = [sys.executable, "-c", OURS, str(memory.path), str(root / "paths.txt")]
        return [
            Peer(
                "hoi-distill", files, _cpu_seconds(command, Path.cwd()), "digests of all files, in a process of its own"
            ),
            _installed("dvc", lambda tool: _dvc(tool, root, files)),
            _installed("snakemake", lambda tool: _snakemake(tool, root, paths)),
        ]


def _write_files(root: Path, files: int) -> list[str]:
    """Different small files in folders of PER_FOLDER, and the list of their paths."""
    paths = [f"images/{i // PER_FOLDER:03d}/{i:09d}.jpg" for i in range(files)]
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(str(i))
        os.utime(root / path, (1e9, 1e9))
    paths = [f"{root}/{path}" for path in paths]
    (root / "paths.txt").write_text("\n".join(paths))
    return paths


def _installed(name: str, measure: Callable[[Path], Peer]) -> Peer:
    """What a tool took, in its own environment, which is built where it is not there yet."""
    own = environment(name)
    if own.python is None:
        return Peer(name, 0, None, own.reason)
    try:
        return measure(Path(own.python).with_name(name))
    except subprocess.CalledProcessError as error:
        return Peer(name, 0, None, _last_line(error.stderr))


def _last_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-1] if lines else "it gave no reason"


def _dvc(tool: Path, root: Path, files: int) -> Peer:
    _run([str(tool), "init", "--no-scm", "--quiet"], root)
    _run([str(tool), "add", "--quiet", "images"], root)
    return Peer(
        "dvc", files, _cpu_seconds([str(tool), "status"], root), "dvc status of the folder, which dvc add has read"
    )


def _snakemake(tool: Path, root: Path, paths: list[str]) -> Peer:
    (root / "lists").mkdir()
    (root / "done").mkdir()
    for start in range(0, len(paths), PER_BLOCK):
        (root / f"lists/{start}.txt").write_text("\n".join(paths[start : start + PER_BLOCK]))
    (root / "Snakefile").write_text(SNAKEFILE.format(files=len(paths), block=PER_BLOCK))
    _run([str(tool), "--cores", "1", "--quiet", "all"], root)
    remark = f"snakemake --dry-run: jobs of {PER_BLOCK:,} files, all done"
    return Peer("snakemake", len(paths), _cpu_seconds([str(tool), "--dry-run"], root), remark)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)


def _cpu_seconds(command: list[str], folder: Path) -> float:
    """CPU seconds of a command and its children, the quickest of three."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    seconds = []
    for _ in range(3):
        before = spent()
        _run(command, folder)
        seconds.append(spent() - before)
    return round(min(seconds), 2)


if __name__ == "__main__":
    for peer in look_up(int(sys.argv[1])):
        print(peer)
