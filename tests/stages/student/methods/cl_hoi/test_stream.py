"""What the two stages read: labels, texts, and batches that are pure functions of the step."""

from __future__ import annotations

import numpy as np
import torch

from hoi_distill.stages.student.methods.cl_hoi.stream import (
    ContextBatches,
    Texts,
    annotated_labels,
    copied,
    teacher_labels,
)
from hoi_distill.stages.student.methods.cl_hoi.terms import CopiedLabelTerm, ImageLabelTerm
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, TableMaps
from hoi_distill.stages.student.pairs.prepare import picture_table
from tests.fixtures.toy_cl_hoi import CONFIG
from tests.fixtures.toy_student import OBJECTS, VOCABULARY


def maps_of(data):
    return TableMaps({view: data.source.open({"features": (view,)}) for view in CONFIG.views})


def test_unlisted_interactions_are_ordinary_negatives(world, tmp_path):
    labels = teacher_labels(tmp_path / "labels", world.taught())
    target, kind, weight = vars(labels.of(np.array([3]))).values()
    other = OBJECTS[world.hoi[3]] != OBJECTS
    assert (kind[0, other] == 0).all()
    assert (weight[0, other] == 1).all()
    assert (target[0, other] == 0).all()
    assert kind[0, world.hoi[3]] == (1 if VOCABULARY.hois[world.hoi[3], 0] != 2 else -1) or kind[0, world.hoi[3]] == 1
    assert labels.known.all()


def test_failed_rows_are_not_known(world, tmp_path):
    cells = [*world.tables["labels"]["value"]]
    cells[2] = None
    labels = teacher_labels(tmp_path / "labels", world.taught(labels={"value": cells}))
    assert not labels.known[2]
    assert labels.known.sum() == len(cells) - 1


def test_annotated_labels_ignore_nothing(world, tmp_path):
    labels = annotated_labels(tmp_path / "labels", world.taught())
    assert (labels.kind.argmax(1) == world.hoi).all()
    assert (labels.kind >= 0).all()
    assert (labels.kind.sum(1) == 1).all()


def test_texts_come_back_by_row(world, tmp_path):
    texts = Texts.open_or_build(tmp_path / "texts", world.taught())
    sentences, text = texts.of(np.array([5, 0, 1]))
    cells = world.tables["context"]["value"]
    np.testing.assert_array_equal(sentences, np.concatenate([cells[5], cells[0], cells[1]]).astype(np.float32))
    assert text.tolist() == [0] * len(cells[5]) + [2] * len(cells[1])
    assert not texts.said()[0]
    assert texts.said()[1:].all()


def test_labels_are_copied_to_every_pair_of_their_picture(world, tmp_path):
    data = world.taught()
    pictures, labels = picture_table(tmp_path / "p", data.source, CONFIG), teacher_labels(tmp_path / "l", data)
    pools = Pools(np.empty(0, np.int64), np.arange(len(world.hoi)))
    terms = [ImageLabelTerm(labels, CONFIG.losses), CopiedLabelTerm(labels, alpha=0.5, gamma=0.2)]
    batch = PairBatches(CONFIG, pools, pictures, maps_of(data), terms)[0]
    assert set(batch.targets) == {"image_labels", "copied_labels"}  # no pair has a target of its own
    kinds, pairs = batch.targets["image_labels"].kind, batch.targets["copied_labels"].target
    assert torch.equal(pairs.nan_to_num(-1), copied(batch.regions, kinds).nan_to_num(-1))
    for pair, picture in enumerate(batch.regions.pair_picture.tolist()):
        for hoi in range(len(VOCABULARY)):
            kind, target = int(kinds[picture, hoi]), pairs[pair, hoi].item()
            assert np.isnan(target) if kind == -1 else target == kind


def test_context_batches_are_pure_functions_of_the_step_and_queue_what_came_before(world, tmp_path):
    data = world.taught()
    labels = teacher_labels(tmp_path / "l", data)
    texts, pool = Texts.open_or_build(tmp_path / "texts", data), np.arange(1, len(world.hoi))

    def batches():
        return ContextBatches(CONFIG.first_stage(), pool, maps_of(data), texts=texts, labels=labels, queue=8)

    first, again = batches(), batches()
    seen = [first[step] for step in range(4)]
    batch = again[3]  # without the steps before
    for name in ("rows", "sentences", "text", "same"):
        assert torch.equal(getattr(batch, name), getattr(seen[3], name))
    texts_of_step = [int(one.text.max()) + 1 for one in seen]
    assert texts_of_step[0] == 6  # nothing came before
    assert texts_of_step[1] == 12
    assert texts_of_step[3] == 14  # the queue is full
    assert batch.same.shape == (6, 14)


def test_pictures_that_show_the_same_are_no_negatives(world, tmp_path):
    data = world.taught()
    labels = teacher_labels(tmp_path / "l", data)
    texts, pool = Texts.open_or_build(tmp_path / "texts", data), np.arange(1, len(world.hoi))
    batch = ContextBatches(CONFIG.first_stage(), pool, maps_of(data), texts=texts, labels=labels, queue=0)[0]
    hoi = torch.from_numpy(world.hoi)[batch.rows]
    assert torch.equal(batch.same, hoi[:, None] == hoi)
