"""What training may not see does not reach the weights, and comes back at prediction; what is set aside is not punished."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.train import terms_of, train
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, TableMaps
from hoi_distill.stages.student.pairs.instances import ImageInstances, ImageTable, targets, with_annotations
from hoi_distill.stages.student.pairs.prepare import image_table
from hoi_distill.stages.student.pairs.supervision.soft_labels import calibrate
from hoi_distill.stages.student.pairs.terms import Supervision
from tests.fixtures.toy_student import OBJECTS, VOCABULARY, Toy, weights

CONFIG = PairClassifierConfig(
    steps=3, labelled_per_step=8, unlabelled_per_step=8, warmup_steps=1, width=16, save_every=100
)
UNSEEN = np.isin(np.arange(len(VOCABULARY)), [1, 4])
RIDE_BICYCLE = 1


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    torch.set_num_threads(1)


def zero_shot(toy: Toy, **changes) -> TrainingSet:
    return replace(toy.training_set(20), unseen=UNSEEN, **changes)


@pytest.mark.parametrize("change", [{"itm_on": "none"}, {"itm_on": "both"}, {"teacher": "self"}], ids=repr)
def test_unseen_annotations_and_scores_cannot_reach_the_weights(tmp_path, change):
    """Even those that a rule has forgotten to take out: boxes, classes, image-level labels, the teacher's scores."""
    config, clean, poisoned = replace(CONFIG, **change), Toy(30, seed=0), Toy(30, seed=0)
    train(config, zero_shot(clean), tmp_path / "clean", Extras(report=lambda _: None))
    unseen = UNSEEN[poisoned.annotations.hoi]
    assert unseen.sum() > 3
    truth = poisoned.annotations
    other = np.where(truth.hoi == RIDE_BICYCLE, 4, RIDE_BICYCLE).astype(np.int16)
    poison = replace(
        truth,
        hoi=np.where(unseen, other, truth.hoi),
        object_box=np.where(unseen[:, None], truth.human_box, truth.object_box),
    )
    prompts = VOCABULARY.prompts()
    for hoi in np.flatnonzero(UNSEEN):
        poisoned.tables["itm"][prompts[hoi]] = [np.array([-9, 9], np.float16)] * 30
    train(config, zero_shot(poisoned, annotations=poison), tmp_path / "poisoned", Extras(report=lambda _: None))
    assert weights(tmp_path / "poisoned") == weights(tmp_path / "clean")
    train(config, replace(zero_shot(poisoned), unseen=None), tmp_path / "seen", Extras(report=lambda _: None))
    assert weights(tmp_path / "seen") != weights(tmp_path / "clean")


def test_unseen_classes_come_back_at_prediction(tmp_path):
    toy = Toy(30, seed=0)
    student = train(CONFIG, zero_shot(toy), tmp_path, Extras(report=lambda _: None))
    found = pq.read_table(student.predict(toy.test_set(), tmp_path, report=lambda _: None))
    assert set(np.flatnonzero(UNSEEN)) <= set(found["hoi"].to_pylist())


def image() -> ImageInstances:
    boxes = np.array([[0, 0, 20, 60], [10, 10, 30, 60], [40, 10, 60, 60]], np.float32)
    return ImageInstances(
        64, 64, 1, boxes, np.ones(3, np.float32), np.array([0, 1, 1], np.int16), np.empty((0, 2), np.int32)
    )


def test_what_is_set_aside_is_neither_positive_nor_negative():
    human, thing, far = (image().boxes[[i]] for i in range(3))
    taught = with_annotations(
        image(), human, thing, np.array([0]), iou=0.5,
        dropped=(np.repeat(human, 3, 0), np.concatenate([thing, thing, far]), np.array([0, 1, 2])),
    )  # fmt: skip
    dense = targets([taught, taught], len(VOCABULARY)).reshape(2, 2, -1)
    expected = np.zeros((2, len(VOCABULARY)))
    expected[0, 0] = 1  # annotated, although another annotation of the class is set aside
    expected[0, 1] = expected[1, 2] = np.nan
    np.testing.assert_array_equal(dense[0], expected)
    np.testing.assert_array_equal(dense[1], expected)


def test_ignored_entries_survive_the_table_of_images(tmp_path):
    human, thing, far = (image().boxes[[i]] for i in range(3))
    rows = [
        with_annotations(image(), human, thing, np.array([0]), iou=0.5),
        with_annotations(image(), human, thing, np.array([0]), iou=0.5, dropped=(human, far, np.array([3]))),
        image(),
    ]
    table = ImageTable.open_or_build(tmp_path / "pictures", 3, enumerate(rows))
    assert [len(table[row].ignored) for row in range(3)] == [0, 1, 0]
    assert [table[row].positives.tolist() for row in range(3)] == [[[0, 0]], [[0, 0]], []]
    assert table[1].ignored.tolist() == [[1, 3]]


def test_the_loss_is_blind_to_a_pair_that_is_set_aside(tmp_path):
    """Its logit has no gradient; without ``dropped`` the same pair is a negative."""
    toy = Toy(8, seed=2)
    nothing = toy.annotations.with_pairs(toy.annotations.hoi < 0)
    config = replace(CONFIG, itm_on="none")
    few = replace(toy.training_set(8), annotations=nothing)
    for name, dropped in (("negative", None), ("ignored", toy.annotations)):
        data = replace(few, dropped=dropped)
        images = image_table(tmp_path / name, data.source, config, data)
        maps = TableMaps({view: data.source.open({"features": (view,)}) for view in config.views})
        pools, valid = Pools.of(images, data.labelled, unlabelled=False), torch.from_numpy(data.valid())
        batch = PairBatches(config, pools, images, maps, Supervision(terms_of(config, data, None), valid))[0]
        target = batch.targets["annotations"].target
        assert int(torch.isnan(target).sum()) == (0 if dropped is None else 8)
        assert not target.nan_to_num().any()
        run = train(config, data, tmp_path / f"{name} run", Extras(report=lambda _: None))
        assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())
    assert weights(tmp_path / "negative run") != weights(tmp_path / "ignored run")


def test_calibration_leaves_out_what_is_set_aside(tmp_path):
    """A teacher that finds what was not drawn is right, so calibration must not take it for a mistake."""
    toy = Toy(40, seed=3)
    drawn = np.arange(40) % 2 == 0
    data = replace(
        toy.training_set(40),
        annotations=toy.annotations.with_pairs(drawn),
        dropped=toy.annotations.with_pairs(~drawn),
    )
    images = image_table(tmp_path / "pictures", data.source, CONFIG, data)
    log_odds = np.where(np.arange(len(VOCABULARY)) == toy.hoi[:, None], 4.0, -4.0).astype(np.float32)
    log_odds += np.random.default_rng(0).normal(0, 3, log_odds.shape).astype(np.float32)
    everything = calibrate(log_odds, toy.training_set(40), images)
    assert abs(calibrate(log_odds, data, images).slope - everything.slope) < 0.3 * everything.slope
    assert calibrate(log_odds, replace(data, dropped=None), images).slope < 0.7 * everything.slope


def test_without_either_the_classes_of_training_are_those_of_prediction():
    data = Toy(4, seed=0).training_set(2)
    assert np.array_equal(data.valid()[OBJECTS, np.arange(len(VOCABULARY))], np.ones(len(VOCABULARY)))
    assert np.array_equal(replace(data, unseen=UNSEEN).valid(), data.valid() & ~UNSEEN)


def test_an_annotation_of_no_class_is_no_pair_of_the_last_class():
    """V-COCO annotates verbs whose object is of no class with them, or not there."""
    data = Toy(30, seed=0).training_set(20)
    rows = [row for row in range(20) if len(data.true_pairs(row)[2])]
    none = replace(data, annotations=replace(data.annotations, hoi=np.full_like(data.annotations.hoi, -1)))
    assert rows
    for row in rows:
        assert [len(part) for part in none.true_pairs(row)] == [0, 0, 0]
        assert not none.present(row).any()
