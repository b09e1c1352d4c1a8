"""Exported graphs say what the networks say, and the page's program needs no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hoi_distill import HOIDetector
from hoi_distill.pipeline import export
from hoi_distill.pipeline.export import Answers, Comparison, Exported, export_checkpoint, refuse_different
from hoi_distill.stages.student.methods.vlm_hoi.config import network_config
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren
from hoi_distill.stages.student.methods.vlm_hoi.student import VlmHoiStudent
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_student import VOCABULARY
from tests.fixtures.untrained_student import DETECTOR, of_a_file, scene, untrained
from tests.fixtures.vlm_hoi_world import tiny_config

PAGE = Path(__file__).parents[2] / "docs/use.md"
WITHOUT = "import sys; sys.modules.update(torch=None, transformers=None, hoi_distill=None)\n"


@pytest.mark.slow
def test_student_encoder_and_detector_are_exported_and_the_page_s_program_finds_the_same_pairs(tmp_path):
    checkpoint, photos = untrained(tmp_path / "student"), tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        scene(number).resize((300, 200)).save(photos / f"{number}.png")
    exported = export_checkpoint(checkpoint, tmp_path / "out", images=[photos])
    assert exported.left_out == {}
    assert exported.compared.images == exported.compared.same_best == 3
    assert exported.compared.triplets > 100
    assert exported.compared.scores < 1e-4
    assert exported.compared.boxes < 0.05
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "student.onnx",
        "encoder.onnx",
        "detector.onnx",
        "export.json",
    }
    program = re.search(r"```python\n(\"\"\"Pairs in .*?)```", PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "onnx_predict.py").write_text(WITHOUT + program)
    call = [sys.executable, tmp_path / "onnx_predict.py", tmp_path / "out", photos / "1.png"]
    said = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    result = HOIDetector.from_pretrained(checkpoint, device="cpu")(photos / "1.png")
    assert [line.split()[1:3] for line in said] == [list(one) for one in zip(result.verb, result.object, strict=True)][
        :10
    ]
    assert [float(line.split()[0]) for line in said] == pytest.approx(result.score[:10], abs=2e-4)


@pytest.mark.slow
def test_a_link_student_of_given_boxes_is_exported_with_another_detector_or_without_one(tmp_path):
    checkpoint = untrained(tmp_path / "student", "link", boxes=of_a_file())
    alone = export_checkpoint(checkpoint, tmp_path / "alone", images=())
    assert list(alone.graphs) == ["student", "encoder"]
    assert "not exported; give boxes" in alone.left_out["detector"]
    assert alone.compared.same_best == 3
    record = json.loads((tmp_path / "alone/export.json").read_text())
    assert record["graphs"]["student"]["inputs"]["boxes"] == {"dtype": "float32", "shape": ["instances", 4]}
    assert record["compared"]["on"] == "3 images of noise"
    whole = export_checkpoint(checkpoint, tmp_path / "whole", detector=str(DETECTOR))
    assert list(whole.graphs) == ["student", "encoder", "detector"]
    assert whole.compared.same_best == 3


def test_students_of_other_methods_are_one_line(tmp_path):
    config = tiny_config()
    VlmHoiStudent(Muren(network_config(config, VOCABULARY)), VOCABULARY, config).save_pretrained(tmp_path / "student")
    with pytest.raises(UserError, match=r"student: students of method vlm-hoi are not exported$") as refusal:
        export_checkpoint(tmp_path / "student", tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_graphs_that_differ_from_the_networks_are_refused():
    refuse_different(Exported(compared=Comparison(scores=export.LARGEST)))
    with pytest.raises(UserError, match=r"scores by up to 0.002 on 3 images, more than 0.001; nothing was written$"):
        refuse_different(Exported(compared=Comparison(scores=0.002), on="3 images"))
    with pytest.raises(UserError, match=r"scores by up to 0.5"):
        refuse_different(Exported(compared=Comparison(detection_scores=0.5)))


def test_boxes_are_compared_with_the_nearest_of_their_class():
    ours = Answers(boxes=np.array([[0, 0, 9, 9], [0, 0, 9, 9]], np.float32), scores=np.ones(2), labels=np.array([0, 1]))
    theirs = Answers(
        boxes=np.array([[0, 0, 9, 9.5], [1, 0, 9, 9]], np.float32), scores=np.ones(2), labels=np.array([1, 0])
    )
    found = Comparison()
    found.widen("boxes", *ours.matched(theirs, "boxes"))
    assert found.boxes == 1.0


def test_without_its_packages_an_export_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"^onnxruntime: .*pip install 'hoi-distill\[onnx\]'$"):
        export_checkpoint(tmp_path, tmp_path / "out")
