"""Processes that share a batch learn what one process learns from all of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.cl_hoi.train import train as train_cl_hoi
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import LinkStudent, verbs
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.train import train
from hoi_distill.stages.student.pairs.batches import PictureBatches, Pools, Share
from hoi_distill.stages.student.pairs.prepare import picture_table
from hoi_distill.storage.errors import UserError
from tests.fixtures import toy_cl_hoi, toy_link
from tests.fixtures.processes import of_two_processes
from tests.fixtures.toy_student import CHANNELS, VOCABULARY, Toy

TOY = Toy(40, 0)
PLAIN = {"views": ("original",), "learning_rate": 1e-4, "clip_norm": 1e9, "log_every": 1}
"""Nothing that is drawn by each process for itself, and too slow to amplify rounding."""
ODD = {**PLAIN, "labelled_per_step": 5, "unlabelled_per_step": 7}
PROGRAM = """
import sys
from pathlib import Path
from tests.stages.student.training.test_two_processes import STUDENTS
STUDENTS[sys.argv[1]][0](Path(sys.argv[2]))
"""


def quiet(line: str) -> None: ...


def pair_classifier(folder: Path, **changes: int) -> None:
    options = {**ODD, **changes}
    config = PairClassifierConfig(width=32, steps=6, warmup_steps=2, dropout=0.0, feature_dropout=0.0, **options)
    train(config, TOY.training_set(16), folder, Extras(report=quiet))


def link(folder: Path) -> None:
    network = replace(toy_link.NETWORK, dropout=0.0, feature_dropout=0.0)
    config, data = toy_link.link_config(network=network, **ODD), TOY.training_set(16)
    torch.manual_seed(5)
    text = torch.from_numpy(toy_link.TEXT)
    teacher = Link(LinkShape(CHANNELS, text.shape[1], network), verbs(VOCABULARY), text)
    taught = toy_link.with_teacher(data, TOY, LinkStudent(teacher.eval(), VOCABULARY, config))
    toy_link.trained(replace(config, steps=6, kd=replace(toy_link.ALL_LEVELS, unlabelled=True)), taught, folder)


def cl_hoi(folder: Path, network: dict[str, bool] | None = None, **changes: Any) -> None:
    """Stage 2 alone: the contrast of stage 1 is among each process's own pictures."""
    own = toy_cl_hoi.CONFIG
    config = replace(
        own, network=replace(own.network, dropout=0.0, feature_dropout=0.0, **(network or {})), distil=False,
        translator=replace(own.translator, dropout=0.0), **{**PLAIN, "unlabelled_per_step": 7, **changes},
    )  # fmt: skip
    data = toy_cl_hoi.LabelledToy(40, 0).teacher_set()
    train_cl_hoi(config, data, folder, Extras(text_embeddings=toy_cl_hoi.TEXT, report=quiet))


LOSSES = toy_cl_hoi.CONFIG.losses
STUDENTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pair classifier": (pair_classifier, "loss/pairs loss/itm"),
    "pair classifier, one labelled picture for two": (
        partial(pair_classifier, labelled_per_step=1),
        "loss/pairs loss/itm",
    ),
    "LINK": (link, "loss/pairs loss/kd_logit loss/kd_query loss/kd_map"),
    "CL-HOI": (cl_hoi, "loss/contrastive loss/mil loss/relatedness"),
    "CL-HOI, contrast alone": (partial(cl_hoi, losses=replace(LOSSES, mil=0.0, relatedness=0.0)), "loss/contrastive"),
    "CL-HOI, copied labels": (partial(cl_hoi, bridge="copy"), "loss/pairs"),
    "CL-HOI, blind": (partial(cl_hoi, network={"visual": False, "context": False}), "loss/contrastive"),
}
"""How each is trained, and the terms of its loss. The later ones leave parameters without a part in any term."""


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
def test_two_processes_learn_what_one_does(tmp_path, student):
    train, terms = STUDENTS[student]
    train(tmp_path / "one")
    of_two_processes(PROGRAM, student, str(tmp_path / "two"))
    one, two = ([r for r in records(tmp_path / name) if "loss" in r] for name in ("one", "two"))
    assert len(one) == len(two) >= 6
    for term in ("loss", *terms.split()):
        assert [r[term] for r in two] == pytest.approx([r[term] for r in one], rel=1e-4), term
    assert len({r["loss"] for r in one}) == len(one)


def test_a_process_that_would_have_no_picture_is_refused(toy, config, tmp_path):
    pictures = picture_table(tmp_path, toy.training_set(16).source, config)
    few = replace(config, labelled_per_step=1, unlabelled_per_step=1)
    labelled = np.arange(40) < 16
    with pytest.raises(
        UserError, match=r"student\.labelled_per_step: 1 labelled and 1 other pictures a step .* 2 processes"
    ):
        PictureBatches(few, Pools.of(pictures, labelled, unlabelled=True), Share(0, 2))
    PictureBatches(few, Pools.of(pictures, labelled, unlabelled=True))
