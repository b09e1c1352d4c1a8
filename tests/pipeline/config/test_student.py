"""What is wrong with a student, or hardly meant, is told before a teacher has worked for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hoi_distill.pipeline.config.schema import load_config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.checks import check_student, doubts, rehearse_student
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.data.pico.world import write_world
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.storage.errors import UserError

ROOT = Path(__file__).parents[3]
SHIPPED = ("pico", "pico_vlm_hoi", "pico_link", "pico_cl_hoi")


@pytest.fixture(scope="module")
def setups(tmp_path_factory):
    """The shipped configurations of every method, on a world of 24 + 4 images."""
    root = tmp_path_factory.mktemp("sections")
    write_world(root / "world", seed=0, train=24, test=4)
    made = {}
    for name in SHIPPED:
        config = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        config.update(cache=str(root / "cache"), runs=str(root / "runs"))
        config["dataset"].update(root=str(root / "world"), train=24, test=4)
        for section in (config["student"], *config.get("pair_teachers", {}).values()):
            section["labelled"] = min(section["labelled"], 12)
        made[name] = root / f"{name}.yaml"
        made[name].write_text(yaml.safe_dump(config))
    return made


def checked(path: Path, *changes: str, **how) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)  # the shipped teachers are named from there
        workspace = prepare(path, changes, **how)
        check_student(workspace)
        rehearse_student(workspace)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_configurations_raise_no_doubt(setups, capsys, name):
    checked(setups[name])
    assert "warning" not in capsys.readouterr().err


def test_a_teacher_that_nobody_listens_to_is_told_in_a_line_with_file_and_key(setups, capsys):
    checked(setups["pico"], "student.labelled=null")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hoi-distill: warning: {setups['pico']}: student.itm_on: unlabelled; nothing is distilled")
    checked(setups["pico_link"], "pair_teachers.phase_1.steps=1", "pair_teachers.phase_1.labelled_per_step=1")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"hoi-distill: warning: {setups['pico_link']}: pair_teachers.phase_1.steps: no more than 0.083"
    )


def test_a_trial_of_the_first_images_is_not_judged_by_its_images(setups, capsys):
    checked(setups["pico"], "student.labelled=null", limit=8)
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "images", "said"),
    [
        ("pico", {}, (24, 0), "itm_on: unlabelled"),
        ("pico", {"itm_on": "labelled"}, (24, 0), None),
        ("pico", {"itm_on": "both"}, (24, 0), None),
        ("pico", {"itm_on": "none"}, (24, 0), None),
        ("pico", {"itm_weight": 0}, (24, 0), None),
        ("pico", {"unlabelled_per_step": 0}, (12, 12), "itm_on: unlabelled"),
        ("pico", {"steps": 2}, (38118, 12), "steps: no more than 0.00084 of an epoch"),
        ("pico_vlm_hoi", {"f7": {"weight": 1}}, (24, 0), "f7.weight: 1"),
        ("pico_vlm_hoi", {"f7": {"weight": 1}}, (12, 12), None),
        ("pico_vlm_hoi", {"epochs": 0.5}, (12, 0), "epochs: no more than 0.5"),
        ("pico_link", {"kd": {"pairs": ["taught_pairs"], "logit": 1, "unlabelled": True}}, (24, 0), "kd.unlabelled: true"),
        ("pico_link", {"kd": {"pairs": ["taught_pairs"], "logit": 1, "unlabelled": True}}, (12, 12), None),
        ("pico_cl_hoi", {"steps": 1}, (0, 4000), "steps: no more than 0.004 of an epoch"),
    ],
)  # fmt: skip
def test_what_is_hardly_meant_begins_with_its_key(name, change, images, said):
    document = load_config(ROOT / f"configs/{name}.yaml").student
    method, config, _ = read_section({**document, **change}, "student.")
    lines = list(doubts(method, config, *images))
    assert [line.startswith(said) for line in lines] == ([] if said is None else [True])


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("pico_vlm_hoi", ["student.model.querys=3"], "student.model.querys: unknown key; did you mean queries?"),
        ("pico_vlm_hoi", ["student.model.queries=many"], "student.model.queries: Input should be a valid integer; got 'many'"),
        ("pico_vlm_hoi", ["student.model.queries=0"], "student.model.queries: 0; at least 1"),
        ("pico_vlm_hoi", ["student.model.dropout=2"], "student.model.dropout: 2; it must lie in 0 to 1"),
        ("pico_vlm_hoi", ["student.model.frozen_stages=-1"], "student.model.frozen_stages: -1; at least 0"),
        ("pico_vlm_hoi", ["student.model.frozen_stages=9"], "student.model.frozen_stages: 9: backbone"),
        ("pico_vlm_hoi", ["student.model.d_model=90"], "student.model.d_model: 90 must be a multiple of 4"),
        ("pico_vlm_hoi", ["student.model.backbone=resnet7"], "student.model.backbone 'resnet7' has no"),
        ("pico_vlm_hoi", ["student.model.backbone=[1]"], "student.model.backbone: Input should be a name or a record"),
        ("pico_vlm_hoi", ["student.model.backbone={folder: nowhere}"], "student.model.backbone.folder: nowhere/config.json"),
        ("pico_vlm_hoi", ["student.model.heads=8"], "student.start: heads: 8, but stages/teacher/pico/detr has 4"),
        ("pico_vlm_hoi", ["student.start=stages/teacher/pico/itm"], "student.start: stages/teacher/pico/itm: cannot start from"),
        ("pico_vlm_hoi", ["student.decoders_from_detr=false"], "student.start: stages/teacher/pico/detr: "),
        ("pico_vlm_hoi", ["student.start=nowhere"], "student.start: nowhere: no weights there"),
        ("pico_link", ["pair_teachers.phase_1.tables.features=nowhere"], "pair_teachers.phase_1.tables.features: there is no"),
        ("pico_link", ["student.pair_width=128"], "student.pair_width: unknown key; did you mean network.pair_width?"),
        ("pico_link", ["student.tables.features=nowhere"], "student.tables.features: there is no table 'nowhere'"),
    ],
)  # fmt: skip
def test_what_train_would_refuse_is_refused_before_a_teacher_works(setups, name, changes, said):
    with pytest.raises(UserError) as refusal:
        checked(setups[name], *changes)
    assert str(refusal.value).startswith(f"{setups[name]}: {said}")
    assert "\n" not in str(refusal.value)


def test_train_looks_at_its_section_before_its_tables(setups, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"student\.epoks: unknown key"):
        train_student(prepare(setups["pico_vlm_hoi"], ["student.epoks=3"]))


def test_no_interaction_is_asked_of_no_teacher_but_learnt_from_annotations():
    """Its prompt says that person and object are there, which is so wherever one of the other 520 classes is."""
    words = hico_vocabulary()
    for teacher, asked in (("itm", 520), ("shuffled", 520), ("oracle", None), ("self", None)):
        method, config, _ = read_section({"labelled": None, "teacher": teacher}, "student.")
        columns = method.needs(config, words).train.get("itm")
        assert (columns and len(columns)) == asked
    assert len(words.actions()) == 600
    assert not any(prompt.startswith("a photo of a person and ") for prompt in method_columns(words))


def method_columns(words) -> tuple[str, ...]:
    method, config, _ = read_section({"labelled": None}, "student.")
    return method.needs(config, words).train["itm"]


@pytest.mark.parametrize("page", ["docs/own-data.md", "docs/recipes.md"])
def test_the_recipes_for_hico_det_train_for_epochs(page):
    blocks = [yaml.safe_load(block.split("```")[0]) for block in (ROOT / page).read_text().split("```yaml\n")[1:]]
    students = [block["student"] for block in blocks if "student" in block]
    assert students
    for student in students:
        method, config, images = read_section(student, "student.")
        assert method.epochs(config, images.labelled, 0) > 19
        assert not list(doubts(method, config, images.labelled, 0))
