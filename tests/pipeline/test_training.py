"""Training on a cache with holes: pictures that cannot be read are left out and counted, in training, test and report."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import yaml

from pipeline.run import choose_executor, fill
from pipeline.setup import prepare
from pipeline.training import train_student
from stages.data.pico.world import write_world

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_unreadable_pictures_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = yaml.safe_load((ROOT / "configs/pico.yaml").read_text())
    world = tmp_path / "world"
    config.update(cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs"))
    config["dataset"].update(root=str(world), train=24, test=8)
    config["student"].update(labelled=12, steps=2)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    write_world(world, seed=0, train=24, test=8)
    for name in ("train2015/HICO_train2015_00000001.jpg", "test2015/HICO_test2015_00000003.jpg"):
        picture = world / "images" / name
        picture.write_bytes(picture.read_bytes()[:-400])

    setup = prepare(path)
    with choose_executor("inline", "cpu", 1) as execute:
        summary = fill(setup, execute, threading.Event())
    assert summary.failures["features"] == 4  # two pictures, two views
    run = train_student(setup)
    record = json.loads((run / "student.json").read_text())
    assert record["pictures"] == {"labelled": 11, "unlabelled": 12, "test": 8}
    report = (run / "report.html").read_text()
    assert "1 × detections: broken picture" in report
    assert "HICO_test2015_00000003.jpg" not in report
