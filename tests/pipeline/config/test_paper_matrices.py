"""The matrices of the papers' tables build to the last column, with tiny checkpoints of the classes that they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hoi_distill.pipeline.config.schema import Config, VCocoDataset, load_config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.experiments import check_arms, load_matrix
from hoi_distill.pipeline.graph.nodes import build_graph
from hoi_distill.stages.data.swig_hoi import swig_vocabulary
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.teacher import weights
from hoi_distill.storage.file_digests import DigestMemory
from tests.fixtures.synthetic import empty_annotations

ROOT = Path(__file__).parents[3]
MATRICES = sorted((ROOT / "configs/paper").glob("*.yaml"))


def vocabulary_of(config: Config) -> Vocabulary:
    if isinstance(config.dataset, VCocoDataset):
        return v_coco_vocabulary(config.dataset.combinations)
    return swig_vocabulary() if config.dataset.kind == "swig-hoi" else hico_vocabulary()


@pytest.fixture
def matrix(request, tiny_of, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        weights, "locate", lambda source, revision=None: tiny_of(source.replace("checkpoints/detr", "x/detr"))
    )
    return load_matrix(request.param)


@pytest.mark.parametrize("matrix", MATRICES, ids=lambda path: path.stem, indirect=True)
def test_every_arm_reads_columns_that_its_tables_have(matrix, tmp_path):
    built: dict[str, dict] = {}
    for arm in matrix.arms:
        config = load_config(matrix.setup, matrix.overrides_of(arm, 0))
        words = vocabulary_of(config)
        tables = config.model_dump_json(include={"tables", "pair_teachers"})
        if tables not in built:
            digests = DigestMemory(tmp_path / "digests.sqlite").digests
            context = StageContext(words, {"train": empty_annotations(words)}, digests)
            built[tables] = build_graph(config, context, matrix.setup)
        for section in (config.student, *config.pair_teachers.values()):
            if "start" in section:
                section = {**section, "start": "stages/teacher/pico/detr"}
            method, student, images = read_section(section, f"{arm}: ")
            needs = method.needs(student, words)
            for role, columns in [*needs.train.items(), *needs.test.items()]:
                name = images.tables.name_of(role)
                assert set(columns or ()) <= set(built[tables][name].stage.columns), (arm, role)


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_every_arm_is_a_training_of_its_own_with_valid_keys(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    matrix = load_matrix(path)
    check_arms(matrix)
    assert len({tuple(matrix.arms[arm].overrides()) for arm in matrix.arms}) == len(matrix.arms)


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_a_matrix_says_what_table_it_is_and_where_its_published_figures_are_from(path):
    matrix = load_matrix(path)
    papers = ("CL-HOI", "DA-HOI", "VLM-HOI", "LINK")
    paper = next(word for word in papers if path.stem.startswith(word.lower().replace("-", "_")))
    assert f"configs/paper/{path.name}" in path.read_text().splitlines()[0]
    assert paper in matrix.about
    assert matrix.name == f"paper-{path.stem.replace('_', '-')}"
    assert str(matrix.records) == f"docs/records/{matrix.name}"
    for arm in matrix.arms.values():
        assert arm.published is None or arm.published.source.startswith(paper)


def test_the_ablation_has_the_figures_of_the_methods_page():
    page = (ROOT / "docs/link-method.md").read_text()
    arms = load_matrix(ROOT / "configs/paper/link_ablation.yaml").arms
    assert [name[:2] for name in arms] == [f"A{number}" for number in range(1, 9)]
    for name, arm in arms.items():
        told = arm.published
        assert told is not None
        row = next(line for line in page.splitlines() if line.startswith(f"| {name[:2]} ") and line.count("|") == 5)
        assert row.endswith(f"| {told.full:.2f} | {told.rare:.2f} | {told.non_rare:.2f} |"), json.dumps(row)
