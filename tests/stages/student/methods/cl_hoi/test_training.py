"""A whole training in the CL-HOI style: no manual label reaches it, it resumes exactly, each switch does what it says."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.stages.student.data import valid_classes
from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.cl_hoi import train as training
from hoi_distill.stages.student.methods.cl_hoi.cognition import ClHoiShape
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.methods.cl_hoi.exponents import Exponents
from hoi_distill.stages.student.methods.cl_hoi.student import ClHoiStudent, build
from hoi_distill.stages.student.methods.cl_hoi.train import train
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, TableMaps
from hoi_distill.stages.student.pairs.instances import gather, image_of
from hoi_distill.stages.student.pairs.prepare import image_table
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.image_label_losses import (
    ImageLabelBatch,
    mil_loss,
    phrase_loss,
    relatedness_loss,
)
from hoi_distill.stages.student.pairs.supervision.image_labels import ImageLabelTerm, teacher_labels
from hoi_distill.stages.student.pairs.terms import Supervision, TextSpace
from hoi_distill.stages.student.pairs.training import TermLoss
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.stages.student.training.loop import Step
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_cl_hoi import CONFIG, TEXT, LabelledToy
from tests.fixtures.toy_student import CHANNELS, VOCABULARY, Toy, weights


def quiet(_: str) -> None: ...


def trained(config: ClHoiConfig, data, folder: Path, **extras) -> ClHoiStudent:
    return train(config, data, folder, Extras(text_embeddings=TEXT, **extras, report=quiet))


def with_network(config: ClHoiConfig = CONFIG, **switches) -> ClHoiConfig:
    return replace(config, network=replace(config.network, **switches))


def with_losses(config: ClHoiConfig = CONFIG, **weights) -> ClHoiConfig:
    return replace(config, losses=replace(config.losses, **weights))


@pytest.fixture(scope="module")
def undisturbed(world: LabelledToy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    trained(CONFIG, world.teacher_set(), folder)
    return folder


def poisoned(world: LabelledToy):
    """Annotations of the same images that say something else of each, as wholes and in pairs."""
    own = world.annotations
    order = np.random.default_rng(5).permutation(len(own))
    return replace(
        own,
        hoi=own.hoi[order], verb=own.verb[order], object=own.object[order],
        human_box=own.object_box[order], object_box=own.human_box[order] + 7,
        image_hois=np.random.default_rng(6).random((len(own), len(VOCABULARY))) < 0.5,
    )  # fmt: skip


def test_poisoned_annotations_change_no_bit(world, undisturbed, tmp_path):
    trained(CONFIG, world.teacher_set(poisoned(world)), tmp_path)
    assert weights(tmp_path) == weights(undisturbed)
    assert (tmp_path / "exponents.json").read_bytes() == (undisturbed / "exponents.json").read_bytes()


@pytest.mark.parametrize("labels", ["ground_truth", "instances"])
def test_controls_do_read_annotations(world, tmp_path, labels):
    """The poison test would find out: it is poison to those who take it."""
    config = replace(CONFIG, labels=labels)
    trained(config, world.teacher_set(), tmp_path / "own")
    trained(config, world.teacher_set(poisoned(world)), tmp_path / "poisoned")
    assert weights(tmp_path / "own") != weights(tmp_path / "poisoned")


class Interrupt(threading.Event):
    """Set from the n-th time it is asked on."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def is_set(self) -> bool:
        self.after -= 1
        return self.after < 0


def test_a_run_killed_in_either_stage_ends_as_an_undisturbed_one(world, undisturbed, tmp_path):
    for after in (3, 1, 2, 2):  # stage 1 has 6 steps, stage 2 has 8
        with pytest.raises(KeyboardInterrupt):
            trained(CONFIG, world.teacher_set(), tmp_path, stop=Interrupt(after))
    trained(CONFIG, world.teacher_set(), tmp_path)
    assert weights(tmp_path) == weights(undisturbed)
    for log in ("metrics.jsonl", "context/metrics.jsonl"):
        ours, theirs = (
            [{**json.loads(line), "seconds": 0} for line in (folder / log).read_text().splitlines()]
            for folder in (tmp_path, undisturbed)
        )
        assert ours == theirs
        assert ours


def test_a_run_killed_without_warning_repeats_what_was_not_saved(world, undisturbed, tmp_path, monkeypatch):
    losses, calls = ImageLabelTerm.losses, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 6:
            raise MemoryError
        return losses(*args)

    monkeypatch.setattr(ImageLabelTerm, "losses", dies)
    with pytest.raises(MemoryError):
        trained(CONFIG, world.teacher_set(), tmp_path)
    monkeypatch.undo()
    trained(CONFIG, world.teacher_set(), tmp_path)
    assert weights(tmp_path) == weights(undisturbed)


def test_the_translator_is_shared_by_arms_that_differ_in_stage_2_alone(world, undisturbed, tmp_path):
    shared = tmp_path / "shared"
    data = replace(world.teacher_set(), values={"features": "f", "context": "c", "labels": "l"})
    trained(CONFIG, data, tmp_path / "first", shared_dir=shared)
    (translator,) = shared.glob("translator-*.safetensors")
    arms = (with_losses(mil=0.0), with_network(interactiveness=False), replace(CONFIG, steps=4, bridge="copy"))
    for number, config in enumerate(arms):
        trained(config, replace(data, identity=f"arm {number}"), tmp_path / str(number), shared_dir=shared)
        assert not (tmp_path / str(number) / "context" / "metrics.jsonl").exists()
    assert list(shared.glob("translator-*")) == [translator]
    assert weights(tmp_path / "first") == weights(undisturbed)
    other = replace(CONFIG, context_stage=replace(CONFIG.context_stage, learning_rate=1e-3))
    trained(other, data, tmp_path / "other", shared_dir=shared)
    trained(CONFIG, replace(data, values={**data.values, "context": "d"}), tmp_path / "text", shared_dir=shared)
    assert len(list(shared.glob("translator-*"))) == 3


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def test_stage_2_leaves_a_frozen_translator_as_stage_1_left_it(undisturbed):
    (saved,) = (undisturbed / "context").glob("translator-*.safetensors")
    stage_1 = load_file(saved)
    ours = {name: value for name, value in tensors(undisturbed).items() if name.startswith("translator.")}
    assert ours
    for name, value in ours.items():
        assert torch.equal(value, stage_1[name])


def test_a_translator_with_a_rate_goes_on_learning(world, undisturbed, tmp_path):
    trained(replace(CONFIG, translator_rate=0.1), world.teacher_set(), tmp_path)
    ours, frozen = tensors(tmp_path), tensors(undisturbed)
    assert not torch.equal(ours["translator.queries"], frozen["translator.queries"])


def test_distil_off_there_is_no_stage_1_and_no_text_is_read(world, tmp_path):
    data = world.teacher_set(context={"value": [None] * len(world.hoi)})
    trained(replace(CONFIG, distil=False), data, tmp_path)
    assert not (tmp_path / "context").exists()
    assert "translator.queries" in tensors(tmp_path)


def test_context_off_there_is_no_translator(world, tmp_path):
    trained(with_network(context=False), world.teacher_set(), tmp_path)
    assert not (tmp_path / "context").exists()
    assert not any(name.startswith("translator") for name in tensors(tmp_path))


def terms_of(folder: Path) -> set[str]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {name for line in lines for name in line if name.startswith("loss/")}


def test_each_loss_has_its_own_switch(world, undisturbed, tmp_path):
    assert terms_of(undisturbed) == {"loss/contrastive", "loss/mil", "loss/relatedness"}
    arms = {
        "no mil": (with_losses(mil=0.0), {"loss/contrastive", "loss/relatedness"}),
        "purist": (with_losses(mil=0.0, relatedness=0.0), {"loss/contrastive"}),
        "no r": (with_network(interactiveness=False), {"loss/contrastive", "loss/mil"}),
        "copy": (replace(CONFIG, bridge="copy"), {"loss/pairs"}),
        "instances": (replace(CONFIG, labels="instances"), {"loss/pairs"}),
    }
    for name, (config, terms) in arms.items():
        trained(replace(config, distil=False, steps=2), world.teacher_set(), tmp_path / name)
        assert terms_of(tmp_path / name) == terms, name


def test_exponents_are_chosen_on_held_out_images_by_the_teachers_labels(world, undisturbed, tmp_path):
    record = json.loads((undisturbed / "exponents.json").read_text())
    assert len(record["tried"]) == 4
    assert (record["gamma"], record["power"]) in {(g, p) for g, p, _ in record["tried"]}
    assert record["pictures"] == 6  # a quarter of 24
    checkpoint = json.loads((undisturbed / "checkpoint" / "config.json").read_text())
    assert checkpoint["exponents"] == record
    logged = json.loads((undisturbed / "metrics.jsonl").read_text().splitlines()[-1])
    assert (logged["exponents/gamma"], logged["exponents/lambda"]) == (record["gamma"], record["power"])
    given = replace(CONFIG, gammas=(0.7,), lambdas=(1.5,), distil=False, steps=2)
    made = trained(given, world.teacher_set(), tmp_path)
    assert (made.exponents.gamma, made.exponents.power, made.exponents.tried) == (0.7, 1.5, ())


def test_held_out_images_are_not_trained_on(world, undisturbed, tmp_path):
    """Other labels of theirs may choose other exponents, and change no weight."""
    usable = np.ones(len(world.hoi), bool)
    _, held_out = training.pools(CONFIG, usable)
    cells = list(world.tables["labels"]["value"])
    for row in held_out.tolist():
        cells[row] = {**cells[row], "kind": -np.ones_like(cells[row]["kind"])}
    trained(CONFIG, world.teacher_set(labels={"value": cells}), tmp_path)
    assert weights(tmp_path) == weights(undisturbed)


def test_a_saved_student_predicts_as_the_trained_one(world, undisturbed, tmp_path):
    import pyarrow.parquet as pq

    student = load_student(undisturbed / "checkpoint", VOCABULARY)
    assert isinstance(student, ClHoiStudent)
    assert student.config == CONFIG
    test = Toy(6, 9).test_set()
    once = trained(CONFIG, world.teacher_set(), tmp_path / "again").predict(test, tmp_path / "a", report=quiet)
    twice = student.predict(test, tmp_path / "b", report=quiet)
    assert pq.read_table(once) == pq.read_table(twice)
    assert len(pq.read_table(once))


def test_the_score_is_the_interactions_times_r_to_the_gamma_times_the_boxes_to_the_lambda(undisturbed, tmp_path):
    """sigmoid(z) r^gamma (s_h s_o)^lambda, of a student whose exponents are neither 0 nor 1 nor the configuration's."""
    import pyarrow.parquet as pq

    student, toy = load_student(undisturbed / "checkpoint", VOCABULARY), Toy(6, 9)
    student = replace(student, exponents=Exponents(0.6, 1.7))
    found = pq.read_table(student.predict(toy.test_set(), tmp_path, report=quiet)).to_pylist()
    for number in range(6):
        regions = gather([image_of(toy.detections[number], CONFIG)], torch.from_numpy(toy.maps[number][None]))
        with torch.inference_mode():
            said = student.model.eval()(regions)
            candidates = candidates_of(regions, torch.from_numpy(valid_classes(VOCABULARY)))
        pair, hoi = candidates.pair, candidates.hoi
        boxes = regions.scores[regions.pairs].prod(1)
        score = said.logits.sigmoid()[pair, hoi] * (0.6 * said.log_r).exp()[pair] * boxes[pair] ** 1.7
        written = [row["score"] for row in found if row["image_id"] == f"image {number}"]
        assert written == pytest.approx(score.tolist(), rel=1e-4)
        assert len(set(boxes.tolist())) > 1 or len(regions.pairs) == 1
    assert len(found) > 12


@pytest.mark.parametrize("weights", [(1.0, 1.0, 0.1), (0.5, 2.0, 0.7)])
def test_stage_2_sums_its_losses_by_their_weights(world, tmp_path, weights):
    contrastive, mil, relatedness = weights
    config = with_losses(contrastive=contrastive, mil=mil, relatedness=relatedness)
    data = world.teacher_set()
    images, labels = image_table(tmp_path / "p", data.source, config), teacher_labels(tmp_path / "l", data)
    pool = np.flatnonzero(images.usable() & labels.known)
    terms, maps = [training.term_of(config, labels, data)], TableMaps.of(data.source, config.views)
    valid = torch.from_numpy(data.valid())
    batch = PairBatches(config, Pools(np.empty(0, np.int64), pool), images, maps, Supervision(terms, valid))[1]
    torch.manual_seed(0)
    student = build(ClHoiShape(CHANNELS, 12, 12), config, VOCABULARY, torch.from_numpy(TEXT)).eval()
    learner = training.InteractionLearner(student, 0.07)
    loss, _ = TermLoss(terms)(learner, batch, Step(0))
    said, regions = student(batch.regions), batch.regions
    candidates = candidates_of(regions, valid)
    logit = said.logits[candidates.pair, candidates.hoi]
    trust = said.log_r + regions.scores[regions.pairs].prod(1).log()
    known: ImageLabelBatch = batch.targets["image_labels"]
    temperature = torch.tensor(0.07)
    of_phrases = phrase_loss(
        TextSpace(said.embeddings, said.classes, temperature.log()), candidates, known,
        log_trust=trust, temperature=temperature, attention_temperature=0.1,
    )  # fmt: skip
    of_images = mil_loss(logit, said.log_r, candidates, known, alpha=0.25, gamma=2.0)
    of_r = relatedness_loss(logit, said.log_r, candidates, known)
    assert min(of_phrases.item(), of_images.item(), of_r.item()) > 0.01
    expected = contrastive * of_phrases + mil * of_images + relatedness * of_r
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_stage_1_adds_the_global_and_the_late_contrast(undisturbed):
    records = [json.loads(line) for line in (undisturbed / "context/metrics.jsonl").read_text().splitlines()]
    for record in records:
        assert record["loss"] == pytest.approx(record["loss/global"] + record["loss/late"], rel=1e-5)
        assert min(record["loss/global"], record["loss/late"]) > 0


def test_held_out_images_are_drawn_from_all_over():
    """A dataset's images often stand in an order; its last ones would be no sample."""
    _, held_out = training.pools(CONFIG, np.ones(400, bool))
    assert len(held_out) == 100
    assert held_out.min() < 40
    assert held_out.max() > 360


def test_it_learns_which_pair_does_what(tmp_path):
    """From labels of whole images to the right pair of an image with a bystander."""
    config = replace(
        with_network(layers=1, width=32, dropout=0.0), distil=False, steps=120, unlabelled_per_step=12, save_every=200,
        gammas=(1.0,), lambdas=(1.0,),
    )  # fmt: skip
    student = trained(config, LabelledToy(80, 1).teacher_set(), tmp_path)
    import pyarrow.parquet as pq

    toy = Toy(40, 2)
    found = pq.read_table(student.predict(toy.test_set(), tmp_path, report=quiet)).to_pylist()
    best: dict[str, dict] = {}
    for row in found:
        if row["object"] != 0 and row["score"] > best.get(row["image_id"], {"score": -1})["score"]:
            best[row["image_id"]] = row
    right = [best[f"image {n}"]["hoi"] == hoi for n, hoi in enumerate(toy.hoi.tolist())]
    assert np.mean(right) > 0.8


def test_without_text_embeddings_it_says_what_is_missing(world, tmp_path):
    with pytest.raises(UserError, match=r"student.tables.text"):
        train(CONFIG, world.teacher_set(), tmp_path, Extras(report=quiet))


def test_a_single_image_is_too_few_to_hold_any_out(world, tmp_path):
    with pytest.raises(UserError, match="held_out"):
        trained(replace(CONFIG, held_out=0.01), world.teacher_set(), tmp_path)


def test_configurations_survive_json():
    assert ClHoiConfig(**json.loads(json.dumps(training.asdict(CONFIG)))) == CONFIG


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"held_out": 0.0}, "student.held_out"),
        ({"gammas": ()}, "student.gammas"),
        ({"lambdas": (-1.0,)}, "student.lambdas"),
        ({"translator_rate": -1.0}, "student.translator_rate"),
    ],
)
def test_unsound_configurations_are_refused(changed, said):
    with pytest.raises(UserError, match=said):
        read_section({"method": "cl_hoi", "labelled": 0, **changed}, "student.")
