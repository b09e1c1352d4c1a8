"""What a matrix costs is arithmetic that can be checked, and what no formula gives is called unknown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hoi_distill.pipeline.config.schema import load_config
from hoi_distill.pipeline.experiments import Matrix, load_matrix, print_costs
from hoi_distill.pipeline.planning.matrix_costs import MatrixCosts, matrix_costs
from hoi_distill.pipeline.planning.model_arithmetic import TOWERS

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


def costs_of(name: str, arms: tuple[str, ...], seeds: tuple[int, ...] = (0,)) -> MatrixCosts:
    matrix = load_matrix(ROOT / f"configs/paper/{name}.yaml")
    named = [arm for arm in matrix.arms if arm.split(",")[0] in arms]
    assert len(named) == len(arms)
    return costs_of_arms(matrix, named, seeds)


def costs_of_arms(matrix: Matrix, arms: Iterable[str], seeds: tuple[int, ...] = (0,)) -> MatrixCosts:
    return matrix_costs(
        {
            f"{arm}, seed {seed}": load_config(matrix.setup, matrix.overrides_of(arm, seed))
            for seed in seeds
            for arm in arms
        }
    )


@pytest.mark.parametrize("checkpoint", ["openai/clip-vit-base-patch16", "openai/clip-vit-large-patch14-336"])
def test_the_formula_of_a_tower_is_what_torch_counts(checkpoint):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = TOWERS[checkpoint]
    config = CLIPVisionConfig(
        image_size=tower.side, patch_size=tower.patch, hidden_size=tower.width, intermediate_size=tower.wide,
        num_hidden_layers=tower.layers, num_attention_heads=tower.width // 64,
    )  # fmt: skip
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        CLIPVisionModel(config)(torch.empty(1, 3, tower.side, tower.side))
    assert tower.flop() == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_the_formula_of_florence_2s_tower_is_what_torch_counts():
    from transformers import Florence2VisionConfig
    from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

    tower = TOWERS["florence-community/Florence-2-base"]
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        maps = Florence2VisionBackbone(Florence2VisionConfig())(torch.empty(1, 3, tower.side, tower.side))
    assert maps.last_hidden_state.shape == (1, tower.width, tower.grid, tower.grid)
    assert tower.flop() == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_arms_and_seeds_share_what_they_read_alike():
    costs = costs_of("link_ablation", ("A1", "A4", "A7", "A8"), (0, 1))
    assert (costs.runs, costs.students.total()) == (8, 8)
    assert costs.pair_teachers.total() == 4, "each seed trains its own, once for all arms: the first, and A8's second"
    runs = [(table.name, table.runs) for table in costs.tables.values()]
    assert runs.count(("features", 8)) == 1
    assert runs.count(("siglip", 2)) == 1
    assert runs.count(("taught_maps", 4)) == 2, "one a seed"
    assert runs.count(("second_maps", 1)) == 2


def test_another_setting_is_another_pair_teacher_and_the_same_pass():
    matrix = load_matrix(ROOT / "configs/paper/link_zero_shot.yaml")
    costs = costs_of_arms(matrix, matrix.arms)
    assert costs.pair_teachers.total() == 4, "A4 and A7 of a setting have one"
    assert [table.name for table in costs.tables.values()].count("features") == 1


def test_tables_of_one_name_are_told_apart_by_the_arm_that_reads_them_first():
    matrix = load_matrix(ROOT / "configs/paper/link_zero_shot.yaml")
    lines = list(costs_of_arms(matrix, matrix.arms).lines())
    pairs = [line for line in lines if line.startswith("  taught_pairs ")]
    assert len(set(pairs)) == len(pairs) == 4
    assert f", first by {next(iter(matrix.arms))}, seed 0" in pairs[0]
    assert not any(line.startswith("  features ") and "first by" in line for line in lines)


def test_bytes_are_those_of_the_recipes_and_hours_those_of_the_formula():
    costs = costs_of("link_ablation", ("A1",))
    table = next(table for table in costs.tables.values() if table.name == "features")
    assert table.stored.value == 47_776 * 2 * 768 * 24 * 24 * 2
    assert table.hours == pytest.approx(47_776 * 2 * TOWERS["openai/clip-vit-large-patch14-336"].flop() / 989e12 / 3600)
    assert table.looks
    pairs = next(table for table in costs.tables.values() if table.name == "taught_pairs")
    assert pairs.stored.value is None
    assert "435 pairs x 2 layers x 384 x 2 bytes" in pairs.stored.formula


def test_what_is_not_known_is_called_so(capsys):
    print_costs(ROOT / "configs/paper/cl_hoi_hico_det.yaml")
    said = capsys.readouterr().out
    assert "30 arms x seeds: 30 students to train" in said
    answers = said[said.index("captions (answers") :]
    assert answers.splitlines()[1].strip().startswith("bytes: unknown")
    assert "Trainings: GPU-hours unknown" in said
    print_costs(ROOT / "configs/paper/link_swig_hoi.yaml")
    assert "Images: unknown, the dataset is not here." in capsys.readouterr().out
