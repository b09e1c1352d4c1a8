"""Training LINK: exact resume, the plain training where nothing is distilled, and classes that training may not see."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from hoi_distill.stages.student.data import valid_classes
from hoi_distill.stages.student.methods.link.train import terms_of
from hoi_distill.stages.student.pairs.batches import PairBatch
from hoi_distill.stages.student.pairs.instances import ImageInstances, gather, image_of, targets
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.annotations import PairTargets
from hoi_distill.stages.student.pairs.supervision.config import KdConfig
from hoi_distill.stages.student.pairs.terms import PairOutput, Term, WeightedLoss
from hoi_distill.stages.student.pairs.training import TermLoss
from hoi_distill.stages.student.training.loop import Step
from hoi_distill.stages.student.training.metrics import NonFiniteLoss
from hoi_distill.stages.student.training.resume import save_state
from tests.fixtures.toy_link import ALL_LEVELS, MAPS, NETWORK, PAIRS, TEXT, link_config, trained, with_teacher
from tests.fixtures.toy_student import CHANNELS, SIDE, VOCABULARY, Toy, weights

VALID = torch.from_numpy(valid_classes(VOCABULARY))
SEEN = torch.ones(len(VOCABULARY), dtype=torch.bool)
LEVELS = ["loss/kd_logit", "loss/kd_query", "loss/kd_map"]


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, toy):
    config = link_config(steps=30, learning_rate=3e-3, seed=5, network=replace(NETWORK, width=24, pair_width=32))
    return trained(config, toy.training_set(16), tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def data(toy, teacher):
    return with_teacher(toy.training_set(16), toy, teacher)


def test_without_weights_it_is_the_plain_training_bit_for_bit(tmp_path, toy, data):
    plain = trained(link_config(), toy.training_set(16), tmp_path / "plain")  # there is no teacher's table to open
    weightless = replace(ALL_LEVELS, logit=0.0, query=0.0, map=0.0, unlabelled=True)
    trained(link_config(kd=weightless), toy.training_set(16), tmp_path / "weightless")
    trained(link_config(kd=ALL_LEVELS), data, tmp_path / "distilled")
    assert weights(tmp_path / "plain") == weights(tmp_path / "weightless") != weights(tmp_path / "distilled")
    assert not plain.model.training
    assert set(records(tmp_path / "plain")[-1]) == {"step", "epoch", "loss", "loss/pairs", "lr", "seconds"}


@pytest.mark.parametrize("level", range(3))
def test_each_level_is_logged_by_name_and_falls(tmp_path, data, level):
    weights_ = {name: 0.5 * (level == place) for place, name in enumerate(("logit", "query", "map"))}
    config = link_config(kd=replace(ALL_LEVELS, **weights_), steps=30, learning_rate=3e-3, log_every=1)
    trained(config, data, tmp_path)
    log = records(tmp_path)
    assert [name for name in log[-1] if name.startswith("loss/kd")] == [LEVELS[level]]
    for record in log:
        assert record["loss"] == pytest.approx(record["loss/pairs"] + 0.5 * record[LEVELS[level]], rel=1e-4)
    assert np.mean([r[LEVELS[level]] for r in log[-5:]]) < 0.8 * np.mean([r[LEVELS[level]] for r in log[:5]])


def test_several_teachers_and_images_without_annotations_teach(tmp_path, toy, data, teacher):
    other = trained(link_config(seed=9, steps=3), toy.training_set(16), tmp_path / "other")
    second = with_teacher(toy.training_set(16), toy, other).source.tables
    source = replace(data.source, tables={**data.source.tables, "pairs2": second[PAIRS], "maps2": second[MAPS]})
    both = KdConfig((PAIRS, "pairs2"), (MAPS, "maps2"), 1.0, 1.0, 1.0, unlabelled=True)
    trained(link_config(kd=both), replace(data, source=source), tmp_path / "both")
    trained(link_config(kd=replace(ALL_LEVELS, unlabelled=True)), data, tmp_path / "one")
    assert weights(tmp_path / "both") != weights(tmp_path / "one")
    assert all(np.isfinite(record[name]) for record in records(tmp_path / "both") for name in LEVELS)


def test_labels_of_unlabelled_images_are_never_read(tmp_path, toy, data):
    other = Toy(40, 0)
    other.annotations.hoi[16:] = 0
    other.annotations.human_box[16:] = 0
    config = link_config(kd=replace(ALL_LEVELS, unlabelled=True))
    trained(config, data, tmp_path / "true")
    trained(config, replace(data, annotations=other.annotations), tmp_path / "changed")
    trained(link_config(kd=ALL_LEVELS), data, tmp_path / "labelled")
    assert weights(tmp_path / "true") == weights(tmp_path / "changed") != weights(tmp_path / "labelled")


def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, data, monkeypatch):
    config = link_config(kd=replace(ALL_LEVELS, unlabelled=True))
    trained(config, data, tmp_path / "whole")

    def save_and_stop(*saved, more):
        save_state(*saved, more=more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hoi_distill.stages.student.training.loop.save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            trained(config, data, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "checkpoint").exists()
    trained(config, data, tmp_path / "stopped")
    assert weights(tmp_path / "whole") == weights(tmp_path / "stopped")
    whole, stopped = (load_file(tmp_path / name / "state/latest.safetensors") for name in ("whole", "stopped"))
    assert any(name.startswith("optimizer.") for name in whole)
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert [r["loss"] for r in records(tmp_path / "whole")] == [r["loss"] for r in records(tmp_path / "stopped")]


def test_box_jitter_trains_on_other_boxes_and_the_same_ones_again(tmp_path, toy):
    for name, jitter in {"moved": 0.05, "again": 0.05, "still": 0.0}.items():
        trained(link_config(box_jitter=jitter), toy.training_set(16), tmp_path / name)
    assert weights(tmp_path / "moved") == weights(tmp_path / "again") != weights(tmp_path / "still")


def test_maps_can_be_distilled_while_boxes_jitter(tmp_path, data):
    trained(link_config(box_jitter=0.05, kd=replace(ALL_LEVELS, logit=0.0, query=0.0)), data, tmp_path)
    assert records(tmp_path)[-1]["loss/kd_map"] > 0


def pair_shown(image: ImageInstances) -> int:
    """The first pair of a person with a thing."""
    return int(image.labels[image.pairs[:, 1]].argmax())


def batch_of(toy: Toy, positives: bool) -> PairBatch:
    """Nobody, a person alone, and an image with pairs."""
    size = {"width": 64, "height": 64}
    box = [[5.0, 5, 30, 60]]
    config = link_config()
    images = [
        image_of({"boxes": box, "scores": [0.9], "labels": [1], **size}, config),
        image_of({"boxes": box, "scores": [0.9], "labels": [0], **size}, config),
        image_of(toy.detections[0], config),
    ]
    if positives:
        images[2] = replace(images[2], positives=np.array([[pair_shown(images[2]), toy.hoi[0]]], np.int32))
    maps = torch.zeros(3, CHANNELS, SIDE, SIDE)
    regions = gather(images, maps)
    candidates = candidates_of(regions, VALID)
    annotated = PairTargets.of(targets(images, len(VOCABULARY)), candidates, torch.ones(3, dtype=torch.bool))
    return PairBatch(torch.arange(3), regions, candidates, {"annotations": annotated})


def loss_of(toy: Toy) -> TermLoss:
    """The loss of a training on annotations alone."""
    return TermLoss(terms_of(link_config(), toy.training_set(16), VALID))


@pytest.mark.parametrize("last", [3, 2], ids=["no positive", "no pair"])
def test_batches_without_positives_or_pairs_have_a_finite_loss_and_gradient(toy, teacher, last):
    whole = batch_of(toy, positives=False)
    regions = gather([image_of({**toy.detections[0], "labels": [1, 1, 1][: len(toy.detections[0]["labels"])]},
                                 link_config())], whole.regions.maps[:1])  # fmt: skip
    candidates = candidates_of(regions, VALID)
    target = whole.targets["annotations"].target[:0]
    empty = {"annotations": PairTargets.of(target, candidates, torch.ones(1, dtype=torch.bool))}
    batch = whole if last == 3 else PairBatch(whole.rows[:1], regions, candidates, empty)
    model = teacher.model.train()
    loss, _ = loss_of(toy)(model, batch, Step(0))
    model.zero_grad()
    loss.backward()
    model.eval()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert (loss > 0) == (last == 3)


class Answers(torch.nn.Module):
    """A network whose logits are its parameters."""

    def __init__(self, pairs: int, layers: int = 2) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(layers, pairs, len(VOCABULARY)))

    def forward(self, regions) -> PairOutput:
        return PairOutput(self.logits)


def test_the_loss_averages_layers_and_counts_each_positive_once(toy):
    batch = batch_of(toy, positives=True)
    losses = []
    for layers in (1, 3):
        loss, terms = loss_of(toy)(Answers(len(batch.regions.pairs), layers), batch, Step(0))
        losses.append(loss.item())
        assert {name: value.item() for name, value in terms.items()} == {"loss/pairs": loss.item()}
    assert losses[0] == pytest.approx(losses[1])


def test_unseen_classes_and_set_aside_annotations_get_no_gradient(toy):
    batch = batch_of(toy, positives=True)
    hoi = int(toy.hoi[0])
    allowed = VALID[VOCABULARY.hois[hoi, 1]].nonzero().flatten().tolist()
    unseen, ignored = (other for other in allowed if other != hoi)
    target = batch.targets["annotations"].target
    pair = int(target.any(1).nonzero())
    target[pair, ignored] = torch.nan
    seen = SEEN.clone()
    seen[unseen] = False
    batch.candidates = candidates_of(batch.regions, VALID & seen)
    batch.targets["annotations"] = PairTargets.of(target, batch.candidates, torch.ones(3, dtype=torch.bool))
    model = Answers(len(target))
    loss_of(toy)(model, batch, Step(0))[0].backward()
    gradient = model.logits.grad[:, pair]
    assert not gradient[:, [unseen, ignored]].any()
    assert (gradient[:, hoi] < 0).all()


def test_unseen_classes_come_back_at_prediction(tmp_path, toy, data):
    unseen = np.arange(len(VOCABULARY)) == 1
    held_out = replace(data, unseen=unseen)
    student = trained(link_config(kd=ALL_LEVELS), held_out, tmp_path)
    found = pq.read_table(student.predict(toy.test_set(), tmp_path, report=lambda line: None))
    assert set(found["hoi"].to_pylist()) == set(range(len(VOCABULARY)))
    rows = student.model.classifier.rows
    start = torch.nn.functional.normalize(torch.from_numpy(TEXT))
    turned = torch.nn.functional.cosine_similarity(rows.detach(), start)
    assert turned[1] == pytest.approx(1, abs=1e-6)
    assert (turned[~torch.from_numpy(unseen)] < 1 - 1e-6).all()


def test_nan_stops_the_run_and_names_the_image(tmp_path):
    broken = Toy(40, 0)
    for view in ("original", "flip"):
        broken.tables["features"][view][7] = np.full_like(broken.maps[7], np.nan)
    with pytest.raises(NonFiniteLoss, match=r"step \d+: .*rows \[7\], image ids \['image 7'\]"):
        trained(link_config(), broken.training_set(16), tmp_path)


def test_terms_weighted_by_shares_pull_with_just_these(tmp_path, data):
    shares = replace(ALL_LEVELS, logit=0.4, query=0.2, map=0.1, weighting="share")
    trained(link_config(kd=shares, log_every=1), data, tmp_path / "shares")
    for record in records(tmp_path / "shares"):
        parts = [record[f"weight/kd_{name}"] * record[f"loss/kd_{name}"] for name in ("logit", "query", "map")]
        assert record["loss"] == pytest.approx(record["loss/pairs"] + sum(parts), rel=1e-4)
        for name, share in (("logit", 0.4), ("query", 0.2), ("map", 0.1)):
            assert record[f"gradient_ratio/kd_{name}"] == pytest.approx(share, rel=1e-4)


def test_shares_that_factors_amount_to_are_logged(tmp_path, data):
    for logit in (1.0, 2.0):
        trained(link_config(kd=replace(ALL_LEVELS, logit=logit), steps=1), data, tmp_path / f"{logit:g}")
    two, one = (records(tmp_path / name)[0] for name in ("2", "1"))
    assert "weight/kd_logit" not in one
    assert one["gradient_ratio/kd_logit"] > 0
    assert two["gradient_ratio/kd_logit"] == pytest.approx(2 * one["gradient_ratio/kd_logit"])
    assert all(two[f"gradient_ratio/kd_{name}"] == one[f"gradient_ratio/kd_{name}"] > 0 for name in ("query", "map"))


@pytest.mark.parametrize("divisor", [1.0, 100.0])
def test_a_share_does_not_know_what_a_loss_is_divided_by(toy, divisor):
    batch = batch_of(toy, positives=True)
    model = Answers(len(batch.regions.pairs))

    class Second(Term):
        name = "annotations"

        def targets(self, batch):
            return []

        def losses(self, predictions, targets, step):
            logits = predictions.output.logits
            return [
                WeightedLoss("main", 2.0, (3 * logits).sum()),
                WeightedLoss("second", 0.25, logits.sin().sum() / divisor, (logits,), share=True),
            ]

    with torch.no_grad():
        model.logits.copy_(torch.linspace(-1, 1, model.logits.numel()).view_as(model.logits))
    loss, values = TermLoss([Second()])(model, batch, Step(0))
    loss.backward()
    pulled = (model.logits.grad - 6).norm() / (6 * model.logits.numel() ** 0.5)
    assert pulled.item() == pytest.approx(0.25, rel=1e-4)
    assert values["gradient_ratio/second"].item() == pytest.approx(0.25, rel=1e-4)
