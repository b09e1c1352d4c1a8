"""The crowd's matching teacher: what its training leaves fills an itm table, and its card says what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hoi_distill.stages.data.crowd.classes import HOIS, crowd_vocabulary
from hoi_distill.stages.data.crowd.render import render_crowd
from hoi_distill.stages.teacher.blip.stages import BlipItm
from hoi_distill.stages.teacher.crowd.evaluation.matching import SHIPPED, area_under_roc, margins
from hoi_distill.stages.teacher.crowd.training import corpus, matching
from hoi_distill.stages.teacher.crowd.training.corpus import CorpusPart
from hoi_distill.stages.teacher.pico.modeling.clip import PicoClipModel
from tests.fixtures.stages import made


@pytest.fixture
def small_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus.load, "__defaults__", (tmp_path / "corpus",))
    monkeypatch.setattr(corpus, "TAUGHT", CorpusPart(154, 10))


def test_a_training_leaves_a_blip_with_the_crowds_tower_that_scores_the_crowds_prompts(small_corpus, tmp_path):
    matching.main(["--out", str(tmp_path / "itm"), "--steps", "2", "--batch", "4", "--scenes", "6"])
    pixels = corpus.load(corpus.TAUGHT).pixels
    found = margins(tmp_path / "itm", pixels)
    assert found.shape == (7, len(HOIS))
    assert np.isfinite(found).all()
    stage = made(BlipItm, checkpoint=str(tmp_path / "itm"), columns=crowd_vocabulary().prompts())
    stage.open("cpu", {})
    assert stage.token_mode == "cls"
    tower = matching.build_model(
        PicoClipModel.from_pretrained(matching.TOWER), len(stage.tokenizer)
    ).vision_model.state_dict()
    for name, value in stage.model.vision_model.state_dict().items():
        torch.testing.assert_close(value, tower[name], rtol=0, atol=0, msg=name)


def test_a_blip_sees_with_a_clips_tower_what_the_clip_sees():
    clip = PicoClipModel.from_pretrained(matching.TOWER).eval()
    blip = matching.build_model(clip, 100).eval()
    image = torch.from_numpy(render_crowd(CorpusPart(154, 1).plans()[0]).image).permute(2, 0, 1)[None] / 128 - 1
    with torch.no_grad():
        theirs = clip.vision_model.post_layernorm(clip.vision_model(pixel_values=image).last_hidden_state)
        ours = blip.vision_model(image).last_hidden_state
    assert torch.cosine_similarity(ours, theirs, dim=-1)[:, 1:].mean() > 0.95  # not 1: BLIP has one norm less


def test_a_scene_shows_the_interactions_that_its_renderer_draws():
    part = CorpusPart(154, 6)
    for plan, shown in zip(part.plans(), part.interactions(), strict=True):
        drawn = {(relation.verb, relation.name) for relation in render_crowd(plan).relations}
        assert {HOIS[k] for k in np.flatnonzero(shown)} == drawn


def test_the_area_under_the_curve_counts_pairs_in_order_and_ties_by_half():
    truth = np.array([[True, True], [True, False], [False, False], [False, False]])
    scores = np.array([[0.9, 0.5], [0.2, 0.5], [0.2, 0.5], [0.1, 0.5]])
    np.testing.assert_allclose(area_under_roc(scores, truth), [3.5 / 4, 0.5])
    assert np.isnan(area_under_roc(scores, np.zeros_like(truth))).all()


def test_the_card_says_what_was_measured():
    card, found = (SHIPPED / "README.md").read_text(), json.loads((SHIPPED / "heldout.json").read_text())

    def row(label: str) -> list[str]:
        (line,) = [line for line in card.splitlines() if line.startswith(f"| {label} |")]
        return [cell.strip() for cell in line.strip("|").split("|")][1:]

    both = (found["itm"], found["objects_alone"])
    keys = {
        "AUC": "auc",
        "AUC, object there": "auc_object_there",
        "class mAP": "class_map",
        "rank mAP": "rank_map",
        "verb swap, pairs": "swap_pairwise",
    }
    for label, key in keys.items():
        assert row(label) == [f"{one[key]:.3f}" for one in both]
    for verb in found["itm"]["auc_by_verb"]:
        assert row(f"AUC of {verb}") == [f"{one['auc_by_verb'][verb]:.3f}" for one in both]
    assert f"{json.loads((SHIPPED / 'recipe.json').read_text())['cpu_seconds']:.0f} s of CPU" in card
    assert (SHIPPED / "model.safetensors").stat().st_size < 11e6
