"""Swap accuracy stands beside mAP: in the run of a crowd and in the table of a matrix, and nowhere else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hoi_distill.pipeline.config.schema import CrowdDataset, PicoDataset
from hoi_distill.pipeline.reports.arms import MarkdownPage, markdown
from hoi_distill.pipeline.train import evaluate_by_own_protocol
from hoi_distill.stages.data.crowd.world import write_crowd
from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import write_detections
from hoi_distill.stages.evaluate.metrics.swap_accuracy import read_twins
from hoi_distill.stages.evaluate.pages.report import Arm, Run


def run(swap_accuracy: float | None) -> Run:
    means = {"full": 7.0, "rare": 5.0, "non_rare": 9.0}
    return Run(0, means, means, 1.0, swap_accuracy=swap_accuracy)


def test_a_table_has_the_column_where_a_run_has_the_figure():
    page = MarkdownPage("m", "", "", (0,))
    assert "| arm | full | rare | non-rare | known object, full | swap accuracy | CPU s |" in markdown(
        page, [Arm("a", "", [run(61.5)])]
    )
    assert "| a | 7.0 | 5.0 | 9.0 | 7.0 | 61.5 | 1 |" in markdown(page, [Arm("a", "", [run(61.5)])])
    assert "swap" not in markdown(page, [Arm("a", "", [run(None)])])


@pytest.mark.parametrize("right", [True, False])
def test_a_run_on_the_crowd_says_how_often_the_acting_pair_is_above_the_other(tmp_path, capsys, right):
    root = write_crowd(tmp_path / "world", train=2, test=20)
    test = load_hico_det(root, "test")
    twins = read_twins(root / "twins_test2015.json", test.image_id, test.vocabulary)
    hoi = np.repeat(twins.hoi, 2).astype(np.int32)
    verb, obj = test.vocabulary.hois[hoi].T.astype(np.int32)
    boxes, image = twins.boxes.reshape(-1, 2, 4), np.repeat(twins.image, 2).astype(np.int32)
    score = np.tile([0.9, 0.1] if right else [0.1, 0.9], len(twins.hoi))
    found = HoiDetections(image, boxes[:, 0], boxes[:, 1], obj, verb, hoi, score)
    write_detections(tmp_path / "detections.parquet", found, test.image_id)
    evaluate_by_own_protocol(CrowdDataset(kind="crowd", root=root), tmp_path / "detections.parquet", tmp_path)
    expected = 100.0 if right else 0.0
    assert json.loads((tmp_path / "swap_accuracy.json").read_text())["swap_accuracy"] == expected
    assert f"Swap accuracy: {expected:.1f} % of 12 questions" in capsys.readouterr().out


def test_other_worlds_have_no_such_file(tmp_path):
    evaluate_by_own_protocol(PicoDataset(kind="pico", root=tmp_path), tmp_path / "detections.parquet", tmp_path)
    assert not list(tmp_path.iterdir())
