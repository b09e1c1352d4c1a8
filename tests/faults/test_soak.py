"""The soak: a short one finds nothing, and it does find faults where there are some. Long ones: ``python -m bench soak``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from bench.soak_house import FAULTS

ROOT = Path(__file__).parents[2]


def soaked(kinds: tuple[str, ...], sequences: int, seed: int = 0, planted: str = "") -> tuple[dict[str, Any], str]:
    """What so many sequences of each kind count, in a process of their own (a soak changes what it forks), and its log."""
    code = f"""
        import json
        {planted}
        from bench.soak import soak
        tallies = soak({kinds!r}, {seed}, 0.0, {sequences})
        print(json.dumps({{kind: tally.as_json() for kind, tally in tallies.items()}}))
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sequences"), [("storage", 30), ("pipeline", 8)])
def test_random_faults_lose_nothing_show_nothing_wrong_and_leave_nothing_to_clear_away(kind, sequences):
    found, log = soaked((kind,), sequences, seed=2)
    counted = found[kind]
    assert counted["sequences"] == sequences
    assert counted["disturbances"] > sequences
    assert {name: counted[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0), log


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sequences"), [("storage", 100), ("pipeline", 30)])
def test_many_random_faults(kind, sequences):
    found, log = soaked((kind,), sequences, seed=1)
    assert {name: found[kind][name] for name in FAULTS} == dict.fromkeys(FAULTS, 0), log


PLANTED = {
    "lost": "import hoi_distill.storage.table_writer as t; t.publish_record = lambda scratch, target, data: True",
    "wrong_after_the_end": (
        "import hoi_distill.storage.table as t; commit = t.Table.commit; "
        "from dataclasses import replace; "
        "t.Table.commit = lambda self, block, *a, **k: "
        "commit(self, replace(block, row_ids=block.row_ids[::-1].copy()), *a, **k)"
    ),
    "tracebacks": "import hoi_distill.storage.check; hoi_distill.storage.check.check_table = lambda *_: 1 / 0",
    "need_a_human": (
        "import hoi_distill.storage.check, hoi_distill.storage.errors\n"
        "        def refuse(*_): raise hoi_distill.storage.errors.StorageError('no')\n"
        "        hoi_distill.storage.check.check_table = refuse"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_in_the_code_is_found_and_its_sequence_named(name):
    found, log = soaked(("storage", "pipeline"), 3, planted=PLANTED[name])
    for kind in found:
        assert found[kind][name] > 0
        assert f"python -m bench.soak --kind {kind} --seed 0 --sequence " in log
