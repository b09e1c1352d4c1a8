"""A teacher answers as a student sees, and its answers reach a student's batch in the same order or not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.data import valid_classes
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.pair_teacher import PairTeacher
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.instances import gather, image_of
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.config import KdConfig
from hoi_distill.stages.student.pairs.supervision.dense_distillation import read_teacher_outputs
from hoi_distill.stages.student.pairs.supervision.dense_distillation_losses import Answered, distillation_losses
from hoi_distill.stages.student.pairs.terms import BatchImages, PairOutput
from hoi_distill.storage.errors import UserError
from tests.fixtures.link_scenes import SMALL
from tests.fixtures.toy_student import CHANNELS, VOCABULARY, Toy

VALID = torch.from_numpy(valid_classes(VOCABULARY))
SEEN = torch.ones(len(VOCABULARY.hois), dtype=torch.bool)
CONFIG = PairsConfig()
TABLES = ("teacher_pairs", "detections")


def network(seed: int = 0, **changes) -> Link:
    torch.manual_seed(seed)
    verb = torch.from_numpy(VOCABULARY.hois[:, 0].astype(np.int64))
    return Link(LinkShape(CHANNELS, None, replace(SMALL, heads=4, **changes)), verb).eval()


@pytest.fixture(scope="module")
def teacher() -> PairTeacher:
    return PairTeacher(network(), CONFIG, VALID)


@pytest.fixture(scope="module")
def scene():
    """Ordinary images, one with nothing detected, one with a single instance, one without people."""
    toy = Toy(5, 3)
    cells = [dict(cell) for cell in toy.detections]
    cells[1] = {"boxes": np.zeros((0, 4)), "scores": [], "labels": [], "width": 64, "height": 64}
    cells[2] = {name: value[:1] if name in ("boxes", "scores", "labels") else value for name, value in cells[2].items()}
    cells[3]["labels"] = [1] * len(cells[3]["labels"])
    images = [image_of(cell, CONFIG) for cell in cells]
    return cells, np.stack(toy.maps), images


def read(answers, images, regions, seen=SEEN, maps=True, valid=VALID):
    return read_teacher_outputs(
        [None if one is None else one.cell for one in answers],
        [None if one is None else one.latent.astype(np.float16) for one in answers] if maps else None,
        BatchImages(np.arange(len(images)), images, regions, candidates_of(regions, valid), []),
        valid,
        seen,
        names=[f"image {n}" for n in range(len(images))],
        tables=TABLES,
    )


def rounded(output: PairOutput) -> PairOutput:
    return PairOutput(*(value.half().float().requires_grad_() for value in output[:4]))


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_student_with_the_teachers_weights_has_nothing_to_learn(teacher, scene, mirrored):
    """Every term is exactly 0, so each value that was read back stands where the student's own does."""
    cells, maps, images = scene
    answers = teacher.answer(cells, maps, mirrored)
    regions = gather(images, torch.from_numpy(maps), np.full(len(images), mirrored))
    taught = read(answers, images, regions)
    with torch.no_grad():
        student = rounded(teacher.model(regions))
    candidates = candidates_of(regions, VALID)
    assert len(candidates) > 5
    assert taught.has.all()
    config = KdConfig(("a",), ("b",), logit=1, query=1, map=1)
    answered = [Answered.of(taught.has, regions, candidates, SEEN)]
    terms = distillation_losses(student, [taught], answered, candidates, config=config)
    assert all(term.item() == 0.0 for term in terms.values())
    with torch.no_grad():
        other = network(1)(regions)
    terms = distillation_losses(other, [taught], answered, candidates, config=config)
    assert all(term.item() > 0 for term in terms.values())


def test_mirrored_images_are_answered_with_mirrored_boxes(teacher, scene):
    cells, maps, _ = scene
    plain, mirrored = (teacher.answer(cells, maps, flip) for flip in (False, True))
    assert np.array_equal(plain[0].cell["boxes"], mirrored[0].cell["boxes"])  # boxes are told as they lie in the image
    assert np.abs(plain[0].cell["pairs"] - mirrored[0].cell["pairs"]).max() > 0.01


def test_an_answer_does_not_depend_on_its_neighbours(teacher, scene):
    cells, maps, _ = scene
    together = teacher.answer(cells, maps, False)
    for n, answer in enumerate(together):
        (alone,) = teacher.answer(cells[n : n + 1], maps[n : n + 1], False)
        for name, value in alone.cell.items():
            np.testing.assert_allclose(np.float32(answer.cell[name]), np.float32(value), atol=2e-3, err_msg=name)
        np.testing.assert_allclose(alone.latent, answer.latent, atol=1e-5)


def test_images_without_pairs_are_answered(teacher, scene):
    cells, maps, _ = scene
    for n, instances in ((1, 0), (2, 1)):
        cell = teacher.answer(cells, maps, False)[n].cell
        assert cell["boxes"].shape == (instances, 4)
        assert len(cell["entries"]) == len(cell["pairs"]) == 0
    nothing = teacher.answer([None, cells[1]], maps[:2], False)
    assert all(len(answer.cell["boxes"]) == 0 and np.isfinite(answer.latent).all() for answer in nothing)


def test_unseen_classes_are_left_out_as_in_the_students_own_entries(teacher, scene):
    cells, maps, images = scene
    regions = gather(images, torch.from_numpy(maps))
    seen = SEEN.clone()
    seen[[1, 4]] = False
    answers = teacher.answer(cells, maps, False)
    taught = read(answers, images, regions, seen)
    candidates = candidates_of(regions, VALID & seen)
    with torch.no_grad():
        own = teacher.model(regions).logits[-1][candidates.pair, candidates.hoi]
    assert torch.equal(taught.logits, own.half())


def test_images_without_an_answer_keep_the_others_in_place(teacher, scene):
    cells, maps, images = scene
    regions = gather(images, torch.from_numpy(maps))
    whole = teacher.answer(cells, maps, False)
    full, some = read(whole, images, regions), read([None, *whole[1:4], None], images, regions)
    assert some.has.tolist() == [False, True, True, True, False]
    for name, where in (("unary", regions.image), ("pairs", regions.pair_image)):
        kept = some.has[where]
        assert torch.equal(getattr(some, name)[:, kept], getattr(full, name)[:, kept])
        assert not kept.all()
    kept = some.has[candidates_of(regions, VALID).image]
    assert torch.equal(some.logits[kept], full.logits[kept])
    assert torch.equal(some.latent[some.has], full.latent[some.has])
    nobody = read([None] * 5, images, regions)
    assert not nobody.has.any()
    assert nobody.pairs.shape[1] == len(regions.pairs)
    assert read(whole, images, regions, maps=False).latent is None


def cut(image, kept):
    return replace(image, boxes=image.boxes[kept], scores=image.scores[kept], labels=image.labels[kept])


@pytest.mark.parametrize("change", ["order", "box", "fewer", "label"])
def test_other_boxes_or_another_order_are_refused_with_image_and_both_tables(teacher, scene, change):
    cells, maps, images = scene
    images = list(images)
    first = images[4]
    if change == "order":
        images[4] = cut(first, np.arange(len(first.labels))[::-1])
    elif change == "box":
        images[4] = replace(first, boxes=np.nextafter(first.boxes, np.float32(100)))
    elif change == "fewer":
        images[4] = cut(first, np.arange(len(first.labels) - 1))
    else:
        images[4] = replace(first, labels=np.where(first.labels == 1, 2, first.labels + 1).astype(np.int16))
    answers = teacher.answer(cells, maps, False)
    with pytest.raises(UserError) as refused:
        read(answers, images, gather(images, torch.from_numpy(maps)))
    said = str(refused.value)
    for named in ("image 4", "table teacher_pairs", "table detections"):
        assert named in said
    assert "\n" not in said


def test_another_vocabulary_is_refused(teacher, scene):
    cells, maps, images = scene
    every = torch.ones_like(VALID)
    with pytest.raises(UserError, match=r"image 0: table teacher_pairs holds .* same vocabulary"):
        read(teacher.answer(cells, maps, False), images, gather(images, torch.from_numpy(maps)), valid=every)


def test_answers_that_do_not_fit_are_no_answers(scene):
    cells, maps, _ = scene
    broken = network()
    with torch.no_grad():
        broken.classifier.bias.fill_(1e5)
    with pytest.raises(FloatingPointError):
        PairTeacher(broken, CONFIG, VALID).answer(cells, maps, False)
