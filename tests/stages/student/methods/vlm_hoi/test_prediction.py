"""From queries to triplets: scores, suppression, sizes, missing objects; a saved student is the student."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.student.method import Extras, parameters_of
from hoi_distill.stages.student.methods.vlm_hoi.config import (
    Scoring,
    TransformConfig,
    VlmHoiConfig,
    has_missing_objects,
    network_config,
)
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren, MurenOutput
from hoi_distill.stages.student.methods.vlm_hoi.predict import (
    Inference,
    ScoredTriplets,
    of_one_size,
    predicted,
    triplets,
    valid_verbs,
    write_triplets,
)
from hoi_distill.stages.student.methods.vlm_hoi.student import VlmHoiStudent
from hoi_distill.stages.student.methods.vlm_hoi.train import train
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_student import VOCABULARY
from tests.fixtures.vlm_hoi_world import tiny_config

PERSON, DOG = 0, 16
EVERYTHING = Scoring(top=1000, nms=1.0)


def answer(boxes, objects, verbs, count: int = 80) -> MurenOutput:
    """Of queries with ``(human, object)`` boxes cxcywh, object probabilities ``{class: p}`` and verb probabilities."""
    chances = torch.full((len(boxes), count + 1), 1e-9)
    for query, found in enumerate(objects):
        for label, p in found.items():
            chances[query, label] = p
        chances[query, count] = max(1 - sum(found.values()), 1e-9)
    human, thing = (torch.tensor([pair[side] for pair in boxes]) for side in range(2))
    return MurenOutput(human, thing, chances.log(), torch.tensor(verbs).logit())


def test_a_score_is_object_times_verb_where_the_dataset_has_both():
    box = [0.5, 0.5, 0.2, 0.4]
    dog, bicycle = VOCABULARY.objects.index("dog"), VOCABULARY.objects.index("bicycle")
    # "no object" is likelier than any: the best class still counts with its own probability
    output = answer([(box, box), (box, box)], [{dog: 0.4, bicycle: 0.1}, {bicycle: 0.9}], [[0.5, 0.6, 0.7, 0.8]] * 2)
    found = triplets(output, (200, 100), valid_verbs(VOCABULARY, False), EVERYTHING, 80)
    got = {
        (int(o), VOCABULARY.verbs[v]): round(float(s), 4)
        for o, v, s in zip(found.objects, found.verbs, found.scores, strict=True)
    }
    verbs = dict(zip(VOCABULARY.verbs, (0.5, 0.6, 0.7, 0.8), strict=True))
    assert got == {
        (thing, verb): round(chance * p, 4)
        for thing, chance in ((dog, 0.4), (bicycle, 0.9))
        for verb, p in verbs.items()
        if VOCABULARY.hoi_id()[VOCABULARY.verbs.index(verb), thing] >= 0
    }
    assert (np.diff(found.scores) <= 0).all()
    np.testing.assert_allclose(found.human[0], [80, 30, 120, 70], atol=1e-4)


def test_suppression_is_within_a_class_or_within_an_object():
    near = [0.52, 0.5, 0.2, 0.4]
    box, far = [0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1]
    dog = VOCABULARY.objects.index("dog")
    output = answer(
        [(box, box), (near, near), (far, box)],
        [{dog: 0.9}, {dog: 0.8}, {dog: 0.7}],
        [[0.9, 0.1, 0.1, 0.1], [0.5, 0.1, 0.1, 0.9], [0.1, 0.1, 0.1, 0.1]],
    )
    valid = valid_verbs(VOCABULARY, False)

    def humans(scoring: Scoring) -> list[tuple[str, float]]:
        found = triplets(output, (100, 100), valid, scoring, 80)
        return sorted(
            (VOCABULARY.verbs[v], round(float(box[0]), 1)) for v, box in zip(found.verbs, found.human, strict=True)
        )

    by_class = humans(Scoring(top=1000, nms=0.6))
    assert [x for verb, x in by_class if verb == "hold"] == [5.0, 40.0]  # the far one and the better of the near two
    assert [x for verb, x in by_class if verb == "walk"] == [5.0, 42.0]
    by_object = humans(replace(Scoring(top=1000, nms=0.6), nms_within="object"))
    assert {x for _, x in by_object} == {5.0, 40.0}  # .9 * .9 beats .8 * .9: the second pair goes with all its verbs
    assert len(triplets(output, (100, 100), valid, Scoring(top=2), 80).scores) == 2


def test_as_published_boxes_are_neither_clipped_nor_half_open():
    dog, valid = VOCABULARY.objects.index("dog"), valid_verbs(VOCABULARY, False)

    def found(boxes, **keys) -> ScoredTriplets:
        output = answer(
            [(box, box) for box in boxes], [{dog: 0.9}, {dog: 0.8}], [[0.9, 0.1, 0.1, 0.1], [0.8, 0.1, 0.1, 0.1]]
        )
        return triplets(output, (100, 100), valid, Scoring(top=2, **keys), 80)

    # Beyond the image the two lie far apart, in it they are the same box.
    out = [[0.0, 0.5, 0.2, 0.2], [-0.1, 0.5, 0.4, 0.2]]
    assert len(found(out).scores) == 1
    published = found(out, as_published=True)
    np.testing.assert_allclose(published.human, [[-10, 40, 10, 60], [-30, 40, 10, 60]], atol=1e-4)
    np.testing.assert_allclose(found(out).human, [[0, 40, 10, 60]], atol=1e-4)
    # A pixel apart, 3 x 3 overlap by a half, 4 x 4 of inclusive corners by 3 / 5.
    small = [[0.50, 0.5, 0.03, 0.03], [0.51, 0.5, 0.03, 0.03]]
    assert len(found(small, nms=0.55, nms_human_power=0.5, nms_object_power=0.5).scores) == 2
    assert len(found(small, nms=0.55, nms_human_power=0.5, nms_object_power=0.5, as_published=True).scores) == 1


def test_a_key_that_came_later_renames_no_training_that_does_not_use_it():
    before = asdict(tiny_config())
    del before["scoring"]["as_published"], before["tf32"], before["fused_optimizer"]
    for term in ("itm", "f7"):
        del before[term]["scores"], before[term]["unmatched"], before[term]["calibration"]
    assert parameters_of(tiny_config()) == before
    changed = replace(tiny_config(), scoring=Scoring(as_published=True))
    assert parameters_of(changed)["scoring"]["as_published"]
    assert set(parameters_of(changed, ("scoring",))) == set(before) - {"scoring"}
    assert VlmHoiConfig(**before) == VlmHoiConfig(**json.loads(json.dumps(asdict(tiny_config())))), (
        "a checkpoint of before loads"
    )


def test_a_missing_object_has_no_class_and_no_box(tmp_path):
    words = v_coco_vocabulary()
    assert has_missing_objects(words)
    assert not has_missing_objects(VOCABULARY)
    stand, box = words.verbs.index("stand"), [0.5, 0.5, 0.2, 0.4]
    verbs = [0.01] * len(words.verbs)
    verbs[stand] = 0.9
    output = answer([(box, box)], [{80: 0.9}], [verbs], count=81)
    found = triplets(output, (64, 64), valid_verbs(words, True), EVERYTHING, 80)
    assert (found.objects[0], found.verbs[0], found.object_[0].tolist()) == (-1, stand, [0, 0, 0, 0])
    path = tmp_path / "found.parquet"
    write_triplets(path, iter([(0, found)]), ["a"], words)
    read = read_detections(path, ["a"], words, object_optional=True)
    assert set(read.object) == set(read.hoi) == {-1}


@pytest.fixture(scope="module")
def network() -> Muren:
    torch.manual_seed(0)
    shape = network_config(tiny_config(), VOCABULARY)
    return Muren(shape).eval()


def test_batches_are_single_images(network, world):
    """Sizes are mixed, none is padded."""
    config = tiny_config()
    found = [
        dict(
            predicted(
                network,
                24,
                world.read,
                Inference(config.pictures, EVERYTHING, batch),
                vocabulary=VOCABULARY,
                missing_object=False,
            )
        )
        for batch in (1, 7)
    ]
    assert found[0].keys() == found[1].keys() == set(range(24))
    for row in range(24):
        one, many = (sorted_rows(each[row]) for each in found)
        np.testing.assert_allclose(one, many, rtol=0, atol=1e-4 * 96)


def sorted_rows(found: ScoredTriplets) -> np.ndarray:
    rows = np.column_stack([found.objects, found.verbs, found.human, found.object_, found.scores])
    return rows[np.lexsort(np.round(rows, 1).T)]


def test_groups_hold_one_size_and_every_image_once():
    sizes = np.random.default_rng(0).integers(20, 24, (50, 2))
    groups = list(
        of_one_size(50, lambda row: np.zeros((*sizes[row], 3), np.uint8), TransformConfig(test_short_side=20), 4)
    )
    assert sorted(row for group in groups for row, _, _ in group) == list(range(50))
    for group in groups:
        assert len(group) <= 4
        assert len({seen.shape for _, _, seen in group}) == 1


@pytest.mark.slow
def test_a_saved_student_predicts_the_same(tmp_path, world):
    config = tiny_config(itm=ItmConfig(weight=0.0), epochs=12.0, ema=0.5)
    student = train(config, world.training_set(), tmp_path / "run", Extras(report=lambda line: None))
    loaded = load_student(tmp_path / "run/checkpoint", VOCABULARY)
    assert isinstance(loaded, VlmHoiStudent)
    assert (loaded.config, loaded.tables(), loaded.origin["from"]) == (config, {}, config.start)
    tables = []
    for name, each in {"trained": student, "loaded": loaded}.items():
        (tmp_path / name).mkdir()
        tables.append(pq.read_table(each.predict(world.test_set(), tmp_path / name, report=lambda line: None)))
    assert tables[0].equals(tables[1])
    names = tables[0]["image_id"].to_pylist()
    assert names
    assert names == sorted(names, key=lambda name: int(name.split()[1]))
    assert max(names.count(name) for name in set(names)) <= config.scoring.top
    detections = tmp_path / "loaded/detections.parquet"
    read_detections(detections, world.annotations.image_id, VOCABULARY, every_row_classed=True)
    other = Vocabulary.from_actions([("dog", "walk", "walking")], "another")
    with pytest.raises(UserError, match="use a checkpoint of that vocabulary"):
        load_student(tmp_path / "run/checkpoint", other)


def test_a_configuration_survives_json():
    from dataclasses import asdict

    config = tiny_config(itm=ItmConfig(family="F4"), scoring=Scoring(nms_within="object"))
    assert VlmHoiConfig(**json.loads(json.dumps(asdict(config)))) == config
