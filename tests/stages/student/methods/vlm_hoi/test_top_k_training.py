"""A student on a table of matching logits in which every image wants only its most similar prompts."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.planning.plan import plan
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.request import resolve
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.pico.world import write_world
from hoi_distill.storage.errors import UserError

KEPT = 9
WORDS = Path(__file__).parents[5] / "stages/teacher/pico/itm"
"""Whose tokenizer knows the prompts."""


@pytest.fixture(scope="module")
def config(tmp_path_factory, blip_config) -> Path:
    root = tmp_path_factory.mktemp("top_k")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(WORDS)
    model = BlipForImageTextRetrieval(blip_config(vocab_size=len(tokenizer), initializer_range=0.1))
    model.save_pretrained(root / "teacher")
    BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), tokenizer).save_pretrained(root / "teacher")
    teacher = str(root / "teacher")
    write_world(root / "world", seed=0, train=24, test=6)
    document = {
        "name": "top-k",
        "cache": str(root / "cache"),
        "runs": str(root / "runs"),
        "dataset": {"kind": "pico", "root": str(root / "world"), "seed": 0, "train": 24, "test": 6},
        "tables": {
            "detections": {"stage": "ground_truth_boxes"},
            "features": {"stage": "blip_features", "checkpoint": teacher, "columns": ["original", "flip"]},
            "itc": {"stage": "blip_itc", "checkpoint": teacher, "columns": "prompts"},
            "itm": {
                "stage": "blip_itm", "checkpoint": teacher, "columns": "prompts", "itc": "itc", "itc_top_k": KEPT,
                "token_mode": "cls",
            },
        },
        "student": {"labelled": 12, "steps": 4, "itm_on": "both", "tables": {"text": None, "captions": None}},
    }  # fmt: skip
    path = root / "top_k.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def filled(workspace: Workspace) -> None:
    with choose_executor("inline", "cpu", 1) as execute:
        fill(workspace, execute, threading.Event())


def test_the_student_trains_on_the_cells_that_are_wanted(config):
    workspace = prepare(config)
    with pytest.raises(UserError, match="no cell is filled; fill it with"):
        resolve(workspace, plan(workspace.nodes, workspace.sources, workspace.cache))
    filled(workspace)
    wide = prepare(config, [f"tables.itm.itc_top_k={KEPT + 20}"])
    with pytest.raises(UserError, match=r"table itm: \d+ of \d+ cells that the student needs are empty; fill it with:"):
        train_student(wide)
    run = train_student(workspace)
    (scores,) = (run.parent.parent / "shared").glob("itm-*.npy")
    soft = np.load(scores)
    assert soft.shape == (24, len(workspace.vocabulary))
    learnt = soft[:, workspace.vocabulary.actions()]  # the others' answers are no soft labels
    assert np.isnan(soft).sum() > np.isnan(learnt).sum()
    assert not np.isfinite(soft[:, ~workspace.vocabulary.actions()]).any()
    table = plan(workspace.nodes, workspace.sources, workspace.cache)["itm"]
    assert table.cells.wanted is not None
    chosen = table.cells.wanted[:24].sum(1)
    assert KEPT <= chosen.min() <= chosen.max() < len(workspace.vocabulary), "ties are kept too"
    assert np.isfinite(learnt).sum() == table.cells.wanted[:24][:, workspace.vocabulary.actions()].sum()
    assert (run / "report.html").exists()

    filled(wide)
    before = resolve(workspace, plan(workspace.nodes, workspace.sources, workspace.cache))
    assert before.fingerprint[:12] == run.name, "what others have asked for does not move this student"
    assert resolve(wide, plan(wide.nodes, wide.sources, wide.cache)).fingerprint != before.fingerprint


def test_a_prompt_without_similarity_is_named_when_the_graph_is_built(config, tmp_path):
    document = yaml.safe_load(config.read_text())
    prompt = prepare(config).vocabulary.prompts()[3]
    document["tables"]["itc"]["columns"] = [p for p in prepare(config).vocabulary.prompts() if p != prompt]
    path = tmp_path / "without.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError, match=f"tables.itm.columns: '{prompt}' is chosen by column .* add it to tables.itc"):
        prepare(path)
