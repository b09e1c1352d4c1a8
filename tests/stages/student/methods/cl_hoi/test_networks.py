"""Translator and cognition network: each relation is removed by its own switch, and images do not see each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.stages.ops.instances import ordered_pairs
from hoi_distill.stages.student.methods.cl_hoi.cognition import ClHoi, ClHoiShape, Scorer, union_cells
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.methods.cl_hoi.student import build
from hoi_distill.stages.student.methods.cl_hoi.translator import Translator
from hoi_distill.stages.student.pairs.regions import Regions
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_cl_hoi import CONFIG, TEXT, TEXT_WIDTH
from tests.fixtures.toy_student import CHANNELS, VOCABULARY

SHAPE = ClHoiShape(CHANNELS, TEXT_WIDTH, TEXT_WIDTH)


def regions(seed: int = 0, instances=(3, 2, 4)) -> Regions:
    draw = torch.Generator().manual_seed(seed)
    count = sum(instances)
    corners = 4 + 40 * torch.rand(count, 2, generator=draw)
    pairs, start = [], 0
    for own in instances:
        pairs.append(torch.from_numpy(ordered_pairs(1, own).copy()) + start)
        start += own
    return Regions(
        torch.randn(len(instances), CHANNELS, 4, 4, generator=draw),
        torch.full((len(instances), 2), 64.0),
        torch.arange(len(instances)).repeat_interleave(torch.tensor(instances)),
        torch.cat((corners, corners + 3 + 14 * torch.rand(count, 2, generator=draw)), 1),
        torch.zeros(count, dtype=torch.long),
        torch.full((count,), 0.9),
        torch.cat(pairs),
    )


def made(config: ClHoiConfig = CONFIG, **switches) -> ClHoi:
    torch.manual_seed(3)
    config = replace(config, network=replace(config.network, **switches))
    return build(SHAPE, config, VOCABULARY, torch.from_numpy(TEXT)).eval()


def said(model: ClHoi, of: Regions) -> torch.Tensor:
    with torch.inference_mode():
        return model(of).logits


def changed(of: Regions, **fields) -> Regions:
    return Regions(**{**vars(of), **fields})


def test_spatial_off_boxes_are_only_looked_through():
    """On an even map boxes say nothing but where they are; without the spatial relation that is not told."""
    of = regions()
    even = changed(of, maps=of.maps.mean((2, 3), keepdim=True).expand_as(of.maps).clone())
    moved = changed(even, boxes=even.boxes + torch.tensor([0.0, 0.0, 3.0, 9.0]))
    one = replace(CONFIG, network=replace(CONFIG.network, spatial=False, layers=1))
    torch.manual_seed(3)
    off = build(SHAPE, one, VOCABULARY, torch.from_numpy(TEXT)).eval()
    for layer in off.network.layers:
        layer.look = None  # cells know where they are
    torch.testing.assert_close(said(off, even), said(off, moved))
    assert not torch.allclose(said(made(), even), said(made(), moved))


def test_visual_off_the_map_reaches_pairs_as_context_alone():
    of = regions()
    other = changed(of, maps=of.maps.flip(1), labels=of.labels + 2)
    assert torch.equal(said(made(visual=False, context=False), of), said(made(visual=False, context=False), other))
    assert not torch.allclose(said(made(context=False), of), said(made(context=False), other))
    assert not torch.allclose(said(made(visual=False), of), said(made(visual=False), other))


def test_context_off_there_is_no_translator():
    model, of = made(context=False), regions()
    assert model.translator is None
    with_context = made()
    before = said(with_context, of)
    with torch.no_grad():
        with_context.translator.queries.normal_()
    assert not torch.allclose(said(with_context, of), before)


def test_interactiveness_off_r_is_1():
    of = regions()
    with torch.inference_mode():
        assert (made(interactiveness=False)(of).log_r == 0).all()
        on = made()(of).log_r
        assert (on < 0).all()
    model = made(interactiveness=False)
    with torch.inference_mode():
        torch.testing.assert_close(Scorer(model, 2.0)(of), model(of).logits)


def test_score_is_what_it_says():
    model, of = made(), regions()
    with torch.inference_mode():
        answer = model(of)
        expected = answer.logits.sigmoid() * answer.log_r.exp()[:, None] ** 0.5
        torch.testing.assert_close(Scorer(model, 0.5)(of).sigmoid(), expected)


def test_images_do_not_see_each_other():
    of, model = regions(), made()
    together = said(model, of)
    alone = []
    for b in range(3):
        own = of.image == b
        first = int(own.nonzero()[0])
        pairs = of.pairs[of.pair_image == b] - first
        alone.append(
            said(
                model,
                Regions(
                    of.maps[b : b + 1], of.size[b : b + 1], of.image[own] - b, of.boxes[own], of.labels[own],
                    of.scores[own], pairs,
                ),
            )
        )  # fmt: skip
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_pairs_look_inside_their_union_box():
    of = regions(instances=(2,))
    of.boxes[:] = torch.tensor([[0.0, 0.0, 15.0, 16.0], [17.0, 0.0, 31.0, 31.0]])
    inside = union_cells(of, 4, 4).view(4, 4)
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(inside, expected)
    of.boxes[:] = 64.0  # nothing, at the very edge
    assert union_cells(of, 4, 4).sum() == 1


def test_classifier_starts_from_text():
    rows = made(centred=False).network.classifier.classes()
    np.testing.assert_allclose(rows.detach(), TEXT / np.linalg.norm(TEXT, axis=1, keepdims=True), rtol=1e-5)
    centred = TEXT - TEXT.mean(0)
    rows = made().network.classifier.classes()
    np.testing.assert_allclose(
        rows.detach(), centred / np.linalg.norm(centred, axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )
    assert not made().network.classifier.rows.requires_grad
    assert made(classes="trained").network.classifier.rows.requires_grad


def test_logits_start_at_scale_times_cosine_plus_bias():
    with torch.inference_mode():
        answer = made(logit_scale=5.0, logit_bias=-2.0)(regions())
    cosine = torch.nn.functional.normalize(answer.embeddings, dim=1) @ answer.classes.T
    torch.testing.assert_close(answer.logits, 5 * cosine - 2)


def test_translator_speaks_unit_vectors_and_reads_the_map():
    torch.manual_seed(0)
    translator = Translator(CHANNELS, TEXT_WIDTH, CONFIG.translator).eval()
    maps = torch.randn(3, CHANNELS, 4, 4)
    with torch.inference_mode():
        answer = translator.translate(maps)
        assert answer.phrases.shape == (3, CONFIG.translator.queries, TEXT_WIDTH)
        torch.testing.assert_close(answer.phrases.norm(dim=-1), torch.ones(3, CONFIG.translator.queries))
        torch.testing.assert_close(answer.whole.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(translator.translate(maps[1:2]).whole, answer.whole[1:2])
        assert not torch.allclose(translator.translate(maps.flip(-1)).whole, answer.whole)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_a_frozen_translator_drops_nothing_and_learns_nothing(rate):
    model = build(SHAPE, replace(CONFIG, translator_rate=rate), VOCABULARY, torch.from_numpy(TEXT)).train()
    assert model.network.training
    assert model.translator.training == bool(rate)
    model(regions()).logits.sum().backward()
    assert (model.translator.queries.grad is not None) == bool(rate)


def test_spatial_and_visual_cannot_both_be_off():
    section = {"method": "cl_hoi", "labelled": 0, "network": {"spatial": False, "visual": False}}
    with pytest.raises(UserError, match="spatial and visual"):
        read_section(section, "student.")
