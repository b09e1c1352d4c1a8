"""The whole command on 965,800 reference detections: figures, seconds and memory, in a process of its own on one core.

``HOI_DISTILL_REFERENCE_DATA`` points to a folder with ``fixtures/hico_det`` and ``data/hico_det``; without it skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import write_detections

ROOT = Path(os.environ.get("HOI_DISTILL_REFERENCE_DATA", "/nowhere"))
FILE, DATA = ROOT / "fixtures" / "hico_det" / "hicodet_test_dets.npz", ROOT / "data" / "hico_det"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="HOI_DISTILL_REFERENCE_DATA holds no fixtures/hico_det")


@pytest.fixture(scope="module")
def detections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stored, hois = np.load(FILE), hico_vocabulary().hois
    image = np.repeat(np.arange(len(stored["image_names"])), np.diff(stored["hoi_ptr"])).astype(np.int32)
    boxes = stored["box_q4"].astype(np.float32) / 4 + np.float32([0, 0, 1, 1])  # inclusive to half-open
    first, hoi = stored["box_ptr"][image], stored["hoi_id"].astype(np.int32)
    verb, thing = hois[hoi].T.astype(np.int32)
    score = (stored["score_int"] / 2**20).astype(np.float32)
    found = HoiDetections(
        image, boxes[first + stored["hoi_sub"]], boxes[first + stored["hoi_obj"]], thing, verb, hoi, score
    )
    path = tmp_path_factory.mktemp("reference") / "detections.parquet"
    write_detections(path, found, stored["image_names"].astype(str))
    return path


def run(detections: Path, *options: str) -> tuple[dict, float, int]:
    """The record, the process's CPU seconds (other work on the machine does not count) and peak bytes."""
    command = [sys.executable, "-m", "hoi_distill", "evaluate", "--json", "--detections", str(detections), *options]
    command += ["--annotations", str(DATA / "instances_test2015.json"), "--image-labels", str(DATA / "anno.mat")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    assert process.stdout is not None
    record = json.loads(process.stdout.read())
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    return record, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def test_the_official_figures_in_five_seconds_and_two_gigabytes(detections: Path):
    record, seconds, peak = run(detections, "--zero-shot", "RF-UC")
    assert record["default"] == {"full": 49.598568, "rare": 41.235019, "non_rare": 52.096771}
    assert record["known_object"] == {"full": 57.498815, "rare": 52.54781, "non_rare": 58.977686}
    unseen = record["zero_shot"]
    assert (120 * unseen["unseen"] + 480 * unseen["seen"]) / 600 == pytest.approx(unseen["full"], abs=1e-5)
    assert seconds < 5
    assert peak < 2 << 30


def test_the_page_is_small_and_its_numbers_add_up(detections: Path, tmp_path: Path):
    _, seconds, _ = run(detections, "--out", str(tmp_path))
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert seconds < 15
    assert (tmp_path / "evaluation.html").stat().st_size < 3e6
    kinds = {row["kind"]: row for row in record["errors"]["detections"]}
    assert sum(row["all"] for row in kinds.values()) == 965_800
    assert sum(row["decisive"] for row in kinds.values()) == record["counts"]["pairs"]
    missed = sum(row["pairs"] for row in record["errors"]["missed_pairs"])
    assert kinds["right"]["all"] + missed == record["counts"]["pairs"]
    for setting in ("default", "known_object"):
        for name, bounds in record["intervals"][setting].items():
            assert bounds["low"] < record[setting][name] < bounds["high"]
