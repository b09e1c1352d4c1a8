"""LINK with what a teacher says of whole images: matching scores and labels from its text."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.data import valid_classes
from hoi_distill.stages.student.method import NOTHING, parameters_of
from hoi_distill.stages.student.methods.link.batches import LinkBatches
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.method import LinkMethod
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import LinkStudent, verbs
from hoi_distill.stages.student.methods.link.train import image_terms_of, terms_of
from hoi_distill.stages.student.pairs.prepare import training_images
from hoi_distill.stages.student.pairs.supervision.config import SoftLabelConfig, TextLabelConfig
from hoi_distill.stages.student.pairs.terms import Supervision
from hoi_distill.storage.errors import UserError
from tests.fixtures import toy_link
from tests.fixtures.toy_cl_hoi import LabelledToy
from tests.fixtures.toy_link import ALL_LEVELS, link_config, trained
from tests.fixtures.toy_student import CHANNELS, VOCABULARY, weights

METHOD = LinkMethod()
TERMS = {
    "soft_labels": (SoftLabelConfig(images="unlabelled", ramp=4), "loss/itm"),
    "text_labels": (TextLabelConfig(images="unlabelled", ramp=4), "loss/mil"),
}


@pytest.fixture(scope="module")
def world():
    return LabelledToy(24, 0)


@pytest.fixture(scope="module")
def plain(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    trained(link_config(), world.training_set(12), folder)
    return weights(folder)


@pytest.mark.parametrize("key", TERMS)
def test_each_term_is_logged_and_a_weight_of_0_is_the_plain_training_bit_for_bit(tmp_path, world, plain, key):
    term, logged = TERMS[key]
    for name, changed in {"with": term, "weightless": replace(term, weight=0.0)}.items():
        trained(link_config(**{key: changed}), world.training_set(12), tmp_path / name)
    assert weights(tmp_path / "weightless") == plain != weights(tmp_path / "with")
    last = json.loads((tmp_path / "with" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last[logged] > 0
    assert last["loss"] == pytest.approx(last["loss/pairs"] + term.weight * last[logged], rel=1e-4)


@pytest.mark.parametrize("images", ["labelled", "unlabelled"])
def test_text_of_other_images_is_never_read(tmp_path, world, images):
    """Emptied labels of the images that the term leaves out change no weight."""
    told = world.training_set(12)
    cells = list(world.tables["labels"]["value"])
    for row in range(12, 24) if images == "labelled" else range(12):
        cells[row] = {name: values[:0] for name, values in cells[row].items()}
    emptied = replace(told, source=replace(told.source, tables={**told.source.tables, "labels": {"value": cells}}))
    config = link_config(text_labels=TextLabelConfig(images=images, ramp=0))
    for name, data in {"told": told, "emptied": emptied}.items():
        trained(config, data, tmp_path / name)
    assert weights(tmp_path / "told") == weights(tmp_path / "emptied")


def test_a_student_learns_from_whole_images_alone(tmp_path, world):
    soft = SoftLabelConfig(images="unlabelled", ramp=0, weight=1.0, calibrated=False)
    config = link_config(soft_labels=soft, text_labels=TextLabelConfig(images="both", ramp=0), steps=30, log_every=1)
    trained(config, world.training_set(0), tmp_path)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss/itm", "loss/mil"):
        assert np.mean([record[name] for record in log[-5:]]) < np.mean([record[name] for record in log[:5]])
    with pytest.raises(UserError, match="calibrating soft labels needs at least one labelled image"):
        trained(link_config(soft_labels=replace(soft, calibrated=True)), world.training_set(0), tmp_path / "none")


def test_in_the_control_each_image_has_the_scores_of_another_one(tmp_path, world):
    config = link_config(soft_labels=SoftLabelConfig(images="labelled"))
    data = world.training_set(24)
    images = training_images(tmp_path / "pictures", data, config)
    rows, found = np.flatnonzero(images.usable()), {}
    for teacher in ("itm", "shuffled"):
        (tmp_path / teacher).mkdir()
        changed = replace(config, soft_labels=replace(config.soft_labels, teacher=teacher))
        (term,) = image_terms_of(changed, data, images, tmp_path / teacher, NOTHING)
        found[teacher] = np.nan_to_num(term.soft(rows))
    assert (found["itm"] != found["shuffled"]).any(axis=1).all()
    assert sorted(found["itm"].tolist()) == sorted(found["shuffled"].tolist())
    both = replace(changed, text_labels=TextLabelConfig(images="labelled"))
    control = (
        "scores of the same images (control: each image has those of another), with labels from the teacher's text"
    )
    assert control in METHOD.trained_on(both, 24, 0)


def test_pair_teachers_teach_on_labelled_images_alone_where_others_are_drawn_for_scores(tmp_path, world):
    torch.manual_seed(0)
    network = Link(LinkShape(CHANNELS, None, toy_link.NETWORK), verbs(VOCABULARY)).eval()
    data = toy_link.with_teacher(world.training_set(12), world, LinkStudent(network, VOCABULARY, link_config()))
    valid = torch.from_numpy(valid_classes(VOCABULARY))
    answered = {}
    for unlabelled in (False, True):
        kd = replace(ALL_LEVELS, unlabelled=unlabelled)
        config = link_config(kd=kd, soft_labels=SoftLabelConfig(images="unlabelled"))
        images = training_images(tmp_path / "pictures", data, config)
        batch = LinkBatches(config, data, images, Supervision(terms_of(config, data, valid), valid))[0]
        assert not data.labelled[batch.rows].all()
        answered[unlabelled] = batch.targets["kd"].teachers[0].has.numpy()
        assert np.array_equal(answered[unlabelled], data.labelled[batch.rows] | unlabelled)


def test_what_cannot_be_calibrated_without_labels_does_not_suffice():
    calibrated = SoftLabelConfig(images="unlabelled")
    assert not METHOD.needs(link_config(soft_labels=calibrated), VOCABULARY).unlabelled_suffice
    assert METHOD.needs(link_config(soft_labels=replace(calibrated, calibrated=False)), VOCABULARY).unlabelled_suffice


def test_the_keys_say_what_is_read_and_on_how_many_images():
    config = link_config(soft_labels=TERMS["soft_labels"][0], text_labels=TextLabelConfig(images="both"))
    needs = METHOD.needs(config, VOCABULARY)
    assert set(needs.train) == {"detections", "features", "itm", "labels"}
    assert needs.unlabelled
    assert VOCABULARY.prompts()[-1] not in needs.train["itm"]
    assert METHOD.distilled(config, 500, 3500) == {
        "soft_labels.images: unlabelled": 3500,
        "text_labels.images: both": 4000,
    }
    words = METHOD.trained_on(config, 500, 3500)
    assert (
        "matching scores of 3,500 images without annotations, with labels from the teacher's text of all images"
        in words
    )
    with pytest.raises(UserError, match=r"text_labels: .* set images: none"):
        METHOD.pair_teacher("phase_1", LinkConfig(text_labels=TextLabelConfig(images="both")), "d", "f", (4, 2, 2))


def test_a_term_that_is_off_enters_no_fingerprint():
    assert parameters_of(LinkConfig()).keys().isdisjoint(TERMS)
    assert "soft_labels" in parameters_of(LinkConfig(soft_labels=SoftLabelConfig(images="both")))
