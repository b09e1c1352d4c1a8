"""Supervision terms: any network of pairs takes any list of them, and needs no more than logits for most."""

from __future__ import annotations

import pytest
import torch

from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import LinkStudent, verbs
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.train import build_model
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, TableMaps
from hoi_distill.stages.student.pairs.prepare import training_images
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.annotations import AnnotationTerm
from hoi_distill.stages.student.pairs.supervision.config import ImageLabelLossConfig, KdConfig
from hoi_distill.stages.student.pairs.supervision.dense_distillation import DenseDistillation
from hoi_distill.stages.student.pairs.supervision.image_labels import ImageLabelTerm, teacher_labels
from hoi_distill.stages.student.pairs.supervision.soft_labels import SoftLabelTerm, itm_soft_labels
from hoi_distill.stages.student.pairs.terms import PairOutput, Supervision
from hoi_distill.stages.student.pairs.training import PairTraining, TermLoss
from hoi_distill.stages.student.training.loop import Step
from tests.fixtures import toy_link
from tests.fixtures.toy_cl_hoi import LabelledToy
from tests.fixtures.toy_student import CHANNELS, VOCABULARY

CONFIG = PairClassifierConfig(width=16, steps=1, labelled_per_step=6, unlabelled_per_step=6, warmup_steps=0)
LEVELS = {"pair_classifier": ("logit",), "link": ("logit", "query", "map")}
"""What each network has to distil: the pair classifier has neither tokens nor a latent map."""


def link_network() -> Link:
    torch.manual_seed(0)
    return Link(LinkShape(CHANNELS, None, toy_link.NETWORK), verbs(VOCABULARY))


@pytest.fixture(scope="module")
def data():
    """Toy images with the tables of every kind of teacher."""
    world = LabelledToy(24, 0)
    student = LinkStudent(link_network().eval(), VOCABULARY, toy_link.link_config())
    return toy_link.with_teacher(world.training_set(12), world, student)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("everything")


@pytest.fixture(scope="module", params=list(LEVELS))
def method(request):
    return request.param


@pytest.fixture(scope="module")
def everything(data, folder, method):
    """A network's batches with the targets of all four kinds of supervision, and the loss of all."""
    valid, images = torch.from_numpy(data.valid()), training_images(folder / "pictures", data, CONFIG)
    terms = [
        AnnotationTerm(data.labelled, len(VOCABULARY), alpha=0.5, gamma=0.2),
        SoftLabelTerm(itm_soft_labels(folder / "itm.npy", data, images, ~data.labelled), weight=0.3),
        ImageLabelTerm(teacher_labels(folder / "labels", data), ImageLabelLossConfig(contrastive=0.0, relatedness=0.0)),
        DenseDistillation(
            KdConfig((toy_link.PAIRS,), (toy_link.MAPS,), **dict.fromkeys(LEVELS[method], 1.0)), data, valid
        ),
    ]
    pools, maps = Pools.of(images, data.labelled, unlabelled=True), TableMaps.of(data.source, CONFIG.views)
    batches = PairBatches(CONFIG, pools, images, maps, Supervision(terms, valid), source=data.source)
    if method == "link":
        return batches, TermLoss(terms)
    return batches, TermLoss(terms, output_of=lambda logits: PairOutput(logits[None]))


@pytest.fixture
def network(data, method):
    """A new network of the method; LINK's is another one than its teacher."""
    torch.manual_seed(1)
    if method == "link":
        return Link(LinkShape(CHANNELS, None, toy_link.NETWORK), verbs(VOCABULARY))
    return build_model(CONFIG, data, CHANNELS, None)


def test_any_network_trains_a_step_on_all_terms_at_once(everything, data, network, method, tmp_path):
    batches, loss = everything
    total, values = loss(network, batches[0], Step(0))
    distilled = [f"loss/kd_{level}" for level in LEVELS[method]]
    assert list(values) == ["loss/pairs", "loss/itm", "loss/mil", *distilled]
    assert all(torch.isfinite(value) and value > 0 for value in values.values())
    expected = sum(value * (0.3 if name == "loss/itm" else 1.0) for name, value in values.items())
    torch.testing.assert_close(total, expected)
    parameters = dict(network.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    training = PairTraining.open(CONFIG, data, tmp_path, Extras(report=lambda line: None))
    trained = training.fit(network, batches, loss, logits_of=loss.logits_of)
    moved = {name for name, parameter in trained.named_parameters() if not torch.equal(parameter, before[name])}
    assert all(torch.isfinite(parameter).all() for parameter in trained.parameters())
    assert len(moved) > 0.9 * len(before)


@pytest.mark.parametrize("place", range(4))
def test_every_term_alone_pulls_at_every_network(everything, network, place):
    batches, loss = everything
    alone = TermLoss([loss.terms[place]], output_of=loss.output_of)
    alone(network, batches[0], Step(0))[0].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_cells_that_no_term_uses_are_not_read(data, folder):
    """KD reads labelled images alone where it says so; the others come with soft labels and without its cells."""
    valid, images = torch.from_numpy(data.valid()), training_images(folder / "pictures", data, CONFIG)
    asked: list[int] = []

    class Watched:
        def __init__(self, samples):
            self.samples = samples

        def __getitems__(self, rows):
            asked.extend(rows)
            return self.samples.__getitems__(rows)

    for unlabelled in (False, True):
        kd = DenseDistillation(KdConfig((toy_link.PAIRS,), (), logit=1.0, unlabelled=unlabelled), data, valid)
        soft = SoftLabelTerm(itm_soft_labels(folder / "itm.npy", data, images, ~data.labelled), weight=0.3)
        pools, maps = Pools.of(images, data.labelled, unlabelled=True), TableMaps.of(data.source, CONFIG.views)
        batches = PairBatches(CONFIG, pools, images, maps, Supervision([soft, kd], valid), source=data.source)
        batches.samples = {view: Watched(samples) for view, samples in batches.samples.items()}
        asked.clear()
        batch = batches[0]
        assert not data.labelled[batch.rows].all()
        assert data.labelled[asked].all() == (not unlabelled)
        assert batch.targets["kd"].teachers[0].has.tolist() == (unlabelled | data.labelled[batch.rows]).tolist()


def test_two_terms_of_one_name_are_refused(data):
    class Other(SoftLabelTerm):
        name = "itm_other"

    valid, soft = torch.from_numpy(data.valid()), itm_soft_labels
    with pytest.raises(ValueError, match=r"^supervision terms: two are named 'itm'; give one, as a subclass, a `name`"):
        Supervision([SoftLabelTerm(soft, 0.3), SoftLabelTerm(soft, 0.5)], valid)
    assert len(Supervision([SoftLabelTerm(soft, 0.3), Other(soft, 0.5)], valid).terms) == 2


def test_a_batch_has_the_targets_of_every_term_by_name(everything):
    batches, _ = everything
    assert list(batches[0].targets) == ["annotations", "itm", "image_labels", "kd"]
    assert batches.channels() == CHANNELS


def test_the_weight_of_soft_labels_grows_over_the_ramp(everything):
    batches, loss = everything
    logits = torch.zeros(1, len(batches[0].regions.pairs), len(VOCABULARY))
    term = SoftLabelTerm(loss.terms[1].soft, weight=0.3, ramp=4)
    parts = TermLoss([term], output_of=lambda output: output)
    ramp = []
    for number in range(6):
        total, values = parts(lambda regions: PairOutput(logits), batches[0], Step(number))
        ramp.append((total / values["loss/itm"]).item())
    assert ramp == pytest.approx([0.075, 0.15, 0.225, 0.3, 0.3, 0.3])


def test_candidates_are_what_a_pairs_object_allows(everything):
    batches, _ = everything
    regions, found = batches[0].regions, batches[0].candidates
    assert len(found) == len(candidates_of(regions, batches.valid))
    labels = regions.labels[regions.pairs[found.pair, 1]]
    assert batches.valid[labels, found.hoi].all()
    assert torch.equal(found.image, regions.pair_image[found.pair])
    first = found.where(found.image == 0)
    assert 0 < len(first) < len(found)
    assert (first.image == 0).all()
    assert torch.equal(first.prior, found.prior[: len(first)])
