"""Exponents are chosen by how well whole pictures are ranked, and by nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hoi_distill.stages.student.methods.cl_hoi.cognition import Cognition
from hoi_distill.stages.student.methods.cl_hoi.exponents import choose_exponents, image_map
from hoi_distill.stages.student.pairs.batches import TableMaps
from hoi_distill.stages.student.pairs.prepare import picture_table
from hoi_distill.stages.student.pairs.supervision.image_labels import teacher_labels
from tests.fixtures.toy_cl_hoi import CONFIG
from tests.fixtures.toy_student import VOCABULARY

OFF = -np.inf


def test_image_map_by_hand():
    score = np.array([[0.9, 0.1], [0.8, OFF], [0.7, 0.3], [0.6, 0.2]], np.float32)
    kind = np.array([[1, 0], [0, 1], [1, 1], [-1, 0]], np.int8)
    first = (1 + 2 / 3) / 2  # right, wrong, right; the last is ignored
    second = 1 / 2  # the one that was found comes first; the other was not found
    assert image_map(score, kind, np.array([True, True])) == pytest.approx((first + second) / 2)
    assert image_map(score, kind, np.array([True, False])) == pytest.approx(first)
    assert image_map(score, kind, np.array([False, False])) == 0


class Says(nn.Module):
    """z knows what a picture shows; r is noise."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, regions):
        verb = torch.from_numpy(VOCABULARY.hois[:, 0].astype(np.int64))
        shown = regions.maps[:, :3].float().mean((2, 3)).argmax(1)  # the toy's maps show the verb
        logits = (shown[regions.pair_picture][:, None] == verb).float()
        noise = torch.linspace(-4, -1, len(logits))
        return Cognition(logits, logits, noise[torch.arange(len(noise)) * 5 % len(noise)], logits)


def test_the_best_exponents_win_and_of_equal_ones_the_first(world, tmp_path):
    data = world.teacher_set()
    pictures, labels = picture_table(tmp_path / "p", data.source, CONFIG), teacher_labels(tmp_path / "l", data)
    maps = TableMaps({"original": data.source.open({"features": ("original",)})})
    config = replace(CONFIG, gammas=(1.0, 0.0), lambdas=(1.0, 2.0))
    rows, valid = np.arange(len(pictures)), torch.from_numpy(data.valid())
    read = {"maps": maps, "valid": valid, "labels": labels}
    found = choose_exponents(Says(), config, pictures, rows, **read)
    scores = {(gamma, power): score for gamma, power, score in found.tried}
    assert len(scores) == 4
    assert found.gamma == 0  # r is noise here
    assert scores[0.0, 1.0] > scores[1.0, 1.0]
    best = max(scores.values())
    assert (found.gamma, found.power) == next(chosen for chosen, score in scores.items() if score == best)
    assert found.pictures == len(rows)
    off = replace(config, network=replace(config.network, interactiveness=False))
    assert {gamma for gamma, _, _ in choose_exponents(Says(), off, pictures, rows, **read).tried} == {1.0}


def test_lambda_weighs_the_boxes_in_the_choice(world, tmp_path):
    """Boxes of random scores: what a larger exponent does to the ranking shows in its score."""
    draw = np.random.default_rng(0)
    boxes = [{**cell, "scores": list(0.3 + 0.7 * draw.random(len(cell["scores"])))} for cell in world.detections]
    data = world.teacher_set(detections={"value": boxes})
    pictures, labels = picture_table(tmp_path / "p", data.source, CONFIG), teacher_labels(tmp_path / "l", data)
    config = replace(CONFIG, gammas=(0.0,), lambdas=(0.0, 1.0, 8.0))
    found = choose_exponents(
        Says(), config, pictures, np.arange(len(pictures)), maps=TableMaps.of(data.source, ("original",)),
        valid=torch.from_numpy(data.valid()), labels=labels,
    )  # fmt: skip
    assert len({round(score, 6) for _, _, score in found.tried}) == 3
