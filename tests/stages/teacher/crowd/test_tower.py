"""The crowd's tower: what its training leaves is a checkpoint that fills tables, and its card says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hoi_distill.stages.teacher.crowd.evaluation.tower import SHIPPED, probed, ridge
from hoi_distill.stages.teacher.crowd.training import corpus, tower
from hoi_distill.stages.teacher.crowd.training.corpus import CorpusPart
from hoi_distill.stages.teacher.pico.modeling.clip import PicoClipModel


@pytest.fixture
def small_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "FOLDER", tmp_path / "corpus")
    monkeypatch.setattr(corpus.load, "__defaults__", (tmp_path / "corpus",))
    for name in ("TAUGHT", "PROBED"):
        monkeypatch.setattr(corpus, name, CorpusPart(154, 10))


def trained(out: Path, *options: str) -> PicoClipModel:
    tower.main(["--out", str(out), "--steps", "2", "--batch", "4", *options])
    return AutoModel.from_pretrained(out)


def test_a_training_leaves_a_clip_of_256_pixels_and_a_second_turn_goes_on_from_it(small_corpus, tmp_path):
    first = trained(tmp_path / "first")
    assert isinstance(first, PicoClipModel)
    assert first.config.vision_config.image_size == 256
    second = trained(tmp_path / "second", "--start", str(tmp_path / "first"), "--fine", "1", "--lr", "0")
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert json.loads((tmp_path / "second/recipe.json").read_text())["fine"] == 1


def test_probes_find_what_the_cells_hold(small_corpus):
    labels = corpus.load(corpus.TAUGHT).labels
    rows = [getattr(labels, name).reshape(7 * 256, -1).astype(np.float32) for name in ("seen", "line", "body")]
    knowing = np.concatenate([*rows, np.ones((7 * 256, 1), np.float32)], 1)
    found = probed(knowing, labels, knowing, labels)
    assert found["seen_map"] > 0.99
    assert min(found["vector_r2"].values()) > 0.5
    blind = probed(knowing[:, -1:], labels, knowing[:, -1:], labels)
    assert blind["seen_map"] < 0.3
    assert max(blind["vector_r2"].values()) < 0.01
    weights = ridge(np.eye(3), np.arange(6.0).reshape(3, 2), 1e-9)
    np.testing.assert_allclose(weights, np.arange(6.0).reshape(3, 2), atol=1e-6)


def test_the_card_says_what_was_measured():
    card, found = (SHIPPED / "README.md").read_text(), json.loads((SHIPPED / "heldout.json").read_text())

    def row(label: str) -> list[str]:
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {label} |")]
        return [cell.strip() for cell in line.strip("|").split("|")][1:]

    both = (found["tower"], found["untrained"])
    for name in found["tower"]["seen_ap"]:
        assert row(name) == [f"{one['seen_ap'][name]:.3f}" for one in both]
    for name in found["tower"]["vector_r2"]:
        label = f"{name.replace('_', ' ')}, R2"
        assert row(label) == [f"{one['vector_r2'][name]:.3f}" for one in both]
    for name in found["tower"]["degrees"]:
        label = f"{name.replace('_', ' ')}, degrees"
        assert row(label) == [f"{one['degrees'][name]:.1f}" for one in both]
    assert (SHIPPED / "model.safetensors").stat().st_size < 11e6
