"""``kill -9`` of the driver of ``hoi-distill run`` at ten random moments: what is computed twice, and whether it shows.

A pico world, the pico teacher, Ray with two workers. Each run goes on where the killed one was; the last one ends by
itself. Every forward of the teacher notes its cells (``bench.audited_stages``), so that cells which were computed but
not committed are counted too. The tables are compared, cell by cell and bit by bit, with those of a run that nobody
disturbed.

    python -m bench.bench_kills [--json] [--kills N] [--pictures N] [--shard-rows N] [--seed N] [--executor ray|inline]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.workspace import Workspace, prepare

ROOT = Path(__file__).parents[1]
WORKERS = 2
AUDITED = ("features", "itm", "captions")


class Runs:
    """Runs of one setup in one cache, and what they computed."""

    def __init__(self, folder: Path, name: str, options: argparse.Namespace) -> None:
        self.options, self.path, self.log = options, folder / f"{name}.yaml", folder / f"{name}.log"
        config = yaml.safe_load((ROOT / "configs/pico.yaml").read_text())
        train = options.pictures * 4 // 5
        world = str(folder / "world")
        config["dataset"].update(root=world, train=train, test=options.pictures - train)
        config["student"]["labelled"] = train // 2
        config["cache"], config["runs"] = str(folder / name), str(folder / "runs")
        for table in config["tables"].values():
            table["shard_rows"] = options.shard_rows
        self.path.write_text(yaml.safe_dump(config))

    def start(self) -> subprocess.Popen[bytes]:
        """Start a run in a process of its own."""
        command = [sys.executable, "-m", "bench.audited_stages", "run", str(self.path)]
        command += ["--executor", self.options.executor, "--workers", str(WORKERS)]
        places = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "HOI_DISTILL_AUDIT": str(self.log), "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
        environment["RAY_TMPDIR"] = str(self.path.parent)  # what killed Rays leave behind goes with the bench's folder
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def finish(self) -> float:
        """Run to the end; wall seconds."""
        started = time.perf_counter()
        driver = self.start()
        out, _ = driver.communicate()
        if driver.returncode:
            raise RuntimeError(f"the run ended with {driver.returncode}:\n{out.decode()}")
        return time.perf_counter() - started

    def computed(self) -> Counter[str]:
        """Cells computed so far, by table."""
        cells: Counter[str] = Counter()
        for line in self.log.read_text().splitlines() if self.log.exists() else []:
            table, _, number = line.partition(" ")
            cells[table] += int(number)
        return cells

    def workspace(self) -> Workspace:
        """The configuration as it is prepared now."""
        return prepare(self.path)


def kill_at(runs: Runs, cells: int, generator: random.Random) -> bool:
    """Start, and kill -9 the driver a moment after the ``cells``-th cell of all runs together has been computed: while it
    begins, if that was before. False where it had ended by itself."""
    driver = runs.start()
    while driver.poll() is None and runs.computed().total() < cells:
        time.sleep(0.02)
    time.sleep(generator.uniform(0, 1))
    alive = driver.poll() is None
    driver.kill()
    driver.communicate()
    time.sleep(1.0)  # orphans of the driver end here; what they still compute is counted
    return alive


def cells_of(workspace: Workspace) -> dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]]:
    """By table: row ids, values by column, value digests; every wanted cell has to be there."""
    found = {}
    for name, table_plan in plan_all(workspace).items():
        if not table_plan.complete() or table_plan.table is None:
            raise RuntimeError(f"{name}: {table_plan.counts}")
        ids = workspace.sources[table_plan.node.stage.source].ids[table_plan.rows]
        values = table_plan.table.read(table_plan.cells)
        found[name] = ids, values, table_plan.table.value_digests(table_plan.cells)
    return found


def differing(first: Workspace, second: Workspace) -> dict[str, int]:
    """Cells whose stored values differ, by table."""
    one, other = cells_of(first), cells_of(second)
    count = {}
    for name, (ids, values, digests) in one.items():
        if not np.array_equal(ids, other[name][0]):
            raise RuntimeError(f"{name}: other rows")
        unequal = digests != other[name][2]
        for c, column in enumerate(values):
            mine, theirs = values[column], other[name][1][column]
            if isinstance(mine, np.ndarray):
                unequal[:, c] |= (mine.view(np.uint16) != theirs.view(np.uint16)).reshape(len(ids), -1).any(axis=1)
            else:
                unequal[:, c] |= [a != b for a, b in zip(mine.to_pylist(), theirs.to_pylist(), strict=True)]
        count[name] = int(unequal.sum())
    return count


def superseded(workspace: Workspace) -> int:
    """Cells that commit records hold twice."""
    held = wanted = 0
    for table_plan in plan_all(workspace).values():
        assert table_plan.table is not None
        held += sum(record.header["cells"] for record in table_plan.table.records())
        wanted += table_plan.counts["filled"]
    return held - wanted


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare a run that is killed again and again with an undisturbed one."""
    generator = random.Random(options.seed)
    quiet, killed = Runs(folder, "quiet", options), Runs(folder, "killed", options)
    killed.workspace()  # renders the world
    seconds = quiet.finish()
    wanted = quiet.computed()
    moments = sorted(generator.randrange(wanted.total()) for _ in range(options.kills))
    died = sum(kill_at(killed, moment, generator) for moment in moments)
    last = killed.finish()
    computed = killed.computed()
    workspace = killed.workspace()
    columns = {
        node.stage.name: len(node.stage.columns) for node in workspace.nodes.values() if node.stage.name in AUDITED
    }
    task = options.shard_rows * sum(columns.values())
    return {
        "pictures": options.pictures,
        "workers": WORKERS,
        "executor": options.executor,
        "kills": died,
        "runs_that_ended_before_their_kill": options.kills - died,
        "seconds_undisturbed": round(seconds, 1),
        "seconds_last_run": round(last, 1),
        "cells_wanted": dict(wanted),
        "cells_computed": dict(computed),
        "cells_computed_more_than_once": computed.total() - wanted.total(),
        "cells_of_the_largest_task": task,
        "bound": task * WORKERS * died,
        "within_bound": computed.total() - wanted.total() <= task * WORKERS * died,
        "cells_committed_twice": superseded(workspace),
        "cells_that_differ": differing(workspace, quiet.workspace()),
    }


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--shard-rows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-", dir="/tmp") as folder:
        result = measure(Path(folder), options)
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{result['kills']} kills of the driver, {result['workers']} workers ({result['executor']}): "
        f"{sum(result['cells_wanted'].values()):,} cells wanted, {result['cells_computed_more_than_once']:,} computed again "
        f"(bound, one task per worker and kill: {result['bound']:,}); cells that differ from an undisturbed run's: "
        f"{sum(result['cells_that_differ'].values())}"
    )


if __name__ == "__main__":
    main()
