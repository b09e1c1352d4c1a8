"""Few-shot lists: what is drawn, that it survives reordering and saving, and what applying one leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.sampling.few_shot import SEEDS, SHOTS, FewShot, apply, draw
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError
from tests.fixtures.synthetic import annotations

SIX = Vocabulary(
    COCO_OBJECTS, ("hold", "ride", "stand"), np.array([(0, 1), (1, 1), (0, 2), (1, 2)], np.int16),
    ("holding", "riding", "standing"),
)  # fmt: skip


@pytest.fixture(scope="module")
def train() -> Annotations:
    """200 images; classes 0 to 3 have about 300, 80, 10 and 2 pairs."""
    rng = np.random.default_rng(5)
    classes = rng.choice(4, (200, 2), p=[0.76, 0.2, 0.03, 0.01])
    return annotations([row[: rng.integers(0, 3)].tolist() for row in classes], vocabulary=SIX)


def counts(few: FewShot) -> np.ndarray:
    """int64 [4]: drawn annotations of each class."""
    table = SIX.hoi_id()
    drawn = [table[int(row[0]), int(row[1])] for rows in few.entries.values() for row in rows]
    return np.bincount(drawn, minlength=4)


@pytest.mark.parametrize("shots", SHOTS)
def test_each_class_has_k_or_all_it_has(train, shots):
    available = np.bincount(train.hoi, minlength=4)
    assert np.array_equal(counts(draw(train, shots, 0)), np.minimum(available, shots))


@pytest.mark.parametrize("seed", SEEDS)
def test_lists_of_one_seed_are_nested(train, seed):
    flat = [{(i, row) for i, rows in draw(train, k, seed).entries.items() for row in rows} for k in SHOTS]
    assert all(small < large for small, large in pairwise(flat))


def test_seeds_differ_and_one_seed_does_not(train):
    assert draw(train, 4, 0) == draw(train, 4, 0)
    lists = [draw(train, 4, seed) for seed in SEEDS]
    assert len({json.dumps(few.entries) for few in lists}) == len({few.digest() for few in lists}) == 3


def shuffled(train: Annotations) -> Annotations:
    """Images permuted, and the pairs within each."""
    rng = np.random.default_rng(1)
    other = train.take(rng.permutation(len(train)))
    order = np.lexsort((rng.random(len(other.hoi)), other.pair_image()))
    columns = ("human_box", "object_box", "object", "verb", "hoi")
    return replace(other, **{name: getattr(other, name)[order] for name in columns})


def test_the_order_of_images_and_pairs_changes_nothing(train):
    few = draw(train, 4, 0)
    assert draw(shuffled(train), 4, 0) == few
    labelled, unlabelled = apply(shuffled(train), few)
    assert len(labelled.hoi) == len(few)
    again, dropped = apply(train, few)
    assert set(again.image_id) == set(labelled.image_id)
    assert sorted(unlabelled.hoi) == sorted(dropped.hoi)


def test_another_class_s_images_change_nothing(train):
    few = draw(train, 4, 0)
    fewer = draw(train.with_pairs(train.hoi != 0), 4, 0)
    without = {(i, row) for i, rows in few.entries.items() for row in rows if row[:2] != (0, 1)}
    assert {(i, row) for i, rows in fewer.entries.items() for row in rows} == without


def test_images_keep_what_is_drawn_and_set_the_rest_apart(train):
    few = draw(train, 2, 0)
    labelled, unlabelled = apply(train, few)
    assert set(labelled.image_id.tolist()) == set(few.entries)
    assert labelled.image_id.tolist() == unlabelled.image_id.tolist()
    assert np.array_equal(np.bincount(labelled.hoi, minlength=4), counts(few))
    places = np.flatnonzero(np.isin(train.image_id, labelled.image_id))
    every = np.diff(train.pair_offsets)[places]
    assert np.array_equal(np.diff(labelled.pair_offsets) + np.diff(unlabelled.pair_offsets), every)
    assert np.diff(labelled.pair_offsets).min() > 0
    assert labelled.image_hois is None  # they would tell what is not drawn
    assert unlabelled.image_hois is None


def test_an_annotation_given_twice_is_one():
    box = [0, 0, 10, 10, 5, 5, 20, 20]
    train = annotations([[0, 0, 0]], [[box, box, [*box[:7], 21]]], vocabulary=SIX)
    assert len(draw(train, 1, 0)) == 1
    assert len(draw(train, 32, 0)) == 2
    assert len(apply(train, draw(train, 32, 0))[0].hoi) == 3
    assert len(draw(annotations([[0], [0]], [[box], [box]], vocabulary=SIX), 32, 0)) == 2  # in two images: two


def test_verbs_can_be_the_classes_also_those_without_an_object():
    train = annotations([[0, 2, -1], [1, 3, -1], [-1]], vocabulary=SIX)
    stand = replace(train, verb=np.where(train.hoi < 0, 2, train.verb).astype(np.int16))
    by_verb = draw(stand, 2, 0, classes="verb")
    assert np.bincount([int(row[0]) for rows in by_verb.entries.values() for row in rows]).tolist() == [2, 2, 2]
    assert {int(row[0]) for rows in draw(stand, 2, 0).entries.values() for row in rows} == {0, 1}


def test_saved_and_loaded_is_the_same(train, tmp_path):
    few = draw(train, 8, 1)
    few.save(tmp_path / "few.json")
    again = FewShot.load(tmp_path / "few.json")
    assert again == few
    assert again.digest() == few.digest()
    assert (
        json.loads((tmp_path / "few.json").read_text())["source"]
        == "8 annotations a class of hico-det, drawn with seed 1"
    )


def test_nothing_annotated_draws_nothing(tmp_path):
    few = draw(annotations([[], []], vocabulary=SIX), 4, 0)
    few.save(tmp_path / "few.json")
    assert len(FewShot.load(tmp_path / "few.json")) == 0
    assert len(apply(annotations([[], []], vocabulary=SIX), few)[0]) == 0


def test_a_list_that_does_not_fit_says_where(train):
    few = draw(train, 2, 0)
    with pytest.raises(UserError, match="drawn for other classes"):
        apply(annotations([[0]]), few)
    image_id = next(iter(few.entries))
    place = np.flatnonzero(train.image_id == image_id)
    with pytest.raises(UserError, match=f"no image {image_id} in hico-det"):
        apply(train.take(np.flatnonzero(train.image_id != image_id)), few)
    moved = train.human_box.copy()
    moved[train.pairs(int(place[0]))] += 1
    with pytest.raises(UserError, match=f"{image_id} has no annotation of verb"):
        apply(replace(train, human_box=moved), few)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not a few-shot list"),
        ("[]", "not a few-shot list"),
        ("{}", "no entry 'entries'"),
        ('{"entries": {"a.jpg": [[1, 2]]}, "dataset": "", "vocabulary": "", "classes": "hoi", "shots": 1, "seed": 0}', "a.jpg"),
    ],
)  # fmt: skip
def test_a_bad_list_is_one_line_naming_it(tmp_path, text, said):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError) as error:
        FewShot.load(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_cannot_be_drawn_is_refused(train):
    with pytest.raises(UserError, match="hoi or verb, not 'object'"):
        draw(train, 1, 0, classes="object")
    with pytest.raises(UserError, match="at least 1 annotation a class, not 0"):
        draw(train, 0, 0)
    with pytest.raises(UserError, match="no vocabulary"):
        draw(replace(train, vocabulary=None), 1, 0)
