"""The teacher's scores: which sentence stands for which class, nothing missing unnoticed, never the wrong way round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.student.calibration import Platt, match_log_odds
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import columns_for
from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import (
    ItmScores,
    ItmTargets,
    annotated_classes,
    calibrate,
    check_orientation,
    grouped_auc,
    match_row,
    same_object,
    sentence_mean,
    verb_auc,
)
from hoi_distill.stages.student.training.loading import moved
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_student import VOCABULARY, Toy

COLUMNS = columns_for(VOCABULARY)


def logits(seed: int = 0, images: int = 200, signal: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """float16 ``[N, H, 2]`` raw (z0, z1) and bool ``[N, H]``: one class an image, which matches better."""
    random = np.random.default_rng(seed)
    present = np.arange(len(VOCABULARY)) == random.integers(0, len(VOCABULARY), images)[:, None]
    match = np.where(present, signal, 0) + random.normal(0, 2, present.shape)
    return np.stack([-match / 2, match / 2], -1).astype(np.float16), present


def targets(**options) -> ItmTargets:
    values = np.arange(3 * len(COLUMNS.prompts), dtype=np.float32).reshape(3, -1)
    fields = {"log_odds": values, "platt": Platt(0.5, -1, 0, 0), "mean": values.mean(0), "names": ["a", "b", "c"]}
    return ItmTargets(COLUMNS, **{**fields, **options})


@pytest.mark.parametrize(("form", "hico", "v_coco"), [("full", 520, 234 + 29), ("verb", 116, 29), ("object", 80, 69)])
def test_each_form_has_its_sentences_and_every_class_its_own(form, hico, v_coco):
    """520: HICO-DET without no_interaction."""
    vocabulary = hico_vocabulary()
    columns = columns_for(vocabulary, form)
    assert len(columns.prompts) == hico == len(set(columns.prompts))
    by_class = {
        "full": vocabulary.prompts(),
        "verb": [vocabulary.verb_prompts()[verb] for verb in vocabulary.hois[:, 0]],
        "object": [vocabulary.object_prompts()[thing] for thing in vocabulary.hois[:, 1]],
    }[form]
    for hoi, (verb, thing) in enumerate(vocabulary.hois.tolist()):
        if vocabulary.verbs[verb] == "no_interaction":
            assert columns.column[hoi] == -1 == columns.hoi_id[verb, thing]
        else:
            assert columns.prompts[columns.column[hoi]] == by_class[hoi]
            assert columns.hoi_id[verb, thing] == hoi
    assert (columns.hoi_id[:, -1] == -1).all()
    assert len(columns_for(v_coco_vocabulary(), form, missing_object=True).prompts) == v_coco


def test_a_slot_of_v_coco_without_object_is_asked_by_its_verb():
    vocabulary = v_coco_vocabulary()
    stand = vocabulary.verbs.index("stand")
    columns = columns_for(vocabulary, "full", missing_object=True)
    assert columns.prompts[columns.column[columns.hoi_id[stand, 80]]] == "a photo of a person standing"
    assert (columns.hoi_id[stand, :80] == -1).all()
    full = torch.arange(float(len(columns.hois)))[None]
    here = ItmScores(full, full, full).of_verbs(
        torch.tensor([0, 0]), torch.tensor([1, 80]), torch.from_numpy(columns.hoi_id)
    )
    assert torch.isnan(here.soft[0, stand])
    assert here.soft[1, stand] == len(vocabulary) + stand
    assert (columns_for(vocabulary, "full").hoi_id[:, 80] == -1).all()
    assert (columns_for(vocabulary, "object", missing_object=True).hoi_id[:, 80] == -1).all()


def test_verbs_of_an_object_are_gathered_by_image_and_object():
    scores = targets()(np.array([2, 0]))
    hoi_id = torch.from_numpy(COLUMNS.hoi_id)
    image, things = torch.tensor([0, 1, 0]), torch.tensor([1, 16, 80])
    here = scores.of_verbs(image, things, hoi_id)
    everywhere = scores.of_objects(image, hoi_id)
    assert here.soft.shape == (3, 4)
    assert everywhere.log_odds.shape == (3, 81, 4)
    for query, (row, thing) in enumerate([(2, 1), (0, 16), (2, 80)]):
        for verb in range(4):
            hoi = COLUMNS.hoi_id[verb, thing]
            m = np.nan if hoi < 0 else targets().log_odds[row, COLUMNS.column[hoi]]
            mean = np.nan if hoi < 0 else targets().mean[COLUMNS.column[hoi]]
            found = [field[query, verb].item() for field in (here.log_odds, here.soft, here.centred)]
            np.testing.assert_allclose(found, [m, 1 / (1 + np.exp(1 - 0.5 * m)), m - mean], rtol=1e-6)
    rows = torch.arange(3)
    for name in ("log_odds", "soft", "centred"):
        one, all_ = getattr(here, name), getattr(everywhere, name)
        torch.testing.assert_close(all_[rows, things], one, equal_nan=True, rtol=0, atol=0)
    assert isinstance(moved(scores, "cpu"), ItmScores)


def test_a_missing_row_or_cell_is_an_error_that_names_it():
    values = targets().log_odds.copy()
    values[1] = np.nan
    for strict in (True, False):
        with pytest.raises(
            UserError, match=r"^itm: b has no score for 'a photo of a person holding a bicycle'; [^\n]*$"
        ):
            targets(log_odds=values, strict=strict)(np.array([0, 1]))
    values = targets().log_odds.copy()
    values[2, 1] = np.nan
    with pytest.raises(UserError, match="itm: c has no score for 'a photo of a person riding a bicycle'"):
        targets(log_odds=values)(np.array([2]))
    kept = targets(log_odds=values, strict=False)(np.array([2]))
    assert torch.isnan(kept.soft).sum() == torch.isnan(targets()(np.array([2])).soft).sum() + 1
    assert targets()(np.array([], np.int64)).soft.shape == (0, len(COLUMNS.hois))


def test_shuffled_images_get_anothers_answers():
    shuffled = targets(source=np.array([1, 2, 0]))
    own, given_ = targets()(np.array([1, 2])), shuffled(np.array([0, 1]))
    torch.testing.assert_close(given_.log_odds, own.log_odds, equal_nan=True)


def test_cells_become_log_odds_and_a_column_that_is_not_there_is_an_error():
    cells = {"riding": np.array([1, 3.5], np.float16), "standing": None}
    np.testing.assert_array_equal(match_row(cells, ("standing", "riding"), "a"), [np.nan, 2.5])
    with pytest.raises(UserError, match="itm: a has no score for 'walking'"):
        match_row(cells, ("riding", "walking"), "a")
    assert match_row(cells, (), "a").shape == (0,)


def test_swapped_logits_fail_loudly():
    itm, present = logits()
    assert check_orientation(match_log_odds(itm), present) > 0.8
    platt = calibrate(match_log_odds(itm), present)
    assert platt.slope > 0
    with pytest.raises(
        UserError, match=r"^itm: AUC 0\.\d+ of annotated interactions is below 0\.5; are z0 and z1 swapped\?$"
    ):
        calibrate(match_log_odds(itm[..., ::-1]), present)
    with pytest.raises(UserError, match=r"below 0\.5"):
        calibrate(itm[..., 0].astype(np.float32), present)  # the logit that the released code reads


def test_calibration_takes_the_candidates_and_leaves_out_what_was_not_asked():
    itm, present = logits(1)
    log_odds = match_log_odds(itm)
    log_odds[::3, 1] = np.nan
    candidate = same_object(present, VOCABULARY.hois)
    assert (candidate.sum(1) == 3).all()
    assert (candidate | ~present).all()
    platt = calibrate(log_odds, present, candidate)
    assert platt.entries == int((candidate & ~np.isnan(log_odds)).sum())
    assert calibrate(log_odds, present).entries == int((~np.isnan(log_odds)).sum())
    with pytest.raises(UserError, match="itm of the toy: calibration needs present and absent"):
        calibrate(log_odds, np.zeros_like(present), what="itm of the toy")


def test_a_teacher_that_knows_objects_only_has_no_verb_signal():
    _, present = logits(2)
    same = same_object(present, VOCABULARY.hois)
    noise = np.random.default_rng(0).normal(0, 0.01, present.shape)
    assert check_orientation(same + noise, present) > 0.75
    assert verb_auc(same + noise, present, VOCABULARY.hois) == pytest.approx(0.5, abs=0.08)
    assert verb_auc(present + noise, present, VOCABULARY.hois) == 1
    assert np.isnan(verb_auc(noise, np.zeros_like(present), VOCABULARY.hois))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30))
def test_grouped_auc_is_the_share_of_ordered_pairs(entries):
    group, score, positive = (np.array(column) for column in zip(*entries, strict=True)) if entries else ([], [], [])
    shares = []
    for wanted in set(np.asarray(group).tolist()):
        inside = group == wanted
        up, down = score[inside & positive], score[inside & ~positive]
        if len(up) and len(down):
            shares.append(((up[:, None] > down) + 0.5 * (up[:, None] == down)).mean())
    found = grouped_auc(np.array(score, float), np.array(positive, bool), np.array(group, np.int64))
    np.testing.assert_allclose(found, np.mean(shares) if shares else np.nan)


def test_each_sentences_mean_is_over_what_was_asked():
    log_odds = np.array([[1, 2, np.nan], [3, np.nan, np.nan], [100, 100, 100]], np.float16)
    np.testing.assert_array_equal(sentence_mean(log_odds, np.array([0, 1])), [2, 2, 0])


def test_annotated_classes_are_those_of_the_pairs():
    toy = Toy(20, 3)
    present = annotated_classes(toy.annotations, COLUMNS)
    expected = np.zeros_like(present)
    expected[np.arange(20), toy.hoi] = COLUMNS.column[toy.hoi] >= 0
    assert np.array_equal(present, expected)
    assert 0 < present.sum() < 20
    all_of_them = replace(toy.annotations, image_hois=np.ones((20, len(VOCABULARY)), bool))
    assert (annotated_classes(all_of_them, COLUMNS) == (COLUMNS.column >= 0)).all()
