"""The whole line with its cache in an object store: the cells and the student of one on disk, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hoi_distill.storage.cache import Cache
from tests.fixtures.pico_run import ROOT

pytestmark = pytest.mark.slow


def hoi_distill(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "hoi_distill", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def payloads(root: str | Path) -> dict[str, set[str]]:
    """The payloads of every table. Their names hold the checksums of their bytes."""
    cache = Cache(root)
    return {table.dir.name: cache.store.names(table.dir / "shards") for table in cache.tables()}


def student(runs: Path) -> tuple[bytes, dict]:
    run = runs / "pico" / "latest"
    return (run / "checkpoint" / "model.safetensors").read_bytes(), json.loads((run / "evaluation.json").read_text())


def test_cells_and_student_are_those_of_a_cache_on_disk(pico_run, bucket_of, tmp_path):
    config, _ = pico_run
    for root, runs in ((str(tmp_path / "cache"), "disk"), (bucket_of, "objects")):
        chosen = ("--set", f"cache={root}", "--set", f"runs={tmp_path / runs}")
        hoi_distill("run", config, *chosen)  # by Ray's workers
        hoi_distill("train", config, *chosen)
        assert "Nothing to do" in hoi_distill("run", config, *chosen)
    assert payloads(bucket_of) == payloads(tmp_path / "cache")
    assert len(payloads(bucket_of)) > 4
    assert student(tmp_path / "objects") == student(tmp_path / "disk")
    assert "0 bad shards" in hoi_distill("check", "--cache", bucket_of)
    assert "registered setups: pico-" in hoi_distill("gc", "--cache", bucket_of)
