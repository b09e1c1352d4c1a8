"""VLM-HOI as its paper prints it: Eq. 2's sentences, Eq. 4 on raw logits, negatives of unmatched queries; and its controls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import columns_for
from hoi_distill.stages.student.methods.vlm_hoi.itm_loss import (
    MatchedQueries,
    costs,
    expected_cost_of_objects,
    itm_terms,
    unmatched_terms,
)
from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import ItmScores
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.student.methods.vlm_hoi.losses import ItmTables, labelled_term
from hoi_distill.stages.student.methods.vlm_hoi.matching import Targets
from hoi_distill.stages.student.methods.vlm_hoi.method import VlmHoiMethod
from hoi_distill.stages.student.methods.vlm_hoi.muren import MurenOutput
from hoi_distill.stages.student.methods.vlm_hoi.teacher_scores import itm_supervision
from hoi_distill.stages.student.training.processes import ALONE
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_student import VOCABULARY
from tests.fixtures.vlm_hoi_world import World, tiny_config

COLUMNS = columns_for(VOCABULARY)
HOI_ID = torch.from_numpy(COLUMNS.hoi_id)
VERBS, OBJECTS, CLASSES = len(VOCABULARY.verbs), len(VOCABULARY.objects), len(COLUMNS.hois)
BICYCLE, DOG = 1, 16
HOLD, NONE, RIDE, WALK = range(4)
RAW = ItmConfig("F1-literal", alpha=2.0, scores="raw")


def scores(images: int = 2) -> ItmScores:
    log_odds = torch.from_numpy(np.random.default_rng(0).normal(0, 3, (images, CLASSES)).astype(np.float32))
    log_odds[:, COLUMNS.column < 0] = torch.nan
    return ItmScores(log_odds, log_odds.sigmoid(), log_odds, torch.zeros(images, CLASSES, dtype=torch.bool))


def test_sentences_are_the_papers_words():
    hico, coco = hico_vocabulary(), v_coco_vocabulary()
    ride = [hico.printed_prompts()[hico.hoi_id()[hico.verbs.index(v), hico.objects.index(o)]]
            for v, o in (("ride", "bicycle"), ("sit_at", "dining_table"), ("hold", "umbrella"))]  # fmt: skip
    assert ride == ["A person ride a bicycle", "A person sit at a dining table", "A person hold a umbrella"]
    assert hico.printed_verb_prompts()[hico.verbs.index("hold")] == "A person is holding"
    assert hico.printed_object_prompts()[hico.objects.index("tennis_racket")] == "A person tennis racket"
    hits = [coco.printed_prompts()[hoi] for hoi in range(len(coco)) if coco.hoi_name(hoi)[0].startswith("hit")]
    assert hits
    assert all(sentence.startswith("A person hit a ") for sentence in hits)


@pytest.mark.parametrize(("form", "hico"), [("printed", 520), ("printed_verb", 116), ("printed_object", 80)])
def test_every_printed_form_is_a_set_of_columns(form, hico):
    vocabulary = hico_vocabulary()
    columns = columns_for(vocabulary, form)
    assert len(columns.prompts) == hico
    assert all(prompt.startswith("A person ") for prompt in columns.prompts)
    plain = columns_for(vocabulary, {"printed": "full"}.get(form, form.removeprefix("printed_")))
    assert (columns.column == plain.column).all()
    assert (columns.hoi_id == plain.hoi_id).all()
    config = tiny_config(itm=ItmConfig(prompt=form))
    assert VlmHoiMethod().needs(config, vocabulary).train["itm"] == columns.prompts


def test_eq_4_stands_on_raw_logits():
    labels = torch.tensor([[1.0, 0, 1, 0]])
    m = torch.tensor([[3.0, -2.5, 0.5, 4]])
    for alpha in (0.0, 1.0, 2.0):
        cost = costs(replace(RAW, alpha=alpha), m, labels)
        assert cost.tolist() == [[max(0.0, alpha - 3), -2.5, max(0.0, alpha - 0.5), 4]]


@pytest.mark.parametrize("object_", ["gt", "predicted"])
def test_raw_scores_and_calibrated_ones_are_other_losses(object_):
    generator = torch.Generator().manual_seed(0)
    verbs = torch.zeros(2, VERBS)
    verbs[0, RIDE] = verbs[1, HOLD] = 1
    logits, objects = (torch.randn(2, n, generator=generator) for n in (VERBS, OBJECTS + 1))
    matched = MatchedQueries(torch.tensor([0, 1]), logits, verbs, torch.tensor([BICYCLE, DOG]), objects)
    found = {
        name: itm_terms(ItmConfig("F1-literal", object=object_, scores=name), scores(), HOI_ID, matched)
        for name in ("raw", "calibrated")
    }
    given = scores()
    swapped = replace(given, soft=given.log_odds)
    again = itm_terms(ItmConfig("F1-literal", object=object_), swapped, HOI_ID, matched)
    torch.testing.assert_close(found["raw"], again)
    assert not torch.allclose(found["raw"], found["calibrated"])


def test_queries_without_a_pair_pay_for_what_the_image_does_not_show():
    given = scores()
    given.present[0, HOI_ID[RIDE, BICYCLE]] = True
    logits, objects = torch.zeros(2, VERBS, requires_grad=True), torch.zeros(2, OBJECTS + 1, requires_grad=True)
    config = ItmConfig("F1-literal", unmatched=True)
    loss = unmatched_terms(config, given, HOI_ID, torch.tensor([0, 1]), verb_logits=logits, object_logits=objects)
    everywhere = given.soft[:, HOI_ID.clamp(min=0)].movedim(1, 2)
    possible = (HOI_ID.T >= 0)[None].expand(2, -1, -1) & ~torch.isnan(everywhere)
    possible = possible.clone()
    possible[0, BICYCLE, RIDE] = False  # it is annotated there
    expected = expected_cost_of_objects(objects, logits, everywhere, possible) * OBJECTS / (OBJECTS + 1)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert logits.grad.any()
    assert objects.grad[:, -1].abs().max() == 0, "predicting nothing must not be a way out"


def test_the_term_takes_unmatched_queries_only_where_it_is_asked_to():
    generator = torch.Generator().manual_seed(1)
    boxes = torch.rand(1, 1, 3, 4, generator=generator)
    output = MurenOutput(boxes, boxes, torch.randn(1, 1, 3, OBJECTS + 1, generator=generator),
                         torch.randn(1, 1, 3, VERBS, generator=generator))  # fmt: skip
    verbs = torch.zeros(1, VERBS)
    verbs[0, RIDE] = 1
    targets = [Targets(boxes[0, 0, :1], boxes[0, 0, :1], torch.tensor([BICYCLE]), verbs)]
    matches = [[(torch.tensor([1]), torch.tensor([0]))]]
    tables = ItmTables(HOI_ID, torch.from_numpy(COLUMNS.hois))
    given = scores(1)
    found = {
        unmatched: labelled_term(
            ItmConfig("F1", unmatched=unmatched), output, targets, matches, scores=given, tables=tables, processes=ALONE
        )
        for unmatched in (False, True)
    }
    left = unmatched_terms(
        ItmConfig("F1", unmatched=True), given, HOI_ID, torch.tensor([0, 0]),
        verb_logits=output.verb_logits[0, 0, [0, 2]], object_logits=output.object_logits[0, 0, [0, 2]],
    )  # fmt: skip
    torch.testing.assert_close(found[True], found[False] + left.sum())


@pytest.mark.parametrize(
    ("itm", "why"),
    [
        ({"scores": "raw"}, r"itm\.scores: raw scores are for Eq\. 4's costs"),
        ({"alpha": 2, "family": "F1-literal"}, r"itm\.alpha: expected at most 1; got 2"),
        ({"unmatched": True, "family": "F4"}, r"itm\.unmatched: is for F1"),
        ({"prompt": "printed_verb", "family": "F7"}, r"itm\.prompt: F7 judges"),
    ],
)
def test_readings_that_do_not_go_together_are_refused(itm, why):
    with pytest.raises(UserError, match=why):
        read_section({"method": "vlm_hoi", "labelled": None, "itm": itm}, "student.")


def test_a_constant_teacher_is_label_smoothing_alone(tmp_path):
    """Every verb of an object gets the share of annotated verbs, in every image, whatever the teacher says."""
    data = World().training_set(16)
    config = tiny_config(teacher="constant", itm=ItmConfig("F2"))
    found = itm_supervision(config, data, tmp_path).labelled(np.arange(16))
    known = found.soft[~torch.isnan(found.soft)]
    own = itm_supervision(tiny_config(), data, tmp_path / "own").labelled
    assert known.unique().numel() == 1
    assert known[0].item() == pytest.approx(own.platt.positives / own.platt.entries, rel=1e-4)
    assert torch.equal(torch.isnan(found.soft), torch.isnan(own(np.arange(16)).soft))


def test_annotated_triplets_come_with_the_scores_only_where_negatives_need_them(tmp_path):
    data = World().training_set(16)
    for unmatched in (False, True):
        config = tiny_config(itm=ItmConfig("F1", unmatched=unmatched))
        found = itm_supervision(config, data, tmp_path).labelled(np.array([3, 5]))
        assert (found.present is not None) == unmatched
    classes = found.present.nonzero().tolist()
    hois = VOCABULARY.hois[World().hoi[[3, 5]]]
    acts = [(row, int(HOI_ID[verb, thing])) for row, (verb, thing) in enumerate(hois.tolist()) if verb != NONE]
    assert [tuple(each) for each in classes] == acts
