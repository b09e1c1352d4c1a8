"""What the shipped teachers' model cards say is what was measured with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

PICO = Path(__file__).parents[4] / "stages/teacher/pico"


def measured(folder: Path) -> dict:
    return json.loads((folder / "heldout.json").read_text())


def table_row(card: str, label: str) -> list[str]:
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {label}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def rounded(*figures: float) -> list[str]:
    return [f"{figure:.3f}" for figure in figures]


def test_the_blip_card():
    card, found = (PICO / "README.md").read_text(), measured(PICO)
    itm, itc = found["itm"], found["itc"]
    keys = ("rank_map", "class_map", "swap_pairwise", "swap_balanced_at_0")
    assert table_row(card, "ITM") == rounded(*(itm[key] for key in keys))
    assert table_row(card, "ITC")[:3] == rounded(*(itc[key] for key in keys[:3]))
    for name in ("caption", "list"):
        wanted = rounded(*(found[name][key] for key in ("precision", "recall", "exact_set")))
        assert table_row(card, f"{name} (recall") == wanted


def test_the_long_tailed_card_says_what_was_measured_beside_the_first_teacher():
    card, found, first = (PICO / "long_tailed/README.md").read_text(), measured(PICO / "long_tailed"), measured(PICO)

    def beside(kind: str, *keys: str) -> list[str]:
        return [f"{found[kind][key]:.3f} ({first[kind][key]:.3f})" for key in keys]

    assert found["part"] == first["part"]
    assert table_row(card, "ITM") == beside("itm", "rank_map", "class_map", "swap_pairwise", "swap_balanced_at_0")
    assert table_row(card, "ITC")[:3] == beside("itc", "rank_map", "class_map", "swap_pairwise")
    for name in ("caption", "list"):
        assert table_row(card, f"{name} (recall") == beside(name, "precision", "recall", "exact_set")
    assert f"accuracy {beside('yes_no', 'accuracy')[0]}" in card
    weakest = sorted(found["class_ap"].items(), key=lambda item: item[1])[:5]
    said = " ".join(card.split())
    for name, precision in weakest:
        assert f"{name.replace(' ', ' / ')} {precision:.3f}" in said
    recipe = json.loads((PICO / "long_tailed/recipe.json").read_text())
    assert recipe["long_tailed"]
    assert f"{recipe['cpu_seconds']:.0f} s of CPU" in card
    same = {key: value for key, value in recipe.items() if key not in ("long_tailed", "cpu_seconds")}
    assert same.items() <= json.loads((PICO / "recipe.json").read_text()).items()


def test_the_clip_card():
    card, found = (PICO / "clip/README.md").read_text(), measured(PICO / "clip")
    assert table_row(card, "zero-shot") == rounded(
        *(found["zero_shot"][key] for key in ("rank_map", "class_map", "swap_pairwise"))
    )
    for label, key in (("full width, 144", "full"), ("projected, 96", "projected"), ("full width of the", "untrained")):
        assert table_row(card, label) == rounded(found["probe_map"][key])
    assert table_row(card, "ranking at random") == rounded(found["chance_map"])


def test_the_detector_card():
    card, found = (PICO / "detector/README.md").read_text(), measured(PICO / "detector")
    assert table_row(card, "all") == rounded(found["AP50"], found["AP75"], found["AP"])
    for name in ("person", "umbrella", "book", "cup"):
        assert table_row(card, name)[:2] == rounded(found["classes"][name]["AP50"], found["classes"][name]["AP75"])
    objs = [figures for name, figures in found["classes"].items() if name != "person"]
    means = [float(np.mean([obj[key] for obj in objs])) for key in ("AP50", "AP75")]
    assert [float(cell) for cell in table_row(card, "objects")[:2]] == pytest.approx(means, abs=1e-3)
    assert f"{found['pictures_per_cpu_second']:.0f} images per CPU second" in card


def test_the_detr_card():
    card, found = (PICO / "detr/README.md").read_text(), measured(PICO / "detr")
    assert table_row(card, "all") == rounded(found["AP50"], found["AP75"], found["AP"])
    for name in ("person", "cell_phone", "cup"):
        figures = found["classes"][name]
        assert table_row(card, name.replace("_", " "))[:2] == rounded(figures["AP50"], figures["AP75"])
    objs = [figures for name, figures in found["classes"].items() if name != "person"]
    means = [float(np.mean([obj[key] for obj in objs])) for key in ("AP50", "AP75")]
    assert [float(cell) for cell in table_row(card, "objects")[:2]] == pytest.approx(means, abs=1e-3)
    recipe = json.loads((PICO / "detr/recipe.json").read_text())
    assert f"{recipe['steps'] * recipe['batch']:,} new scenes" in card
    assert f"{recipe['cpu_seconds']:.0f} s of CPU" in card


def test_the_card_of_the_teacher_that_is_asked_about_pairs():
    card, found = (PICO / "marked/README.md").read_text(), measured(PICO / "marked")
    keys = ("localisation", "area", "accuracy", "calibration_error")
    assert table_row(card, "all questions") == rounded(*(found[key] for key in keys))
    weak = json.loads((PICO / "marked/heldout-first.json").read_text())
    assert weak["questions"] == found["questions"]
    assert table_row(card, "after 60 steps") == rounded(*(weak[key] for key in keys))
    assert f"{found['questions']:,} questions, {found['true']:,} of them true" in card
    said = " ".join(card.split())
    weakest = sorted((value, verb) for verb, value in found["by_verb"].items() if value is not None)[:4]
    for value, verb in weakest:
        assert f"{verb.replace('_', ' ')} {value:.3f}" in said
    recipe = json.loads((PICO / "marked/recipe.json").read_text())
    assert f"{recipe['stop'] * recipe['batch']:,} scenes" in card
    assert f"{recipe['cpu_seconds']:.0f} s of CPU" in card
    assert "Boxes reach this teacher" in card


@pytest.mark.parametrize("folder", ["", "clip", "detector", "marked"])
def test_a_card_names_the_commands_that_reproduce_it(folder):
    card = (PICO / folder / "README.md").read_text()
    for command in ("training", "evaluation"):
        assert f"python -m hoi_distill.stages.teacher.pico.{command}.{folder or 'blip'}" in card
        assert (PICO / command / f"{folder or 'blip'}.py").exists()
