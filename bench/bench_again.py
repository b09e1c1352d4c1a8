"""What is paid for nothing: ``hoi-distill run`` and ``train --fill`` on ``configs/pico.yaml`` where everything is done already.

What is not done yet, in the configuration's own cache and runs, is done first and not measured. Each command is a process of its
own; the kernel tells its CPU time. The commands take turns.

    python -m bench.bench_again [--json] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

CONFIG = "configs/pico.yaml"
COMMANDS = {"run": ("run", CONFIG), "train": ("train", CONFIG, "--fill")}
TIMES_SAID = {"run": 1, "train": 2}
"""How often a command says that there is nothing to do: ``train --fill`` says it of the tables, and then of the training."""


def cpu_seconds(*words: str) -> float:
    """CPU seconds of a command that finds nothing to do. Of one that finds something, none: it ends this process."""
    command = [sys.executable, "-m", "hoi_distill", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None, "a pipe"
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or said.count("Nothing to do") != TIMES_SAID[words[0]]:
        sys.exit(f"hoi-distill {' '.join(words)} found something to do")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for words in COMMANDS.values():
        subprocess.run([sys.executable, "-m", "hoi_distill", *words], check=True, stdout=sys.stderr)
    spent: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, words in COMMANDS.items():
            spent[name].append(round(cpu_seconds(*words), 2))
    medians = {f"{name}_cpu_seconds": round(statistics.median(each), 2) for name, each in spent.items()}
    result = {**medians, "both_cpu_seconds": round(sum(medians.values()), 2), "rounds": spent}
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
