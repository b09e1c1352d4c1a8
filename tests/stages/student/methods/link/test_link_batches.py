"""LINK's batches: pairs, annotations and teachers' answers side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.methods.link.batches import LinkBatches
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import LinkStudent, allowed, verbs
from hoi_distill.stages.student.methods.link.train import terms_of
from hoi_distill.stages.student.pairs.batches import PairBatch, Share
from hoi_distill.stages.student.pairs.instances import image_of, jittered, with_annotations
from hoi_distill.stages.student.pairs.prepare import training_images
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.terms import Supervision
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_link import ALL_LEVELS, MAPS, NETWORK, PAIRS, link_config, with_teacher
from tests.fixtures.toy_student import CHANNELS, VOCABULARY, Toy

BOTH = replace(ALL_LEVELS, unlabelled=True)


@pytest.fixture(scope="module")
def teacher() -> LinkStudent:
    torch.manual_seed(3)
    model = Link(LinkShape(CHANNELS, None, replace(NETWORK, width=24)), verbs(VOCABULARY)).eval()
    return LinkStudent(model, VOCABULARY, link_config())


@pytest.fixture(scope="module")
def data(toy, teacher) -> TrainingSet:
    return with_teacher(toy.training_set(16), toy, teacher)


def target_of(batch: PairBatch) -> torch.Tensor:
    """float ``[P, H]``, the annotated targets of the pairs."""
    return batch.targets["annotations"].target


@pytest.fixture
def stream(tmp_path, data):
    def opened(config: LinkConfig, data: TrainingSet = data, rank: int = 0, world: int = 1) -> LinkBatches:
        images = training_images(tmp_path / "pictures", data, config)
        terms = terms_of(config, data, torch.from_numpy(allowed(config, VOCABULARY)))
        valid = torch.from_numpy(allowed(config, VOCABULARY) & data.seen)
        return LinkBatches(config, data, images, Supervision(terms, valid), Share(rank, world))

    return opened


def test_what_a_teacher_said_lies_beside_the_entries_it_was_said_of(stream, teacher):
    """The teacher's own forward on the student's batch gives what its tables gave, view by view."""
    batches = stream(link_config(kd=BOTH))
    batch = batches[2]
    (one,) = batch.targets["kd"].teachers
    assert one.has.all()
    with torch.inference_mode():
        output = teacher.model(batch.regions)
    candidates = candidates_of(batch.regions, teacher.valid())
    for said, own in (
        (one.logits, output.logits[-1][candidates.pair, candidates.hoi]),
        (one.unary, output.unary),
        (one.pairs, output.pairs),
        (one.latent, output.latent),
    ):
        torch.testing.assert_close(said.float(), own, rtol=2e-2, atol=2e-2)
    counted = batch.candidates.image[batch.targets["annotations"].counted]
    assert counted.unique().tolist() == list(range(6)), "the labelled ones of 14"


def test_unseen_classes_are_no_entries_of_a_teacher(stream, data, teacher):
    unseen = np.arange(len(VOCABULARY)) == 1
    whole = stream(link_config(kd=BOTH))[0]
    (one,) = stream(link_config(kd=BOTH), replace(data, unseen=unseen))[0].targets["kd"].teachers
    hoi = candidates_of(whole.regions, teacher.valid()).hoi
    assert torch.equal(one.logits, whole.targets["kd"].teachers[0].logits[hoi != 1])
    assert (hoi == 1).any()


def test_a_teacher_of_other_boxes_is_refused(stream, data):
    cells = data.source.tables[PAIRS]
    other = {view: [{**cell, "boxes": cell["boxes"][::-1]} for cell in column] for view, column in cells.items()}
    source = replace(data.source, tables={**data.source.tables, PAIRS: other})
    with pytest.raises(UserError, match=rf"image \d+: the boxes in table {PAIRS} .* from table detections"):
        stream(link_config(kd=BOTH), replace(data, source=source))[0]


def test_only_the_tables_that_a_weight_asks_for_are_opened(stream, data):
    features = {name: data.source.tables[name] for name in ("detections", "features")}
    for kept, weights in (((), {}), ((PAIRS,), {"map": 0.0}), ((MAPS,), {"logit": 0.0, "query": 0.0})):
        tables = {**features, **{name: data.source.tables[name] for name in kept}}
        kd = replace(BOTH, **(weights or dict.fromkeys(("logit", "query", "map"), 0.0)))
        batches = stream(link_config(kd=kd), replace(data, source=replace(data.source, tables=tables)))
        batch = batches[0]
        assert ("kd" in batch.targets) == bool(kept)
        assert len(batch.rows) == (14 if kept else 6)


def test_a_image_whose_teacher_failed_is_left_out(stream, data):
    config = link_config(kd=BOTH)
    row = int(stream(config).rows(0)[0])
    cells = {view: list(column) for view, column in data.source.tables[PAIRS].items()}
    for column in cells.values():
        column[row] = None
    source = replace(data.source, tables={**data.source.tables, PAIRS: cells})
    batch = stream(config, replace(data, source=source))[0]
    assert row not in batch.rows
    assert len(batch.rows) == 13


def test_jittered_boxes_get_the_annotations_that_fit_them(stream, toy):
    batches = stream(link_config(box_jitter=0.2, views=("original",)))
    first, again, other = batches[0], batches[0], batches[1]
    assert torch.equal(first.regions.boxes, again.regions.boxes)
    assert torch.equal(target_of(first), target_of(again))
    still = stream(link_config(views=("original",)))[0]
    assert torch.equal(first.rows, still.rows)
    assert not torch.equal(first.regions.boxes, still.regions.boxes)
    fewer = sum(int(target_of(batches[step]).sum()) for step in range(6))
    assert 0 < fewer < sum(int(target_of(stream(link_config(views=("original",)))[step]).sum()) for step in range(6))
    assert len(other.rows) == 6
    boxes = first.regions.boxes
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    for place, row in enumerate(first.rows.tolist()):
        image = batches.images[row]
        own = first.regions.image == place
        moved = with_annotations(replace(image, boxes=boxes[own].numpy()), *batches.data.true_pairs(row), iou=0.5)
        pairs = (first.regions.pair_image == place).nonzero().flatten()
        assert sorted(map(tuple, target_of(first)[pairs].nonzero().tolist())) == sorted(
            map(tuple, moved.positives.tolist())
        )


def test_annotations_that_are_set_aside_are_ignored_jittered_or_not(stream, toy):
    data = toy.training_set(16)
    nothing = data.annotations.with_pairs(np.zeros(len(toy.hoi), bool))
    for jitter in (0.0, 0.01):
        whole = stream(link_config(box_jitter=jitter), data)
        set_aside = replace(data, annotations=nothing, dropped=data.annotations)
        aside = LinkBatches(whole.link, set_aside, whole.images, Supervision(whole.terms, whole.valid))
        if not jitter:
            aside.images = [
                with_annotations(
                    whole.images[row],
                    *aside.data.true_pairs(row),
                    iou=0.5,
                    dropped=aside.data.dropped_pairs(row),
                )
                for row in range(40)
            ]
        target = target_of(aside[0])
        assert torch.equal(torch.isnan(target), target_of(whole[0]) == 1)
        assert not (target == 1).any()
        assert torch.isnan(target).any()


def test_jitter_moves_edges_by_a_share_of_their_side():
    image = image_of(Toy(1, 0).detections[0], link_config())
    draws = np.stack([jittered(image, 0.1, np.random.default_rng(n)).boxes[1] for n in range(400)])
    sides = image.boxes[1, 2:] - image.boxes[1, :2]
    spread = draws.std(0) / np.tile(sides, 2)
    assert np.abs(spread[[0, 2]] - 0.1).max() < 0.02


def test_ranks_and_loader_workers_share_out_the_same_batches(stream):
    config = link_config(kd=BOTH)
    whole = stream(config)
    parts = [stream(config, rank=rank, world=2) for rank in range(2)]
    assert sorted(whole.rows(3)) == sorted(np.concatenate([part.rows(3) for part in parts]))
    with_workers = DataLoader(whole, batch_size=None, sampler=range(2), num_workers=1)
    for one, other in zip(with_workers, (whole[step] for step in range(2)), strict=True):
        assert torch.equal(one.regions.maps, other.regions.maps)
        assert torch.equal(one.targets["kd"].teachers[0].pairs, other.targets["kd"].teachers[0].pairs)
