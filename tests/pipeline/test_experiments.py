"""Matrices: an arm changes what it names and nothing else; the shipped ones can be trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from hoi_distill.pipeline.config.schema import load_config, validate
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.experiments import ArmSection, Matrix, check_arms, load_matrix
from hoi_distill.storage.errors import UserError

MATRICES = sorted(Path("configs").glob("experiments*.yaml"))


def student_of(matrix: Matrix, arm: str, seed: int = 0) -> dict:
    """The student's parameters in full, as training gets them."""
    document = load_config(matrix.setup, matrix.overrides_of(arm, seed)).student
    assert document is not None
    return asdict(read_section(document, "student.")[1])


def images_of(matrix: Matrix, arm: str) -> dict:
    """Which images, labels and tables an arm gets."""
    config = load_config(matrix.setup, matrix.overrides_of(arm, 0))
    images = read_section(config.student, "student.")[2]
    own = {role: config.tables.get(name) for role, name in images.tables if name is not None}
    return {"pictures": images, "tables": own, "pair_teachers": config.pair_teachers}


def test_a_section_of_an_arm_changes_the_matrixs_which_changes_the_setups(tmp_path):
    setup = tmp_path / "setup.yaml"
    student = {"labelled": 1, "method": "vlm_hoi", "itm": {"family": "F3", "margin": 0.4}, "epochs": 2}
    tables = {"itm": {"stage": "blip_itm", "columns": "prompts"}}
    dataset = {"kind": "pico", "root": "nowhere"}
    setup.write_text(yaml.safe_dump({"name": "x", "dataset": dataset, "tables": tables, "student": student}))
    arm = ArmSection(text="", student={"itm": {"margin": 0.6}}, tables={"itm": {"stage": "blip2_itm"}})
    plain = ArmSection(text="")
    matrix = Matrix(
        name="x", setup=setup, arms={"arm": arm, "plain": plain}, student={"epochs": 3, "itm": {"margin": 0.5}}
    )
    config = load_config(setup, matrix.overrides_of("arm", 7))
    assert config.student == {**student, "itm": {"family": "F3", "margin": 0.6}, "epochs": 3, "seed": 7}
    inherited = load_config(setup, matrix.overrides_of("plain", 7)).student
    assert inherited == {**student, "itm": {"family": "F3", "margin": 0.5}, "epochs": 3, "seed": 7}
    assert config.tables["itm"].stage == "blip2_itm"
    assert config.tables["itm"].parameters() == {}, "a table is replaced: another stage has other parameters"


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_every_shipped_arm_is_a_training_of_its_own(path):
    matrix = validate(Matrix, yaml.safe_load(path.read_text()), str(path))
    students = {name: (student_of(matrix, name), images_of(matrix, name)) for name in matrix.arms}
    distinct = {repr(each) for each in students.values()}
    assert len(distinct) == len(students)


def test_the_ablations_start_from_arms_of_the_main_matrix():
    main, ablations = (
        validate(Matrix, yaml.safe_load(Path(f"configs/experiments_vlm_hoi{part}.yaml").read_text()), part)
        for part in ("", "_ablations")
    )
    assert main.setup == ablations.setup
    assert student_of(main, "baseline", 1) == student_of(ablations, "without", 1)
    assert student_of(main, "F1", 1) == student_of(ablations, "with (F1, alpha 0.5, full sentences)", 1)


def test_a_wrong_key_of_a_late_arm_is_found_before_the_first_trains(tmp_path):
    path = tmp_path / "matrix.yaml"
    arms = {"good": {"text": "x"}, "bad": {"text": "y", "student": {"itm_onn": "none"}}}
    path.write_text(json.dumps({"name": "m", "setup": "configs/pico.yaml", "arms": arms}))
    with pytest.raises(UserError, match=r"configs/pico\.yaml: student\.itm_onn: unknown key; did you mean itm_on"):
        check_arms(load_matrix(path))
    arms["bad"] = {"text": "y", "tables": {"itm": {"stage": "blip_itm", "chekpoint": "x", "columns": "prompts"}}}
    path.write_text(json.dumps({"name": "m", "setup": "configs/pico.yaml", "arms": arms}))
    with pytest.raises(UserError, match=r"pico\.yaml: tables\.itm\.chekpoint: unknown key; did you mean checkpoint\?$"):
        check_arms(load_matrix(path))
    arms["bad"] = {"text": "y", "tables": {"itm": {"stage": "blip_itn"}}}
    path.write_text(json.dumps({"name": "m", "setup": "configs/pico.yaml", "arms": arms}))
    with pytest.raises(
        UserError, match=r"pico\.yaml: tables\.itm\.stage: unknown stage 'blip_itn'; did you mean blip_itm"
    ):
        check_arms(load_matrix(path))
    assert MATRICES
    for shipped in MATRICES:
        check_arms(load_matrix(shipped))


def test_seeds_share_a_pair_teacher_or_train_their_own():
    arms = {"one": ArmSection(text=""), "two": ArmSection(text="", pair_teachers={"second": {"method": "link"}})}
    for own, seeds in ((False, [{}, {}]), (True, [{"phase_1": 3}, {"phase_1": 3, "second": 3}])):
        matrix = Matrix(name="x", setup="configs/pico_link.yaml", arms=arms, own_teachers=own)
        for arm, expected in zip(arms, seeds, strict=True):
            config = load_config(matrix.setup, matrix.overrides_of(arm, 3))
            assert config.student["seed"] == 3
            assert {name: keys["seed"] for name, keys in config.pair_teachers.items() if "seed" in keys} == expected
