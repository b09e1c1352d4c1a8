"""Answers about pairs reach the pairs that they are about, calibrated without their own label, in every network of pairs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from hoi_distill.stages.ops.instances import order_without_scores, whole_pixels
from hoi_distill.stages.student.calibration import (
    ALL,
    FOLDS,
    VerbPlatt,
    cross_fitted,
    fit_verb_platt,
)
from hoi_distill.stages.student.data import valid_classes
from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.cl_hoi.train import train as train_cl_hoi
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.method import LinkMethod
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.train import train as train_pair_classifier
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, TableMaps
from hoi_distill.stages.student.pairs.prepare import image_table
from hoi_distill.stages.student.pairs.supervision.config import PairAnswerConfig
from hoi_distill.stages.student.pairs.supervision.pair_answers import (
    calibration_entries,
    controlled,
    pair_answer_term,
    read_answers,
)
from hoi_distill.stages.student.pairs.terms import PairOutput, Predictions, Supervision
from hoi_distill.storage.errors import UserError
from tests.fixtures import toy_cl_hoi
from tests.fixtures.toy_link import link_config, trained
from tests.fixtures.toy_pairs import with_pair_answers
from tests.fixtures.toy_student import VOCABULARY, Toy, weights

OWN = PairAnswerConfig(images="both", calibrated=False, weight=1.0)
CONFIG = PairClassifierConfig(labelled_per_step=6, unlabelled_per_step=8)
H = len(VOCABULARY)


@pytest.fixture(scope="module")
def toy():
    """Detection scores put the instances of an image in another order than their boxes do."""
    toy = Toy(40, 0)
    for row, cell in enumerate(toy.detections):
        if row % 2 and len(cell["labels"]) == 3:
            cell["scores"] = [0.6, 0.8, 0.95]
    return toy


@pytest.fixture(scope="module")
def data(toy):
    return with_pair_answers(toy.training_set(16), toy)


def read(data, config=OWN, folder=None):
    """The images, the term, and its batch of the first step."""
    images = image_table(None, data.source, CONFIG, data)
    term, fit = pair_answer_term(config, folder, data, images)
    valid = torch.from_numpy(valid_classes(VOCABULARY))
    pools = Pools.of(images, data.labelled, unlabelled=True)
    batch = PairBatches(CONFIG, pools, images, TableMaps.of(data.source, ("original",)), Supervision([term], valid))[0]
    return images, term, batch, fit


def shown(data, images, row, pair, hoi):
    return [pair, hoi] in images_with_all(data, images, row)


def images_with_all(data, images, row):
    """(pair, interaction) of all annotations of a row, labelled or not."""
    told = replace(data, labelled=np.ones_like(data.labelled))
    return image_table(None, data.source, CONFIG, told)[row].positives.tolist()


def test_an_answer_stands_at_the_pair_that_it_is_about(tmp_path, data):
    images = image_table(None, data.source, CONFIG, replace(data, labelled=np.ones_like(data.labelled)))
    table = read_answers(tmp_path / "answers", data, images)
    by_box = [order_without_scores(whole_pixels(images[row].boxes), images[row].labels) for row in range(40)]
    assert any((np.diff(order) < 0).any() for order in by_box), "somebody's order by score is another one"
    yes = table.log_odds > 0
    assert yes.any()
    assert (~yes).any()
    for row in range(40):
        keys = table.keys[table.offsets[row] : table.offsets[row + 1]]
        told = yes[table.offsets[row] : table.offsets[row + 1]]
        assert (np.diff(keys) > 0).all()
        positives = {pair * H + hoi for pair, hoi in images[row].positives.tolist()}
        assert set(keys[told].tolist()) == {
            key for key in positives if VOCABULARY.hoi_name(key % H)[0] != "no_interaction"
        }


def test_a_batch_has_the_answers_about_its_candidates_and_on_labelled_images_only_where_no_label_stands(tmp_path, data):
    images, _, batch, _ = read(data, folder=tmp_path)
    targets, candidates = batch.targets["pair_answers"], batch.candidates
    told = dict(zip(targets.positions.tolist(), targets.probability.tolist(), strict=True))
    first = np.cumsum([0, *(len(images[row].pairs) for row in batch.rows.tolist())])
    seen = {True: 0, False: 0}
    for place, (pair, hoi, image) in enumerate(
        zip(candidates.pair.tolist(), candidates.hoi.tolist(), candidates.image.tolist(), strict=True)
    ):
        row = int(batch.rows[image])
        true = shown(data, images, row, pair - int(first[image]), hoi)
        silent = VOCABULARY.hoi_name(hoi)[0] == "no_interaction" or (data.labelled[row] and true)
        assert (place in told) == (not silent)
        if not silent:
            assert told[place] == pytest.approx(expit(4.0 if true else -4.0), abs=1e-5)
            seen[bool(data.labelled[row])] += 1
    assert all(seen.values())
    torch.testing.assert_close(targets.weight, candidates.prior[targets.positions])


@pytest.mark.parametrize("images", ["labelled", "unlabelled"])
def test_only_the_chosen_images_are_distilled_on(tmp_path, data, images):
    _, _, batch, _ = read(data, replace(OWN, images=images), tmp_path)
    rows = batch.rows[batch.candidates.image[batch.targets["pair_answers"].positions]].numpy()
    assert set(data.labelled[rows].tolist()) == {images == "labelled"}


def test_the_loss_is_the_mean_divergence_and_0_where_the_student_agrees(tmp_path, data):
    _, term, batch, _ = read(data, replace(OWN, weight=0.5, prior_power=2.0, ramp=4), tmp_path)
    targets, candidates = batch.targets["pair_answers"], batch.candidates
    pairs = len(batch.regions.pairs)
    logits = torch.randn(2, pairs, H, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (loss,) = term.losses(Predictions(PairOutput(logits), batch.regions, candidates), targets, 1)
    assert (loss.name, loss.weight) == ("pair_answers", 0.25)
    s = torch.sigmoid(logits[-1, candidates.pair, candidates.hoi][targets.positions]).double()
    t = targets.probability.double()
    by_hand = t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()
    by_hand = (candidates.prior[targets.positions].double() ** 2 * by_hand).mean()
    assert loss.value.item() == pytest.approx(by_hand.item(), rel=1e-5)
    loss.value.backward()
    assert (logits.grad[0] == 0).all(), "the last layer is the answer"
    agreed = torch.zeros(1, pairs, H)
    agreed[0, candidates.pair[targets.positions], candidates.hoi[targets.positions]] = torch.logit(targets.probability)
    (loss,) = term.losses(Predictions(PairOutput(agreed), batch.regions, candidates), targets, 9)
    assert loss.weight == 0.5
    assert float(loss.value) == pytest.approx(0, abs=1e-6)


def test_answers_about_other_boxes_are_refused(tmp_path, data):
    boxes = [dict(cell) for cell in data.source.tables["instances"]["value"]]
    boxes[3] = {**boxes[3], "boxes": np.asarray(boxes[3]["boxes"]) + 1}
    other = replace(data, source=type(data.source)({**data.source.tables, "instances": {"value": boxes}}))
    images = image_table(None, data.source, CONFIG, data)
    with pytest.raises(
        UserError, match=r"image image 3: the boxes of table instances are not those .* score_threshold"
    ):
        read_answers(tmp_path / "answers", other, images)
    assert not (tmp_path / "answers").exists()


def test_an_image_that_the_teacher_failed_on_has_no_answers_and_the_others_keep_theirs(tmp_path, data):
    tables = data.source.tables
    boxes = [None if row == 5 else cell for row, cell in enumerate(tables["instances"]["value"])]
    failed = replace(data, source=type(data.source)({**tables, "instances": {"value": boxes}}))
    images = image_table(None, data.source, CONFIG, data)
    whole, table = read_answers(tmp_path / "whole", data, images), read_answers(tmp_path / "failed", failed, images)
    own = (whole.row() == 5).sum()
    assert own
    assert len(table.keys) == len(whole.keys) - own
    np.testing.assert_array_equal(table.log_odds, whole.log_odds[whole.row() != 5])


def test_calibration_finds_the_scale_and_each_verbs_offset_and_keeps_rare_verbs_near_the_others():
    random = np.random.default_rng(0)
    verb = np.repeat([0, 1, 2], [4000, 4000, 6])
    m = random.normal(0, 2, len(verb))
    present = random.random(len(verb)) < expit(0.7 * m - 1 + np.array([0.8, -0.8, 3.0])[verb])
    present[-6:] = True
    fit = fit_verb_platt(m, verb, present, 4)
    assert fit.slope == pytest.approx(0.7, abs=0.06)
    assert (fit.bias + fit.offset)[:2] == pytest.approx([-0.2, -1.8], abs=0.15)
    assert 0.3 < fit.offset[2] < 2.0
    assert fit.offset[3] == 0
    assert fit(np.array([1.0]), np.array([3]))[0] == pytest.approx(expit(fit.slope + fit.bias))
    alone = fit_verb_platt(m, verb, np.ones(len(m), bool), 4)
    assert (alone.slope, alone.bias, alone.entries) == (1.0, 0.0, 0)


def test_no_target_has_seen_its_own_label():
    random = np.random.default_rng(1)
    m, verb, fold = random.normal(size=200), np.zeros(200, int), np.arange(200) % FOLDS
    present = random.random(200) < expit(m)
    before = cross_fitted(m, verb, present, fold, 1)
    after = cross_fitted(m, verb, np.where(fold == 2, ~present, present), fold, 1)
    assert before[2].slope == after[2].slope
    assert all(before[number].slope != after[number].slope for number in (0, 1, 3, 4, ALL))


def test_calibration_reads_annotated_people_of_labelled_images_alone(tmp_path, data):
    images = image_table(None, data.source, CONFIG, data)
    table = read_answers(tmp_path / "answers", data, images)
    row = table.row()
    entry, present = calibration_entries(table, row, data, images)
    assert data.labelled[row[entry]].all()
    told = np.asarray(table.log_odds)[entry] > 0
    np.testing.assert_array_equal(told, present)
    bystanders = sum(len(images[at].labels) == 3 for at in range(16))
    assert bystanders
    everybody = int(data.labelled[row].sum())
    assert len(entry) < everybody
    _, term, _, fit = read(data, replace(OWN, calibrated=True), tmp_path)
    assert fit.entries == len(entry)
    assert fit.positives == present.sum()
    unlabelled = ~data.labelled[row]
    verb = VOCABULARY.hois[np.asarray(table.keys) % H, 0]
    np.testing.assert_allclose(
        term.probability[unlabelled], fit(np.asarray(table.log_odds)[unlabelled], verb[unlabelled]), rtol=1e-6
    )


def test_what_cannot_be_calibrated_is_told(tmp_path, toy):
    nobody = with_pair_answers(toy.training_set(0), toy)
    with pytest.raises(
        UserError, match=r"pair_answers\.calibrated: no labelled image has an answer .* calibrated: false"
    ):
        read(nobody, PairAnswerConfig(images="unlabelled"), tmp_path)


def test_controls_keep_what_is_said_of_an_image_and_lose_which_pair_it_is_about():
    log_odds, hoi = np.float32([1, 2, 3, 4, 5, 9]), np.array([7, 7, 7, 7, 7, 8])
    assert controlled(log_odds, hoi, "own", 0) is log_odds
    assert controlled(log_odds, hoi, "mean", 0).tolist() == [3, 3, 3, 3, 3, 9]
    permuted = controlled(log_odds, hoi, "permuted", 0)
    assert sorted(permuted[:5].tolist()) == [1, 2, 3, 4, 5]
    assert permuted[5] == 9
    assert permuted.tolist() != log_odds.tolist()
    np.testing.assert_array_equal(permuted, controlled(log_odds, hoi, "permuted", 0))
    assert len({tuple(controlled(log_odds, hoi, "permuted", row).tolist()) for row in range(9)}) > 4


def quiet(line: str) -> None: ...


def train_link(folder, toy, answers, labelled=16, **changes):
    data = with_pair_answers(toy.training_set(labelled), toy)
    trained(link_config(pair_answers=answers, **changes), data, folder)


def train_pairs(folder, toy, answers):
    config = PairClassifierConfig(
        width=16, steps=6, warmup_steps=2, labelled_per_step=6, unlabelled_per_step=8, itm_on="none", log_every=2,
        pair_answers=answers,
    )  # fmt: skip
    train_pair_classifier(config, with_pair_answers(toy.training_set(16), toy), folder, Extras(report=quiet))


def train_cl(folder, toy, answers):
    world = toy_cl_hoi.LabelledToy(40, 0)
    data = with_pair_answers(world.teacher_set(), world)
    config = replace(toy_cl_hoi.CONFIG, pair_answers=replace(answers, calibrated=False))
    train_cl_hoi(config, data, folder, Extras(text_embeddings=toy_cl_hoi.TEXT, report=quiet))


@pytest.mark.parametrize("train", [train_link, train_pairs, train_cl])
def test_every_network_takes_the_term_and_a_weight_of_0_is_the_plain_training_bit_for_bit(tmp_path, toy, train):
    answers = PairAnswerConfig(images="unlabelled", weight=0.7)
    for name, given in {
        "plain": PairAnswerConfig(), "with": answers, "weightless": replace(answers, weight=0.0),
    }.items():  # fmt: skip
        train(tmp_path / name, toy, given)
    assert weights(tmp_path / "weightless") == weights(tmp_path / "plain") != weights(tmp_path / "with")
    last = json.loads((tmp_path / "with" / "metrics.jsonl").read_text().splitlines()[-2 if train is train_cl else -1])
    assert last["loss/pair_answers"] > 0
    kept = {path.name for path in (tmp_path / "with/state").iterdir()}
    assert {"pair_answers", "pictures"} <= kept, "what others keep there stays"


def test_a_student_learns_from_answers_alone(tmp_path, toy):
    train_link(tmp_path, toy, replace(OWN, images="unlabelled"), labelled=0, steps=30, log_every=1)
    log = [json.loads(line)["loss/pair_answers"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(log[-5:]) < 0.7 * np.mean(log[:5])


def test_the_keys_say_what_is_read_and_what_does_not_go_together():
    answers = PairAnswerConfig(images="unlabelled")
    needs = LinkMethod().needs(link_config(pair_answers=answers), VOCABULARY)
    assert needs.train["instances"] == ("value",)
    assert needs.train["pair_answers"] == tuple(VOCABULARY.pair_questions())
    assert "pair_answers" in needs.where_asked
    assert needs.unlabelled
    assert not needs.unlabelled_suffice
    own = link_config(pair_answers=replace(answers, calibrated=False))
    assert LinkMethod().needs(own, VOCABULARY).unlabelled_suffice
    assert LinkMethod().distilled(own, 500, 3500) == {"pair_answers.images: unlabelled": 3500}
    assert not {"instances", "pair_answers"} & set(LinkMethod().needs(LinkConfig(), VOCABULARY).train)
    with pytest.raises(ValueError, match=r"box_jitter: 0\.1 moves the boxes that the teacher was asked about"):
        link_config(pair_answers=answers, box_jitter=0.1)
    with pytest.raises(ValueError, match="pair_answers: no image of this method is labelled"):
        replace(toy_cl_hoi.CONFIG, pair_answers=answers)


def test_the_teachers_own_probability_is_that_of_yes_against_no():
    assert VerbPlatt.none(3)(np.array([0.0, 2.0]), np.array([0, 2])) == pytest.approx([0.5, expit(2.0)])
