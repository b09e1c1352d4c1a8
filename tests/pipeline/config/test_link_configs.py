"""LINK's configurations for the published datasets build to the last key, with tiny checkpoints of the classes they name."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from hoi_distill.pipeline.config.schema import Config, load_config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.graph.nodes import build_graph
from hoi_distill.stages.data.swig_hoi import swig_vocabulary
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.data.zero_shot import split_of
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.student import verbs
from hoi_distill.stages.teacher import weights
from hoi_distill.storage.file_digests import DigestMemory
from tests.fixtures.synthetic import empty_annotations

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/link-method.md").read_text()
WORDS = {"hico_det": hico_vocabulary, "v_coco": v_coco_vocabulary, "swig_hoi": swig_vocabulary}
BACKBONES = {
    name: (int(channels), re.findall(r"`(.*?)`", changes))
    for name, channels, changes in re.findall(r"^\| (\S+)[^|]* \| (\d+) x \d+ x \d+ \| (.*)\|$", PAGE, re.MULTILINE)
}
ROWS = {
    name: [change.removesuffix(",") for change in re.findall(r"`(.*?)`", changes)]
    for name, changes in re.findall(r"^\| (A\d) \| (`student.*)\|$", PAGE, re.MULTILINE)
}


@pytest.fixture
def build(tiny_of, tmp_path, monkeypatch):
    """``build(dataset, changes)``: the configuration, its tables, its sections as :func:`read_section` has them."""
    monkeypatch.setattr(weights, "locate", lambda source, revision=None: tiny_of(source))

    def make(dataset: str, changes=()):
        path = ROOT / f"configs/{dataset}_link.yaml"
        config: Config = load_config(path, changes)
        words = WORDS[dataset]()
        digests = DigestMemory(tmp_path / "digests.sqlite").digests
        nodes = build_graph(config, StageContext(words, {"train": empty_annotations(words)}, digests), path)
        sections = {"student": config.student, **config.pair_teachers}
        return config, nodes, {name: read_section(each, f"{name}.") for name, each in sections.items()}

    return make


@pytest.mark.parametrize("dataset", WORDS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_builds_on_every_dataset(build, dataset, backbone):
    channels, changes = BACKBONES[backbone]
    config, nodes, sections = build(dataset, changes)
    assert set(nodes) == set(config.tables)
    for method, student, images in sections.values():
        assert method.name == "link"
        assert isinstance(student, LinkConfig)
        needs = method.needs(student, WORDS[dataset]())
        for role, columns in needs.train.items():
            assert set(columns or ()) <= set(nodes[getattr(images.tables, role, role)].stage.columns)
        with torch.device("meta"):  # of its published size
            Link(LinkShape(channels, 512, student.network), verbs(WORDS[dataset]()))
    if sections["student"][1].kd.on:
        (_, taught, own), (_, student, images) = sections["phase_1"], sections["student"]
        assert own == images
        assert (taught.score_threshold, taught.any_object) == (student.score_threshold, student.any_object)


def test_six_backbones_are_documented_and_each_looks_through_another_map():
    assert list(BACKBONES) == ["CLIP-B/16", "CLIP-L/14", "BLIP-2", "SigLIP", "DINOv2-B", "Florence-2-B"]
    assert not BACKBONES["CLIP-B/16"][1]
    assert len({tuple(changes) for _, changes in BACKBONES.values()}) == 6


def test_the_rows_of_the_ablation_are_what_they_are_called(build):
    assert list(ROWS) == ["A1", "A2", "A3", "A4", "A5", "A6"]

    def switches(changes):
        _, _, sections = build("hico_det", changes)
        assert sections["phase_1"][1].network == LinkConfig().network  # the student's rows leave its teacher alone
        student = sections["student"][1]
        assert student.network.pair_geometry == student.network.geometric_encoder
        on = [student.network.geometric_encoder, student.network.linking_decoder]
        return tuple(map(bool, [*on, student.kd.logit, student.kd.query, student.kd.map]))

    assert {name: switches(changes) for name, changes in {**ROWS, "A7": []}.items()} == {
        "A1": (False, False, False, False, False),
        "A2": (False, True, False, False, False),
        "A3": (True, False, False, False, False),
        "A4": (True, True, False, False, False),
        "A5": (True, True, True, False, False),
        "A6": (True, True, True, True, False),
        "A7": (True, True, True, True, True),
    }


def test_the_page_sets_keys_that_are_there(build):
    lines = re.findall(r"^    (--set .*)$", PAGE, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        _, _, sections = build("hico_det", [part for part in shlex.split(line) if part != "--set"])
        (_, _, own), (_, _, images) = sections["phase_1"], sections["student"]
        assert own == images
        assert images.zero_shot or images.few_shot
        if images.zero_shot:
            split_of(hico_vocabulary(), images.zero_shot)


def test_swig_hoi_is_open_vocabulary(build):
    _, _, sections = build("swig_hoi")
    _, student, images = sections["student"]
    assert (student.network.train_rows, student.any_object) == (False, True)
    assert split_of(swig_vocabulary(), images.zero_shot).unseen.sum() == 1391
    assert student.top_k is not None


def test_a_second_teacher_is_trained_as_the_shipped_configuration_trains_the_first(build):
    """A8's block of the page: the student's and both teachers' parameters but for the second table, and the same maps."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    written = yaml.safe_load(block)
    config, _, sections = build("hico_det")
    for name, section in {"student": written["student"], **written["pair_teachers"]}.items():
        method, own, images = read_section(section, f"{name}.")
        _, shipped, usual = sections["student" if name == "student" else "phase_1"]
        assert method.name == "link"
        assert replace(own, kd=shipped.kd) == shipped
        assert (own.kd.logit, own.kd.query, own.kd.map) == (shipped.kd.logit, shipped.kd.query, shipped.kd.map)
        assert images.model_copy(update={"tables": usual.tables}) == usual
    shared = {name: table for name, table in written["tables"].items() if name in config.tables}
    assert len(shared) == len(config.tables) == 5
    for name, table in shared.items():
        assert table == {**config.tables[name].parameters(), "stage": config.tables[name].stage} | (
            {"splits": ["train"]} if name.startswith("taught") else {}
        )
