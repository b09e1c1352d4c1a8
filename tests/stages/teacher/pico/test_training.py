"""What the trainings of the pico models share."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from hoi_distill.stages.teacher.pico.training.captions import Grammar
from hoi_distill.stages.teacher.pico.training.run import AveragedWeights, Log, begin, write_recipe
from hoi_distill.stages.teacher.pico.training.tags import tag_membership


@dataclass(frozen=True)
class ToyRecipe:
    seed: int = 3
    lr: float = 0.5
    long: bool = False


def test_the_command_line_is_the_recipe_and_the_scripts_own_options(tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--stem")
    recipe, out, own = begin(parser, ToyRecipe, ["--out", str(tmp_path / "new"), "--lr", "0.25", "--stem", "here"])
    assert (recipe, own) == (ToyRecipe(lr=0.25), {"stem": "here"})
    assert torch.initial_seed() == 3
    write_recipe(out, recipe, parameters=7)
    record = json.loads((out / "recipe.json").read_text())
    assert {**record, "cpu_seconds": 0} == {"seed": 3, "lr": 0.25, "long": False, "parameters": 7, "cpu_seconds": 0}


def test_averaged_weights_follow_fast_at_first_and_leave_the_model_alone():
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedWeights(model, decay=0.5)
    model.weight.data.fill_(8.0)
    averaged.update(model, step=0)
    assert averaged.model.weight.item() == 8.0
    model.weight.data.fill_(0.0)
    averaged.update(model, step=1000)
    assert averaged.model.weight.item() == 4.0
    assert model.weight.item() == 0.0


def test_the_log_writes_means_and_refuses_what_is_not_finite(tmp_path):
    log = Log(tmp_path / "train.jsonl")
    log.add({"loss": torch.tensor(1.0)})
    log.add({"loss": torch.tensor(2.0)})
    log.flush("joint", 2)
    line = json.loads((tmp_path / "train.jsonl").read_text())
    assert (line["phase"], line["step"], line["loss"]) == ("joint", 2, 1.5)
    log.add({"loss": torch.tensor(float("nan"))})
    with pytest.raises(FloatingPointError, match="joint step 3"):
        log.flush("joint", 3)


def test_a_fact_implies_its_own_tag_its_verb_and_its_object():
    grammar = Grammar([("ride", "bicycle"), ("hold", "bicycle")])
    assert tag_membership(grammar).tolist() == [[1, 0, 0, 1, 1], [0, 1, 1, 0, 1]]
