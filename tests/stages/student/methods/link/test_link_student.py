"""A saved LINK student predicts what the trained one did, on any image, and keeps the best triplets of each."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import SCHEMA
from hoi_distill.stages.student.methods.link.student import LastLayer, LinkStudent, allowed
from hoi_distill.stages.student.pairs.instances import gather, image_of
from hoi_distill.stages.student.pairs.predict import best_of_each
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.stages.student.source import MemorySource
from hoi_distill.stages.student.student import Student
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_link import ALL_LEVELS, NETWORK, TEXT, link_config, quiet, trained
from tests.fixtures.toy_student import CHANNELS, SIDE, VOCABULARY


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def student(folder, toy) -> LinkStudent:
    """Trained on the annotations of half the images."""
    sure = replace(NETWORK, dropout=0.0, feature_dropout=0.0)
    config = link_config(steps=120, learning_rate=3e-3, network=sure, predict_batch=7)
    return trained(config, toy.training_set(20), folder)


def predicted(student: Student, test: Any, folder: Path) -> list[dict]:
    table = pq.read_table(student.predict(test, folder, report=quiet))
    assert table.schema.equals(SCHEMA)
    return table.to_pylist()


def test_a_tiny_world_is_learnt(student, toy, tmp_path):
    """The best triplet of nearly every image, half of them never seen, is the true one."""
    best: dict[str, dict] = {}
    for row in predicted(student, toy.test_set(), tmp_path):
        assert VOCABULARY.hois[row["hoi"]].tolist() == [row["verb"], row["object"]]
        if row["score"] > best.get(row["image_id"], {"score": 0})["score"]:
            best[row["image_id"]] = row
    assert len(best) == 40
    assert sum(row["hoi"] == toy.hoi[int(name.split()[1])] for name, row in best.items()) >= 37


def test_a_saved_student_predicts_what_the_trained_one_did(student, folder, toy, tmp_path):
    loaded = load_student(folder / "checkpoint", VOCABULARY)
    assert isinstance(loaded, LinkStudent)
    assert loaded.config == student.config
    assert loaded.tables() == {"detections": None, "features": ("original",)}
    assert predicted(loaded, toy.test_set(), tmp_path / "a") == predicted(student, toy.test_set(), tmp_path / "b")
    assert not loaded.model.training


def test_every_field_of_the_configuration_comes_back(tmp_path, toy):
    config = link_config(
        steps=1, views=("original",), top_k=3, kd=replace(ALL_LEVELS, logit=0.0, query=0.0, map=0.0, temperature=2.0),
        network=replace(NETWORK, classes="verb", linking_decoder=False),
    )  # fmt: skip
    trained(config, toy.training_set(16), tmp_path)
    assert load_student(tmp_path / "checkpoint").config == config


def test_saving_again_leaves_a_reader_of_the_weights_with_whole_ones(student, tmp_path):
    student.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    with open(weights, "rb") as reading:
        student.save_pretrained(tmp_path)
        weights.write_bytes(b"another's")
        assert reading.read() == whole
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors", "vocabulary.json"}


def test_a_checkpoint_of_another_vocabulary_or_version_is_refused(student, tmp_path):
    student.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="trained for vocabulary"):
        load_student(tmp_path, Vocabulary.from_actions([("dog", "walk", "walking")], "another"))
    record = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**record, "version": 99}))
    with pytest.raises(UserError, match="version is 99"):
        load_student(tmp_path)


def test_images_without_a_person_or_a_pair_are_passed_over(student, toy, tmp_path):
    size = {"width": 64, "height": 64}
    box = [[5.0, 5, 30, 60]]
    cells = [
        {"boxes": [], "scores": [], "labels": [], **size},
        {"boxes": box, "scores": [0.9], "labels": [1], **size},
        toy.detections[0],
        {"boxes": box, "scores": [0.9], "labels": [0], **size},
        {"boxes": [[5.0, 5, 5, 5]] * 2, "scores": [0.9, 0.8], "labels": [0, 1], **size},
    ]
    maps = [np.zeros((CHANNELS, SIDE, SIDE), np.float16)] * len(cells)
    source = MemorySource({"detections": {"value": cells}, "features": {"original": maps}})
    odd = replace(toy.test_set(), source=source, image_ids=[f"{n}" for n in range(len(cells))])
    rows = predicted(student, odd, tmp_path)
    assert {row["image_id"] for row in rows} == {"2", "4"}
    assert np.isfinite([row["score"] for row in rows]).all()


def test_only_the_best_triplets_of_each_image_are_kept(student, toy, tmp_path):
    every = predicted(student, toy.test_set(), tmp_path / "all")
    few = predicted(replace(student, config=replace(student.config, top_k=2)), toy.test_set(), tmp_path / "few")
    assert set(Counter(row["image_id"] for row in few).values()) == {2}
    for name in {row["image_id"] for row in few}:
        scores = sorted((row["score"] for row in every if row["image_id"] == name), reverse=True)
        assert sorted((row["score"] for row in few if row["image_id"] == name), reverse=True) == scores[:2]


def test_best_of_each_by_hand():
    image = torch.tensor([0, 0, 0, 2, 2, 5])
    score = torch.tensor([0.1, 0.9, 0.9, 0.2, 0.3, 0.0])
    assert best_of_each(image, score, 1).tolist() == [1, 4, 5]
    assert best_of_each(image, score, 2).tolist() == [1, 2, 3, 4, 5]
    assert best_of_each(image[:0], score[:0], 2).tolist() == []


def test_other_interactions_are_told_apart_by_their_text(toy, tmp_path):
    """Open vocabulary: the known interactions in another order, by their text, score what they did."""
    student = trained(link_config(steps=3, network=replace(NETWORK, train_rows=False)), toy.training_set(16), tmp_path)
    order = [5, 3, 4, 0, 2, 1]
    other = student.with_vocabulary(replace(VOCABULARY, hois=VOCABULARY.hois[order]), TEXT[order])
    scores = []
    for each in (student, other):
        rows = predicted(each, toy.test_set(), tmp_path)
        assert all(each.vocabulary.hois[row["hoi"]].tolist() == [row["verb"], row["object"]] for row in rows)
        scores.append(
            {(r["image_id"], *r["human_box"], *r["object_box"], r["verb"], r["object"]): r["score"] for r in rows}
        )
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_the_last_decoder_layer_answers(student, toy):
    regions = gather([image_of(toy.detections[0], student.config)], torch.from_numpy(toy.maps[0][None]))
    with torch.inference_mode():
        layers, answer = student.model(regions).logits, LastLayer(student.model)(regions)
    assert torch.equal(answer, layers[-1])
    assert not torch.equal(answer, layers[0])


def test_any_object_allows_every_interaction(student, toy, tmp_path):
    config = replace(student.config, any_object=True)
    assert allowed(config, VOCABULARY).all()
    rows = predicted(replace(student, config=config), toy.test_set(), tmp_path)
    counts = [(cell["labels"].count(0), len(cell["labels"])) for cell in toy.detections]
    pairs = sum(humans * (instances - 1) for humans, instances in counts)
    assert len(rows) == pairs * len(VOCABULARY)
    assert all(VOCABULARY.hois[row["hoi"]].tolist() == [row["verb"], row["object"]] for row in rows)
