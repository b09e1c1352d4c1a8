"""Where a LINK student looks, pair by pair, is what its decoder's answers are made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.methods.link.attention import pair_attention
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import LinkStudent, verbs
from hoi_distill.stages.student.methods.pair_classifier.student import PairStudent
from hoi_distill.stages.student.pairs.instances import gather, image_of
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_link import NETWORK, TEXT, link_config
from tests.fixtures.toy_student import CHANNELS, VOCABULARY


def student_of(**network) -> LinkStudent:
    config = link_config(network=replace(NETWORK, **network))
    torch.manual_seed(0)
    model = Link(LinkShape(CHANNELS, TEXT.shape[1], config.network), verbs(VOCABULARY), torch.from_numpy(TEXT))
    return LinkStudent(model.eval(), VOCABULARY, config)


def cell(toy, row: int = 0):
    return toy.detections[row], np.asarray(toy.tables["features"]["original"][row], np.float32)


@pytest.mark.parametrize(
    ("network", "names"),
    [
        ({}, ["layer 1, spatial", "layer 1, semantic", "layer 2, spatial", "layer 2, semantic"]),
        ({"linking_branches": "semantic"}, ["layer 1, semantic", "layer 2, semantic"]),
        ({"linking_decoder": False}, ["layer 1", "layer 2"]),
    ],
)
def test_every_pair_has_one_attention_a_layer_and_branch_that_sums_to_one(toy, network, names):
    student = student_of(**network)
    detections, features = cell(toy)
    seen = student.pair_attention(detections, features)
    image = image_of(detections, student.config)
    assert list(seen.weights) == names
    for weights in seen.weights.values():
        assert weights.shape == (len(image.pairs), *features.shape[1:])
        np.testing.assert_allclose(weights.sum((1, 2)), 1, atol=1e-5)
    np.testing.assert_array_equal(seen.human_box, image.boxes[image.pairs[:, 0]])
    np.testing.assert_array_equal(seen.object_box, image.boxes[image.pairs[:, 1]])


def test_what_a_branch_has_seen_is_the_cells_weighted_by_its_attention(toy):
    student = student_of(heads=1)
    detections, features = cell(toy)
    weights = list(student.pair_attention(detections, features).weights.values())
    given = []
    hooks = [
        layer.look.register_forward_pre_hook(lambda _, args: given.append(args))
        for layer in student.model.decoder.layers
    ]
    with torch.inference_mode():
        student.model(gather([image_of(detections, student.config)], torch.from_numpy(features)[None]))
        for layer, arguments in zip(student.model.decoder.layers, given, strict=True):
            for look, seen in zip(layer.look.looks(*arguments), layer.look.branches(*arguments), strict=True):
                mixed = torch.from_numpy(weights.pop(0)).flatten(1) @ look.value[0]
                torch.testing.assert_close(mixed, seen, atol=1e-5, rtol=1e-4)
    assert not weights
    for hook in hooks:
        hook.remove()


def test_looking_changes_nothing(toy):
    student = student_of()
    student.model.train()
    before = {name: value.clone() for name, value in student.model.state_dict().items()}
    pair_attention(student.model, image_of(cell(toy)[0], student.config), cell(toy)[1])
    assert student.model.training
    assert not any(layer.look._forward_pre_hooks for layer in student.model.decoder.layers)
    assert all(torch.equal(value, before[name]) for name, value in student.model.state_dict().items())


def test_an_image_without_a_pair_has_none(toy):
    detections, features = cell(toy)
    nobody = {**detections, "boxes": [], "scores": [], "labels": []}
    seen = student_of().pair_attention(nobody, features)
    assert (len(seen.human_box), seen.weights) == (0, {})


def test_a_student_that_attends_to_nothing_says_so(toy):
    other = PairStudent.__new__(PairStudent)
    with pytest.raises(UserError, match="pair-classifier have no attention"):
        other.pair_attention(*cell(toy))
