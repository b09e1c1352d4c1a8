"""Image-level labels of a teacher or of the annotations, and how they reach pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, TableMaps
from hoi_distill.stages.student.pairs.prepare import image_table
from hoi_distill.stages.student.pairs.supervision.image_labels import (
    CopiedLabelTerm,
    ImageLabelTerm,
    annotated_labels,
    copied,
    teacher_labels,
)
from hoi_distill.stages.student.pairs.terms import Supervision
from tests.fixtures.toy_cl_hoi import CONFIG, LabelledToy
from tests.fixtures.toy_student import OBJECTS, VOCABULARY


@pytest.fixture(scope="module")
def world() -> LabelledToy:
    return LabelledToy(24, 0)


def test_unlisted_interactions_are_ordinary_negatives(world, tmp_path):
    labels = teacher_labels(tmp_path / "labels", world.teacher_set())
    target, kind, weight = (table[[3]] for table in (labels.target, labels.kind, labels.weight))
    other = OBJECTS[world.hoi[3]] != OBJECTS
    assert (kind[0, other] == 0).all()
    assert (weight[0, other] == 1).all()
    assert (target[0, other] == 0).all()
    assert kind[0, world.hoi[3]] == (1 if VOCABULARY.hois[world.hoi[3], 0] != 2 else -1) or kind[0, world.hoi[3]] == 1
    assert labels.known.all()


def test_failed_rows_are_not_known(world, tmp_path):
    cells = [*world.tables["labels"]["value"]]
    cells[2] = None
    labels = teacher_labels(tmp_path / "labels", world.teacher_set(labels={"value": cells}))
    assert not labels.known[2]
    assert labels.known.sum() == len(cells) - 1


def test_annotated_labels_ignore_nothing(world, tmp_path):
    labels = annotated_labels(tmp_path / "labels", world.teacher_set())
    assert (labels.kind.argmax(1) == world.hoi).all()
    assert (labels.kind >= 0).all()
    assert (labels.kind.sum(1) == 1).all()


def test_labels_are_copied_to_every_pair_of_their_image(world, tmp_path):
    data = world.teacher_set()
    images, labels = image_table(tmp_path / "p", data.source, CONFIG), teacher_labels(tmp_path / "l", data)
    pools = Pools(np.empty(0, np.int64), np.arange(len(world.hoi)))
    terms = [ImageLabelTerm(labels, CONFIG.losses), CopiedLabelTerm(labels, alpha=0.5, gamma=0.2)]
    supervision = Supervision(terms, torch.from_numpy(data.valid()))
    batch = PairBatches(CONFIG, pools, images, TableMaps.of(data.source, CONFIG.views), supervision)[0]
    assert set(batch.targets) == {"image_labels", "copied_labels"}  # no pair has a target of its own
    kinds, pairs = batch.targets["image_labels"].kind, batch.targets["copied_labels"].target
    assert torch.equal(pairs.nan_to_num(-1), copied(batch.regions, kinds).nan_to_num(-1))
    for pair, image in enumerate(batch.regions.pair_image.tolist()):
        for hoi in range(len(VOCABULARY)):
            kind, target = int(kinds[image, hoi]), pairs[pair, hoi].item()
            assert np.isnan(target) if kind == -1 else target == kind
