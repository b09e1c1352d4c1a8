"""The CL-HOI style's configurations for the published datasets build to the last key, with tiny checkpoints of the classes
they name, and nothing in them owes anything to annotated interactions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from hoi_distill.pipeline.config.schema import Config, load_config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.experiments import Matrix
from hoi_distill.pipeline.graph.nodes import build_graph
from hoi_distill.pipeline.training.leaks import refuse_annotated_vocabulary, refuse_leaks
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.student.methods.cl_hoi.cognition import ClHoiShape
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.methods.cl_hoi.student import build as build_student
from hoi_distill.stages.teacher import weights
from hoi_distill.stages.teacher.answers import Answers
from hoi_distill.stages.teacher.blip.first_token import YES_NO
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.file_digests import DigestMemory
from tests.fixtures.synthetic import empty_annotations

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/cl-hoi-method.md").read_text()
DATASETS = ("hico_det", "v_coco")
TEACHERS = {
    name: re.findall(r"`(tables\..*?)`", changes)
    for name, changes in re.findall(r"^\| (InstructBLIP|LLaVA|Qwen2\.5-VL)\S* \|(.*)\|$", PAGE, re.MULTILINE)
}
ROWS = dict(re.findall(r"^\| (A\d+|purist|ceiling) \| [^|]*\| (.*) \|$", PAGE, re.MULTILINE))


def vocabulary_of(config: Config) -> Vocabulary:
    return v_coco_vocabulary(config.dataset.combinations) if config.dataset.kind == "v-coco" else hico_vocabulary()


@pytest.fixture
def make(tiny_of, tmp_path, monkeypatch):
    """``make(dataset, changes)``: the configuration, its tables, the student's section as :func:`read_section` has it."""
    monkeypatch.setattr(weights, "locate", lambda source, revision=None: tiny_of(source))

    def built(dataset: str, changes=()):
        path = ROOT / f"configs/{dataset}_cl_hoi.yaml"
        config = load_config(path, changes)
        words = vocabulary_of(config)
        digests = DigestMemory(tmp_path / "digests.sqlite").digests
        nodes = build_graph(config, StageContext(words, {"train": empty_annotations(words)}, digests), path)
        return config, nodes, read_section(config.student, "student.")

    return built


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_teacher_builds_on_every_dataset(make, dataset, teacher):
    config, nodes, (method, student, images) = make(dataset, TEACHERS[teacher])
    words = vocabulary_of(config)
    assert set(nodes) == set(config.tables)
    assert isinstance(student, ClHoiConfig)
    needs = method.needs(student, words)
    assert (needs.annotations, needs.all_annotations) == (False, False)
    refuse_leaks(nodes, images, method.name, needs, "")
    refuse_annotated_vocabulary(config.dataset, vocabulary_of(config), method.name, needs, "")
    for wanted in (needs.train, needs.test):
        for role, columns in wanted.items():
            assert set(columns or ()) <= set(nodes[getattr(images.tables, role, role)].stage.columns)
    for name in ("captions", "verification"):
        assert isinstance(nodes[name].stage, Answers)
        asks = {bool(YES_NO.search(question)) for question in nodes[name].stage.columns}
        assert asks == {name == "verification"}
    assert set(nodes["verification"].stage.columns) == set(words.questions())
    with torch.device("meta"):  # of its published size
        build_student(ClHoiShape(1024, 768, 768), student, words, torch.empty(len(words), 768))


def test_three_teachers_are_documented_and_each_is_another():
    assert list(TEACHERS) == ["InstructBLIP", "LLaVA", "Qwen2.5-VL"]
    assert not TEACHERS["InstructBLIP"]
    assert len({tuple(changes) for changes in TEACHERS.values()}) == 3


def test_the_usual_combinations_of_v_coco_are_refused(make):
    config, _, (method, student, _) = make("v_coco", ["dataset.combinations=trainval"])
    with pytest.raises(UserError, match="read off V-COCO's annotations"):
        refuse_annotated_vocabulary(
            config.dataset, vocabulary_of(config), method.name, method.needs(student, vocabulary_of(config)), ""
        )


def test_a_detector_tuned_on_interactions_is_refused(make):
    _, nodes, (method, student, images) = make("hico_det", ["tables.detections.hico_tuned=true"])
    with pytest.raises(UserError, match="allow_hoi_tuned_detector"):
        refuse_leaks(nodes, images, method.name, method.needs(student, hico_vocabulary()), "")


def test_epochs_are_what_the_comments_say(make):
    for dataset, images in (("hico_det", 38_118), ("v_coco", 5_400)):
        _, _, (_, student, _) = make(dataset)
        kept = images * (1 - student.held_out)
        stage = student.context_stage
        assert stage.steps * stage.pictures_per_step / kept == pytest.approx(10, rel=0.01)
        assert student.steps * student.unlabelled_per_step / kept == pytest.approx(10, rel=0.01)
        for steps, warmup in ((stage.steps, stage.warmup_steps), (student.steps, student.warmup_steps)):
            assert warmup == pytest.approx(steps / 10, abs=1)


def test_the_rows_of_the_ablation_are_those_of_the_matrix():
    """The page's --set and the matrix's arms make the same student, of the pico configuration."""
    matrix = Matrix(**yaml.safe_load((ROOT / "configs/experiments_cl_hoi.yaml").read_text()))
    arms = {"purist": "A6, purist"}
    for name in matrix.arms:
        arms.setdefault(name.split(",")[0], name)  # A6 is the first of that number
    assert set(ROWS) == set(arms)

    def made(changes):
        config = load_config(ROOT / "configs/pico_cl_hoi.yaml", changes)
        return config.tables, read_section(config.student, "student.")[1:]

    for name, row in ROWS.items():
        own = re.findall(r"`(.*?)`", row)
        assert made([*own, "student.seed=0"]) == made(matrix.overrides_of(arms[name], 0)), name
