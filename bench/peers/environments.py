"""Build one virtual environment for each third-party library, from the package index, and say which cannot be had.

python -m bench.peers.environments [NAME ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(".peers")
REQUIREMENTS = {
    "mds": "mosaicml-streaming",
    "litdata": "litdata",
    "webdataset": "webdataset",
    "lance": "pylance",
    "hf_datasets": "datasets",
    "dvc": "dvc",
    "snakemake": "snakemake",
}
"""What each format of the runner needs beside numpy, and the tools that plan. Others need only what this project has."""


@dataclass(frozen=True)
class Environment:
    """Where a format runs.

    Attributes:
        python: the interpreter. None where the library is absent.
        version: of the library, with its name.
        reason: why it is absent, the last line of the installer.
    """

    python: str | None
    version: str = ""
    reason: str = ""


def environment(name: str) -> Environment:
    """The environment of a format or a tool, built where it is not there yet."""
    if name not in REQUIREMENTS:
        return Environment(sys.executable)
    folder, requirement = (FOLDER / name).absolute(), REQUIREMENTS[name]
    python, record = folder / "bin/python", folder / "installed.json"
    if not record.exists():
        venv.create(folder, with_pip=True, clear=True)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
            torch = next(
                line for line in Path("constraints.txt").read_text().splitlines() if line.startswith("torch==")
            )
            pins.write(torch + "\n")  # so that no CUDA libraries come along
            pins.flush()
            command = [python, "-m", "pip", "install", "--quiet", "--constraint", pins.name, requirement, "numpy"]
            installed = subprocess.run(command, check=False, capture_output=True, text=True)
        if installed.returncode:
            return Environment(None, reason=(installed.stderr.strip().splitlines() or ["pip gave no reason"])[-1])
        asked = f"import importlib.metadata, json; print(json.dumps(importlib.metadata.version({requirement!r})))"
        record.write_text(subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout)
    return Environment(str(python), f"{requirement} {json.loads(record.read_text())}")


def main() -> None:
    """Build the environments that are named, or all."""
    for name in sys.argv[1:] or REQUIREMENTS:
        made = environment(name)
        print(f"{name}: {made.version or 'absent: ' + made.reason}", flush=True)


if __name__ == "__main__":
    main()
