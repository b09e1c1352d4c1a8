"""Simulated answers are the annotations, spoilt by the shares that are asked for, always alike."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.derived.instances import INSTANCES
from hoi_distill.stages.derived.simulated_pair_answers import SimulatedPairAnswers
from hoi_distill.stages.stage import Batch, fingerprint_record
from tests.fixtures.stages import made
from tests.fixtures.toy_student import VOCABULARY

QUESTIONS = tuple(VOCABULARY.pair_questions())
HOLD, RIDE, WALK = QUESTIONS
PEOPLE = 40


@pytest.fixture(scope="module")
def annotations():
    """Forty people in a row above a bicycle each; everybody holds the own one, every second rides it."""
    x = np.arange(PEOPLE) * 20.0
    human, thing = (np.stack((x, x * 0 + y, x + 9, x * 0 + y + 9), 1).astype(np.float32) for y in (0, 20))
    hold, ride = (next(h for h in range(6) if VOCABULARY.hoi_name(h) == (v, "bicycle")) for v in ("hold", "ride"))
    hoi = np.array([*[hold] * PEOPLE, *[ride] * (PEOPLE // 2)], np.int16)
    who = np.array([*range(PEOPLE), *range(0, PEOPLE, 2)])
    return Annotations(
        name="row", split="train", vocabulary=VOCABULARY, image_id=np.array(["row"]), path=[""],
        width=np.array([800], np.int32), height=np.array([30], np.int32), pair_offsets=np.array([0, len(who)]),
        human_box=human[who], object_box=thing[who], object=VOCABULARY.hois[hoi, 1], verb=VOCABULARY.hois[hoi, 0], hoi=hoi,
    )  # fmt: skip


def answers(annotations, **keys):
    stage = made(SimulatedPairAnswers, vocabulary=VOCABULARY, annotations=annotations, columns=QUESTIONS, **keys)
    bicycle = VOCABULARY.objects.index("bicycle")
    boxes = np.concatenate((annotations.human_box[:PEOPLE], annotations.object_box[:PEOPLE])).astype(int)
    cell = {
        "boxes": boxes.tolist(),
        "labels": [0] * PEOPLE + [bicycle] * PEOPLE,
        "humans": PEOPLE,
        "width": 800,
        "height": 30,
    }
    batch = Batch(np.zeros(1, "V16"), ["row"], 1)
    found = stage.compute(batch, QUESTIONS, {"instances": {"value": pa.array([cell], INSTANCES)}})
    return {column: cells.to_pylist()[0] for column, cells in found.items()}


def yes(cell):
    return np.array(cell["yes"]) > np.array(cell["no"])


def test_unspoilt_answers_are_the_annotations(annotations):
    found = answers(annotations, sure=3.0)
    assert found[WALK] == {"pair": [], "yes": [], "no": []}
    for column, every in ((HOLD, 1), (RIDE, 2)):
        pairs = np.array(found[column]["pair"])
        human, other = np.divmod(pairs, 2 * PEOPLE - 1)
        own = other + (other >= human) - PEOPLE == human
        np.testing.assert_array_equal(yes(found[column]), own & (human % every == 0))
        logs = np.array([found[column]["yes"], found[column]["no"]])
        np.testing.assert_allclose(np.abs(logs[0] - logs[1]), 3.0, rtol=1e-5)
        np.testing.assert_allclose(np.exp(logs).sum(0), 1.0, rtol=1e-5)


def test_the_knobs_are_shares(annotations):
    true = yes(answers(annotations)[HOLD])
    flipped = yes(answers(annotations, flipped=0.3)[HOLD])
    assert (true != flipped).mean() == pytest.approx(0.3, abs=0.04)
    moved = yes(answers(annotations, elsewhere=0.5)[HOLD])
    assert moved[true].mean() == pytest.approx(0.5, abs=0.2), (
        "the other half says what another pair does, mostly nothing"
    )
    assert moved.mean() == pytest.approx(true.mean(), abs=0.01), "as many yes as before, elsewhere"
    assert not yes(answers(annotations, elsewhere=1.0)[HOLD])[true].all()


def test_answers_are_always_alike_and_another_seed_spoils_others(annotations):
    one, same, other = (answers(annotations, flipped=0.3, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_the_fingerprint_is_that_of_the_knobs_and_a_row_depends_on_its_annotations(annotations):
    def record(**keys):
        keys = {"vocabulary": VOCABULARY, "annotations": annotations, "columns": QUESTIONS, **keys}
        return str(fingerprint_record(made(SimulatedPairAnswers, **keys)))

    keys = [{"elsewhere": 0.5}, {"flipped": 0.1}, {"sure": 2.0}, {"iou": 0.6}, {"seed": 1}]
    assert record() == record(audit=0.2)
    assert len({record(), *(record(**key) for key in keys)}) == 6
    stage = made(SimulatedPairAnswers, vocabulary=VOCABULARY, annotations=annotations, columns=QUESTIONS)
    fewer = annotations.with_pairs(np.arange(len(annotations.hoi)) > 0)
    less = made(SimulatedPairAnswers, vocabulary=VOCABULARY, annotations=fewer, columns=QUESTIONS)
    assert stage.source_digests(["row"]) != less.source_digests(["row"])
