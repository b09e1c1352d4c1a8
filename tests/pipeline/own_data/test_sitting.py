"""docs/own-data.md: every command of its part on photographs, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hoi_distill.stages.student.pretrained import load_student

ROOT = Path(__file__).parents[3]


def commands() -> list[str]:
    """The commands of the page in their order, each in one line."""
    text = (ROOT / "docs/own-data.md").read_text()
    part = text[text.index("## Photographs") : text.index("## HICO-DET")].replace("\\\n", " ")
    return [" ".join(line.split()) for line in re.findall(r"^    ((?:cp|hoi-distill) .*)$", part, re.MULTILINE)]


@pytest.mark.slow
def test_every_command_of_the_page_runs_in_an_empty_folder(tmp_path):
    place = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    hub = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    said = {}
    (tmp_path / "empty").mkdir()
    for command in commands():
        ended = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path / "empty", capture_output=True, text=True,
            env={**os.environ, **hub, "PATH": place, "HOI": str(ROOT)}, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
        said[command.split()[1]] = ended.stdout
    here = tmp_path / "empty"
    page = (ROOT / "docs/own-data.md").read_text()
    for line in said["init"].splitlines()[:2]:
        assert f"    {line}\n" in page
    learned = (
        "4 annotated images with soft labels from cached image-text-matching scores, and 3 images with soft labels only"
    )
    assert learned in said["train"]
    assert learned in " ".join(page.split())
    run = here / "my_project/runs/my_project/first"
    assert (run / "report.html").exists()
    assert "Training my_project" in (run / "log.txt").read_text()
    assert (here / "my_project/predicted/ship.jpg.predicted.png").exists()
    found = pq.read_table(here / "my_project/predicted/detections.parquet").to_pylist()
    verbs = load_student(run / "checkpoint").vocabulary.verbs
    assert "wave_at" in {verbs[row["verb"]] for row in found}
    assert np.load(here / "features.npy").shape[:2] == (8, 2)
    assert len(pq.read_table(here / "itm.parquet").column_names) == 2 + 5
    assert len(json.loads((here / "boxes.json").read_text())) == len(
        json.loads((here / "photos/boxes.json").read_text())
    )
