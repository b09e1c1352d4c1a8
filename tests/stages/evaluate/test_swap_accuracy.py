"""Swap accuracy: who sees the relation is right, who looks at the regions alone is right half of the time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from hoi_distill.pipeline.cli import app
from hoi_distill.stages.data.crowd.classes import CONTACT, LINES
from hoi_distill.stages.data.crowd.plan import plan_split
from hoi_distill.stages.data.crowd.render import render_crowd
from hoi_distill.stages.data.crowd.world import write_crowd
from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import write_detections
from hoi_distill.stages.evaluate.metrics.swap_accuracy import Twins, read_twins, swap_accuracy
from hoi_distill.storage.errors import UserError

IMAGES = 60


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_crowd(tmp_path_factory.mktemp("crowd") / "world", train=2, test=IMAGES)


@pytest.fixture(scope="module")
def test_split(world):
    return load_hico_det(world, "test")


@pytest.fixture(scope="module")
def twins(world, test_split):
    return read_twins(world / "twins_test2015.json", test_split.image_id, test_split.vocabulary)


def both_pairs(twins: Twins, words, scores) -> HoiDetections:
    """Both pairs of every question, scored as given: float [Q, 2]."""
    hoi = np.repeat(twins.hoi, 2).astype(np.int32)
    verb, obj = words.hois[hoi].T.astype(np.int32)
    boxes = twins.boxes.reshape(-1, 2, 4)
    image = np.repeat(twins.image, 2).astype(np.int32)
    return HoiDetections(image, boxes[:, 0], boxes[:, 1], obj, verb, hoi, np.asarray(scores, np.float64).reshape(-1))


def test_there_are_two_questions_for_each_twin_and_their_answers_are_opposite(twins):
    assert len(twins) == 3 * IMAGES // 10
    assert np.array_equal(twins.boxes[0::2, 0, 1], twins.boxes[1::2, 1, 1])
    assert np.array_equal(twins.boxes[0::2, 1, 1], twins.boxes[1::2, 0, 1])
    assert np.array_equal(twins.hoi[0::2], twins.hoi[1::2])


def test_an_oracle_that_reads_the_scenes_own_arms_and_lines_is_nearly_always_right(twins, test_split):
    plans = plan_split(0, "test", IMAGES)
    scores = np.zeros((2 * len(twins), 2))
    for question, image in enumerate(twins.image.tolist()):
        scene = render_crowd(plans[image])
        verb, name = test_split.vocabulary.hoi_name(int(twins.hoi[question]))
        for pair, (human, thing) in enumerate(twins.boxes[question]):
            middle = (thing[:2] + thing[2:]) / 2
            off = [math.pi]
            for relation in scene.relations:
                ours = np.abs(scene.boxes[relation.human] - human).max() < 1
                if ours and (relation.verb, relation.name) == (verb, name) and verb != CONTACT:
                    (x1, y1), (x2, y2) = relation.seen
                    if verb in LINES:
                        off.append(math.dist(middle, (x2, y2)) / 256)
                    else:
                        aim = math.atan2(middle[1] - y1, middle[0] - x1) - math.atan2(y2 - y1, x2 - x1)
                        off.append(abs(math.remainder(aim, math.tau)))
            scores[question, pair] = -min(off)
    assert swap_accuracy(both_pairs(twins, test_split.vocabulary, scores), twins).accuracy() > 0.95


def test_a_model_of_regions_alone_is_at_chance(twins, test_split):
    """Whatever it weighs in the pixels of the two boxes: the mean over many such models is between 45 and 55 %."""
    rng = np.random.default_rng(0)
    crops = np.zeros((2 * len(twins), 2, 2, 8 * 8 * 3))
    for question, image in enumerate(twins.image.tolist()):
        with Image.open(test_split.path[image]) as opened:
            for pair in range(2):
                for part in range(2):
                    crop = opened.crop(twins.boxes[question, pair, part].tolist()).resize((8, 8))
                    crops[question, pair, part] = np.asarray(crop, float).reshape(-1) / 255
    features = crops.reshape(len(crops), 2, -1)
    accuracies = [
        swap_accuracy(both_pairs(twins, test_split.vocabulary, features @ weights), twins).accuracy()
        for weights in rng.normal(size=(50, features.shape[2]))
    ]
    assert 0.45 < np.mean(accuracies) < 0.55


def test_equal_scores_count_half_and_pairs_that_were_not_found_are_not_compared(twins, test_split):
    words = test_split.vocabulary
    even = swap_accuracy(both_pairs(twins, words, np.ones((2 * len(twins), 2))), twins)
    assert even.accuracy() == 0.5
    assert even.compared.all()
    found = both_pairs(twins, words, np.tile([1.0, 0.0], (2 * len(twins), 1)))
    first = swap_accuracy(HoiDetections(*(getattr(found, name)[:3] for name in found.__dataclass_fields__)), twins)
    assert first.compared.sum() == 1
    assert first.accuracy() == 1


def test_a_pair_has_the_best_score_of_the_boxes_that_overlap_it(twins, test_split):
    words = test_split.vocabulary
    low = both_pairs(twins, words, np.tile([0.2, 0.5], (2 * len(twins), 1)))
    high = both_pairs(twins, words, np.tile([0.9, 0.4], (2 * len(twins), 1)))
    both = HoiDetections(*(np.concatenate([getattr(low, n), getattr(high, n)]) for n in low.__dataclass_fields__))
    assert swap_accuracy(low, twins).accuracy() == 0
    assert swap_accuracy(both, twins).accuracy() == 1


def test_the_command_prints_percent_by_verb(world, twins, test_split, tmp_path):
    from typer.testing import CliRunner

    found = both_pairs(twins, test_split.vocabulary, np.tile([1.0, 0.0], (2 * len(twins), 1)))
    write_detections(tmp_path / "found.parquet", found, test_split.image_id)
    arguments = ["swap-accuracy", "--annotations", str(world), "--detections", str(tmp_path / "found.parquet")]
    record = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert (record["swap_accuracy"], record["questions"], record["compared"]) == (100, 2 * len(twins), 2 * len(twins))
    assert sum(figures["questions"] for figures in record["verbs"].values()) == 2 * len(twins)
    assert "100.0" in CliRunner().invoke(app, arguments).output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verb": "juggle"}, r"entry 1: \('juggle', .* is missing, or is no image or class"),
        ({"images": []}, "entry 1: not a twin of two images"),
    ],
)
def test_a_bad_entry_is_named(world, test_split, tmp_path, change, said):
    entries = json.loads((world / "twins_test2015.json").read_text())
    path = tmp_path / "twins.json"
    path.write_text(json.dumps([entries[0] | change]))
    with pytest.raises(UserError, match=said):
        read_twins(path, test_split.image_id, test_split.vocabulary)
