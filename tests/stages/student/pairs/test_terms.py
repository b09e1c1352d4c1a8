"""Supervision terms: a network of pairs takes any list of them, and needs no more than logits for most."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.methods.cl_hoi.config import LossesConfig
from hoi_distill.stages.student.methods.cl_hoi.stream import teacher_labels
from hoi_distill.stages.student.methods.cl_hoi.terms import ImageLabelTerm
from hoi_distill.stages.student.methods.link.distillation import KdConfig
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import LinkStudent, verbs
from hoi_distill.stages.student.methods.link.term import DenseDistillation
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.train import build_model
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, TableMaps
from hoi_distill.stages.student.pairs.prepare import training_pictures
from hoi_distill.stages.student.pairs.regions import Candidates, candidates_of
from hoi_distill.stages.student.pairs.supervision.annotations import AnnotationTerm
from hoi_distill.stages.student.pairs.supervision.soft_labels import SoftLabelTerm
from hoi_distill.stages.student.pairs.terms import PairOutput
from hoi_distill.stages.student.pairs.training import TermLoss
from hoi_distill.stages.student.training.loop import Step
from tests.fixtures import toy_link
from tests.fixtures.toy_cl_hoi import TaughtToy
from tests.fixtures.toy_student import CHANNELS, VOCABULARY

CONFIG = PairClassifierConfig(width=16, steps=4, labelled_per_step=6, unlabelled_per_step=6)


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Batches with the targets of all four kinds of supervision, and the loss of all."""
    folder, world = tmp_path_factory.mktemp("everything"), TaughtToy(24, 0)
    torch.manual_seed(0)
    teacher = Link(LinkShape(CHANNELS, None, toy_link.NETWORK), verbs(VOCABULARY)).eval()
    data = toy_link.taught(world.training_set(12), world, LinkStudent(teacher, VOCABULARY, toy_link.link_config()))
    valid, pictures = torch.from_numpy(data.valid()), training_pictures(folder / "pictures", data, CONFIG)
    terms = [
        AnnotationTerm(data.labelled, len(VOCABULARY), alpha=0.5, gamma=0.2),
        SoftLabelTerm(lambda rows: np.full((len(rows), len(VOCABULARY)), 0.5, np.float32), weight=0.3),
        ImageLabelTerm(teacher_labels(folder / "labels", data), LossesConfig(contrastive=0.0, relatedness=0.0)),
        DenseDistillation(KdConfig((toy_link.PAIRS,), logit=1.0), data, valid),
    ]
    pools, maps = Pools.of(pictures, data.labelled, unlabelled=True), TableMaps.of(data.source, CONFIG.views)
    batches = PairBatches(CONFIG, pools, pictures, maps, terms, source=data.source)
    return data, batches, TermLoss(terms, valid, output_of=lambda logits: PairOutput(logits[None]))


def test_one_network_learns_from_all_terms_at_once(everything):
    data, batches, loss = everything
    torch.manual_seed(0)
    model = build_model(CONFIG, data, batches.channels(), None)
    total, values = loss(model, batches[0], Step(0))
    assert list(values) == ["loss/pairs", "loss/itm", "loss/mil", "loss/kd_logit"]
    expected = values["loss/pairs"] + 0.3 * values["loss/itm"] + values["loss/mil"] + values["loss/kd_logit"]
    torch.testing.assert_close(total, expected)
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_batch_has_the_targets_of_every_term_by_name(everything):
    _, batches, _ = everything
    assert list(batches[0].targets) == ["annotations", "itm", "image_labels", "kd"]
    assert batches.channels() == CHANNELS


def test_the_weight_of_soft_labels_grows_over_the_ramp(everything):
    _, batches, loss = everything
    logits = torch.zeros(1, len(batches[0].regions.pairs), len(VOCABULARY))
    term = SoftLabelTerm(loss.terms[1].soft, weight=0.3, ramp=4)
    parts = TermLoss([term], loss.valid, output_of=lambda output: output)
    ramp = []
    for number in range(6):
        total, values = parts(lambda regions: PairOutput(logits), batches[0], Step(number))
        ramp.append((total / values["loss/itm"]).item())
    assert ramp == pytest.approx([0.075, 0.15, 0.225, 0.3, 0.3, 0.3])


def test_candidates_are_what_a_pairs_object_allows(everything):
    _, batches, loss = everything
    regions = batches[0].regions
    found = candidates_of(regions, loss.valid)
    assert isinstance(found, Candidates)
    labels = regions.labels[regions.pairs[found.pair, 1]]
    assert loss.valid[labels, found.hoi].all()
    assert torch.equal(found.image, regions.pair_picture[found.pair])
    first = found.where(found.image == 0)
    assert 0 < len(first) < len(found)
    assert (first.image == 0).all()
    assert torch.equal(first.prior, found.prior[: len(first)])
