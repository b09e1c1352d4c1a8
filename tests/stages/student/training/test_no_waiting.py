"""No step of any student makes the host wait for a device, but for those that are logged or saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.cl_hoi.train import train as train_cl_hoi
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import LinkStudent, verbs
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.train import train as train_pair_classifier
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.student.methods.vlm_hoi.train import train as train_vlm_hoi
from hoi_distill.stages.student.pairs.supervision.config import PairAnswerConfig
from hoi_distill.stages.student.training.loop import Trainer
from tests.fixtures import toy_cl_hoi, toy_link
from tests.fixtures.no_waiting import Waits, no_waiting
from tests.fixtures.toy_pairs import with_pair_answers
from tests.fixtures.toy_student import CHANNELS, VOCABULARY, Toy
from tests.fixtures.vlm_hoi_world import World, tiny_config

SEVEN_STEPS: dict[str, Any] = {"steps": 7, "log_every": 4, "save_every": 100}


def quiet(line: str) -> None: ...


def pair_classifier(folder: Path, **changes: Any) -> None:
    config = PairClassifierConfig(width=32, warmup_steps=2, labelled_per_step=6, unlabelled_per_step=8, **SEVEN_STEPS)
    train_pair_classifier(replace(config, **changes), Toy(40, 0).training_set(16), folder, Extras(report=quiet))


def link(folder: Path, **distilled: Any) -> None:
    config, toy = toy_link.link_config(**SEVEN_STEPS), Toy(40, 0)
    data, text = toy.training_set(16), torch.from_numpy(toy_link.TEXT)
    if distilled:
        teacher = Link(LinkShape(CHANNELS, text.shape[1], toy_link.NETWORK), verbs(VOCABULARY), text)
        data = toy_link.with_teacher(data, toy, LinkStudent(teacher.eval(), VOCABULARY, config))
        config = replace(config, kd=replace(toy_link.ALL_LEVELS, unlabelled=True, **distilled))
    toy_link.trained(config, data, folder)


def link_asked(folder: Path) -> None:
    config, toy = toy_link.link_config(**SEVEN_STEPS, pair_answers=PairAnswerConfig(images="both")), Toy(40, 0)
    toy_link.trained(config, with_pair_answers(toy.training_set(16), toy), folder)


def cl_hoi(folder: Path, **changes: Any) -> None:
    stage = replace(toy_cl_hoi.CONFIG.context_stage, steps=7)
    config = replace(toy_cl_hoi.CONFIG, context_stage=stage, **SEVEN_STEPS, **changes)
    extras = Extras(text_embeddings=toy_cl_hoi.TEXT, report=quiet)
    train_cl_hoi(config, toy_cl_hoi.LabelledToy(40, 0).teacher_set(), folder, extras)


def vlm_hoi(folder: Path, **changes: Any) -> None:
    f7 = ItmConfig(family="F7", weight=0.5, ramp=1.0)
    config = tiny_config(epochs=1.75, drop_epoch=1.5, log_every=4, save_every=100, f7=f7, **changes)
    train_vlm_hoi(config, World().training_set(), folder, Extras(report=quiet))


STUDENTS: dict[str, Callable[[Path], None]] = {
    "pair classifier": pair_classifier,
    "pair classifier, final probabilities": lambda folder: pair_classifier(folder, itm_on="both", itm_logit="final"),
    "LINK": link,
    "LINK, distilled": lambda folder: link(folder, logit_form="bernoulli"),
    "LINK, distilled by softmax": lambda folder: link(folder, logit_form="softmax"),
    "LINK, answers about pairs": link_asked,
    "CL-HOI": cl_hoi,
    "CL-HOI, copied labels": lambda folder: cl_hoi(folder, bridge="copy"),
    "VLM-HOI": vlm_hoi,
    "VLM-HOI, with a moving average": lambda folder: vlm_hoi(folder, ema=0.9),
    "VLM-HOI, negatives weighted": lambda folder: vlm_hoi(folder, itm=ItmConfig(family="F2n", ramp=1.0)),
    "VLM-HOI, predicted objects": lambda folder: vlm_hoi(folder, itm=ItmConfig(object="predicted", ramp=1.0)),
}


class Guarded:
    """The loop's parts under guard, in every step that is neither logged nor saved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.reads = 0, []
        whole = Trainer.step

        def step(trainer: Trainer, *parts: Any) -> Any:
            number = parts[-1]
            if number.logged:
                return whole(trainer, *parts)
            self.steps += 1
            with no_waiting(reads := {}):
                result = whole(trainer, *parts)
            self.reads.append(reads)
            return result

        monkeypatch.setattr(Trainer, "step", step)


@pytest.mark.parametrize("student", STUDENTS)
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, student):
    guarded = Guarded(monkeypatch)
    STUDENTS[student](tmp_path)
    assert guarded.steps >= 5
    at_matching = [
        sum(count for key, count in reads.items() if "matching.py" in key and "cpu" in key) for reads in guarded.reads
    ]
    assert set(at_matching) == {1 if student.startswith("VLM-HOI") else 0}, "one copy a batch, for the matching"


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(), lambda x: bool(x.sum() > 0), lambda x: float(x[0]), lambda x: x[x > 0], lambda x: x.nonzero(),
        lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.unique(), lambda x: torch.bincount(x.long()),
    ],
)  # fmt: skip
def test_the_guard_finds_what_waits(waits):
    x = torch.arange(4.0)
    waits(x)
    with no_waiting(), pytest.raises(Waits):
        waits(x)
    with no_waiting():
        x[torch.tensor([1, 2])].where(x[:2] > 0, 0.0).sum()
