"""The configurations of answers about pairs build to the last key, with tiny checkpoints of the classes they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoi_distill.pipeline.config.schema import load_config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.graph.nodes import build_graph
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.teacher import weights
from hoi_distill.storage.file_digests import DigestMemory
from tests.fixtures.synthetic import empty_annotations

ROOT = Path(__file__).parents[3]
WORDS = {"hico_det": hico_vocabulary, "v_coco": v_coco_vocabulary, "pico": pico_vocabulary}
RULE = {
    "score_threshold": "score_threshold",
    "at_least": "min_instances",
    "at_most": "max_instances",
    "nms_iou": "nms_iou",
}


@pytest.mark.parametrize("dataset", WORDS)
def test_the_student_reads_what_the_teacher_was_asked_about_the_same_boxes(tiny_of, tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(weights, "locate", lambda source, revision=None: tiny_of(source))
    path, words = ROOT / f"configs/{dataset}_pair_answers.yaml", WORDS[dataset]()
    config = load_config(path)
    digests = DigestMemory(tmp_path / "digests.sqlite").digests
    nodes = build_graph(config, StageContext(words, {"train": empty_annotations(words)}, digests), path)
    method, student, data = read_section(config.student, "student.")
    needs = method.needs(student, words)
    for role, columns in needs.train.items():
        assert set(columns or ()) <= set(nodes[data.tables.name_of(role)].stage.columns)
    assert nodes["pair_answers"].stage.columns == needs.train["pair_answers"]
    rule = nodes["instances"].stage.rule
    assert rule == {name: getattr(student, key) for name, key in RULE.items()}
    assert student.pair_answers.unlabelled
