"""The shipped CLIP knows the pico world, through the same stages as any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.stage import Batch
from hoi_distill.stages.teacher.pico.evaluation import clip as clip_evaluate
from hoi_distill.stages.teacher.pico.evaluation.blip import SHIPPED, average_precision
from hoi_distill.stages.teacher.pico.training import captions, corpus
from hoi_distill.stages.teacher.pico.training.captions import Grammar
from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import Checkpoint, load
from tests.fixtures.stages import made

CLIP = SHIPPED / "clip"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """200 of the held-out scenes and what is true of them."""
    part = replace(corpus.HELD_OUT, count=200)
    loaded = corpus.load(part, tmp_path_factory.mktemp("corpus"))
    return loaded.pixels, loaded.facts(Grammar(HOIS))[1]


def test_images_and_prompts_agree(scenes):
    """On a part of the scenes behind the card's figures."""
    from transformers import AutoProcessor

    from hoi_distill.stages.teacher.pico.evaluation.blip import pixel_values

    pixels, truth = scenes
    checkpoint = Checkpoint.find(CLIP)
    model = load(checkpoint, checkpoint.here(), "float32", "cpu")
    processor = AutoProcessor.from_pretrained(CLIP)
    prompts = [captions.prompt(*fact) for fact in Grammar(HOIS).facts]
    scores = clip_evaluate.cosines(model, processor, pixel_values(processor, pixels), prompts)
    measured = float(np.nanmean(average_precision(scores, truth)))
    shipped = json.loads((CLIP / "heldout.json").read_text())["zero_shot"]["rank_map"]
    assert measured == pytest.approx(shipped, abs=0.04)


def test_its_maps_and_texts_come_from_the_usual_stages(scenes):
    """And tell images apart: best among cells, a true prompt beats a false one more often than not."""
    pixels, truth = scenes
    checkpoint = Checkpoint.find(CLIP)
    features = made(VisionFeatures, checkpoint=checkpoint, width="projected", batch_size=64)
    texts = made(TextEmbeddings, checkpoint=checkpoint)
    for stage in (features, texts):
        stage.open("cpu", {})
    assert features.output.shape == (96, 8, 8)
    prompts = [captions.prompt(*fact) for fact in Grammar(HOIS).facts]
    said = texts.compute(Batch(np.zeros(58, "V16"), prompts, 58, texts=prompts), ["value"], {})["value"]
    images = [Image.fromarray(image) for image in pixels[:64]]
    maps = features.compute(Batch(np.zeros(64, "V16"), ["x"] * 64, 64, images), ["original"], {})["original"]
    cells = maps.flatten(2) / maps.flatten(2).norm(dim=1, keepdim=True)
    best = np.einsum("pc,bcn->bpn", np.array(said.to_pylist()), cells.numpy()).max(2)
    prior = np.broadcast_to(truth.mean(0), best.shape)
    ours, theirs = (float(np.nanmean(average_precision(scores, truth[:64]))) for scores in (best, prior))
    assert ours > theirs


def test_training_starts_and_saves(tmp_path, monkeypatch):
    """Two steps of each phase."""
    from hoi_distill.stages.teacher.pico.training import clip as clip_train

    for name in ("PLAIN", "SCENES"):
        monkeypatch.setattr(clip_train, name, replace(getattr(clip_train, name), count=8))
    original = corpus.load
    monkeypatch.setattr(corpus, "load", lambda part: original(part, tmp_path / "corpus"))
    short = {"batch": 4, "plain_steps": 2, "scene_steps": 2, "joint_steps": 2}
    options = [f"--{key.replace('_', '-')}={value}" for key, value in short.items()]
    clip_train.main(["--out", str(tmp_path / "clip"), *options])
    checkpoint = Checkpoint.find(tmp_path / "clip")
    assert checkpoint.architecture == "PicoClipModel"
    assert load(checkpoint, checkpoint.here(), "float32", "cpu")
    assert Path(tmp_path / "clip" / "recipe.json").exists()
