"""The page about teachers lists what there is, and its example is a stage that works."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from docs.teachers_table import PAGE, filled
from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.graph import registry
from hoi_distill.pipeline.graph.catalogue import catalogue
from hoi_distill.pipeline.planning.plan import plan
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.data.image import decode
from hoi_distill.storage.selection import CellSelection
from tests.fixtures.toy_stages import paint

ROOT = Path(__file__).parents[3]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_tables_are_current():
    assert filled(PAGE.read_text()) == PAGE.read_text(), "run: python docs/teachers_table.py"


def test_the_example_keeps_the_house_rules():
    (source,) = blocks("python")
    for check in (["check", "--output-format", "concise"], ["format", "--check"]):
        command = [
            sys.executable,
            "-m",
            "ruff",
            *check,
            "--no-cache",
            "--stdin-filename",
            "stages/teacher/tags.py",
            "-",
        ]
        done = subprocess.run(command, input=source, text=True, capture_output=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def classifier(tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    config = ViTConfig(**shape, image_size=32, patch_size=8, num_labels=5, initializer_range=0.3)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_the_example_fills_a_table(tmp_path, classifier, monkeypatch):
    (source,) = blocks("python")
    (tmp_path / "tags.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.STAGES, "tags", "tags:Tags")
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        paint(tmp_path / "pictures" / f"{number}.png", 40 * number)
    (snippet,) = (yaml.safe_load(block) for block in blocks("yaml"))
    snippet["tables"]["tags"]["checkpoint"] = str(classifier)
    config = {
        "name": "example",
        "cache": str(tmp_path / "cache"),
        "dataset": {"kind": "folder", "root": str(tmp_path / "pictures")},
        **snippet,
    }
    path = tmp_path / "example.yaml"
    path.write_text(yaml.safe_dump(config))
    with choose_executor("inline", "cpu", 1) as execute:
        fill(prepare(path), execute, threading.Event())
    workspace = prepare(path)
    made = plan(workspace.nodes, workspace.sources, workspace.cache)["tags"]
    assert made.complete()
    images = workspace.sources["images"]
    stored = np.array(made.table.read(CellSelection(images.ids[made.rows], ("value",)))["value"].to_pylist())
    model, processor = ViTForImageClassification.from_pretrained(classifier), ViTImageProcessorPil()
    processor.size = {"height": 32, "width": 32}
    with torch.no_grad(), open(images.uris[made.rows[3]], "rb") as file:
        pixels = processor([decode(file.read())], return_tensors="pt")["pixel_values"]
        np.testing.assert_allclose(stored[3], model(pixels).logits.softmax(-1)[0], atol=1e-3)
    assert stored.std(0).max() > 1e-2
    entry = next(entry for entry in catalogue() if entry["stage"] == "tags")
    assert entry["architectures"] == ["ViTForImageClassification"]
    assert "gpus" in {key["name"] for key in entry["keys"]}
