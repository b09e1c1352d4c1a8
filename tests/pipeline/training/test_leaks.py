"""No manual label reaches a training that claims to use none: not as an annotation, not inside a table."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from hoi_distill.pipeline.config.schema import FolderDataset, HicoDetDataset, SwigHoiDataset, VCocoDataset
from hoi_distill.pipeline.console.watch import Watch
from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.annotations import unlabelled
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.training.fit import fit, training_set
from hoi_distill.pipeline.training.leaks import refuse_annotated_vocabulary, tuned
from hoi_distill.pipeline.training.request import resolve
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.pico.world import write_world
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.stage import Stage
from hoi_distill.stages.student.method import method_named
from hoi_distill.stages.student.methods.cl_hoi.config import ClHoiConfig
from hoi_distill.stages.student.methods.cl_hoi.train import stage_name
from hoi_distill.storage.errors import UserError

ROOT = Path(__file__).parents[3]
STUDENT = {
    "method": "cl_hoi", "labelled": 0, "steps": 3, "unlabelled_per_step": 4, "warmup_steps": 1, "held_out": 0.25,
    "translator": {"queries": 4, "blocks": 1, "width": 16, "heads": 2, "ffn": 16},
    "context_stage": {"steps": 3, "pictures_per_step": 6, "warmup_steps": 1},
    "network": {"width": 16, "heads": 2, "layers": 1, "ffn": 16, "roi_size": 2},
}  # fmt: skip
TEXTS = ["a photo of", "list the interactions:"]


class Detector(Stage):
    """Only its name and what it says of its origin are looked at."""

    name = "detections"

    def __init__(self, **said) -> None:
        self.said = said

    def parameters(self):
        return {"detector": self.said.pop("detector", "digest")}

    def provenance(self):
        return self.said

    def open(self, device, shared): ...

    def compute(self, batch, columns, inputs): ...


@pytest.mark.parametrize(
    "said",
    [
        {"checkpoint": "models/detr-r50-hicodet"},
        {"checkpoint": "someone/detr_hico-det"},
        {"weights": "/weights/hico/checkpoint.pth", "config": "x.yaml"},
        {"weights": "/w/a.pth", "config": "projects/faster_rcnn_hico_det.yaml"},
        {"checkpoint": "facebook/detr-resnet-50", "hico_tuned": True},
        {"files": ["/data/coco.json", "/data/detections_hicodet.json"]},
        {"checkpoint": "models/detr-r50-vcoco"},
        {"detector": "annotations"},
    ],
)
def test_boxes_that_owe_something_to_annotated_interactions_are_known(said):
    assert tuned(Detector(**said))


@pytest.mark.parametrize(
    "said",
    [
        {"checkpoint": "facebook/detr-resnet-50", "hico_tuned": False},
        {"checkpoint": "stages/teacher/pico/detector"},
        {"weights": "/data/hico_20160224_det/weights/detr-r50-e632da11.pth", "config": "coco/frcnn.yaml"},
        {"files": ["/data/hico_20160224_det/detections_train2015.json"]},
    ],
)
def test_coco_detectors_pass_wherever_they_lie(said):
    assert tuned(Detector(**said)) is None


def configuration(tmp_path: Path, **student) -> Path:
    config = yaml.safe_load((ROOT / "configs/pico.yaml").read_text())
    config.update(cache=str(tmp_path / "cache"), runs=str(tmp_path / "runs"))
    config["dataset"].update(root=str(tmp_path / "world"), train=24, test=4)
    del config["tables"]["itm"]
    config["tables"]["image_labels"] = {"stage": "image_labels", "texts": TEXTS}
    config["tables"]["context"] = {
        "stage": "sentence_embeddings", "checkpoint": "stages/teacher/pico/itm", "question": TEXTS[0]
    }  # fmt: skip
    config["tables"]["given"] = {"stage": "ground_truth_boxes"}
    config["student"] = {**STUDENT, **student}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("leaks")
    write_world(made / "world", seed=0, train=24, test=4)
    return made


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ({"labelled": 12}, "student.labelled: 12; cl_hoi reads no annotation here, write 0"),
        ({"labelled": None}, "student.labelled: null; cl_hoi reads no annotation here, write 0"),
        ({"few_shot": {"shots": 1}}, "student.few_shot: chooses among the annotations of labelled images"),
        ({"zero_shot": "RF-UC"}, "student.zero_shot: chooses among the annotations"),
        ({"labels": "instances", "zero_shot": "RF-UC"}, "student.zero_shot: chooses among the annotations"),
        ({"labels": "ground_truth", "few_shot": {"shots": 1}}, "student.few_shot: chooses among the annotations"),
        ({"tables": {"detections": "given"}}, "allow_hoi_tuned_detector"),
        ({"method": "pair_classifier"}, "student.labelled: 0; pair_classifier learns from annotated images"),
    ],
)
def test_sections_that_mix_labels_in_are_refused(folder, monkeypatch, student, said):
    monkeypatch.chdir(ROOT)
    section = {**STUDENT, **student}
    if section["method"] != "cl_hoi":
        section = {"method": section["method"], "labelled": 0}
    path = configuration(folder)
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "student": section}))
    with pytest.raises(UserError) as caught:
        student_section(prepare(path))
    assert said in str(caught.value)


def test_labels_made_with_refused_boxes_are_refused_too(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = configuration(folder)
    config = yaml.safe_load(path.read_text())
    config["tables"]["image_labels"]["detections"] = "given"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"the boxes of given .*they are the annotated boxes"):
        student_section(prepare(path))
    config["student"]["allow_hoi_tuned_detector"] = True
    path.write_text(yaml.safe_dump(config))
    student_section(prepare(path))


def test_a_vocabulary_that_was_read_off_annotations_is_refused():
    needs = {
        labels: method_named("cl_hoi").needs(ClHoiConfig(labels=labels), None) for labels in ("teacher", "instances")
    }
    told, known = VCocoDataset(kind="v-coco", root=Path("data")), v_coco_vocabulary("trainval")
    folder_of = FolderDataset(kind="folder", root=Path("data"))
    with pytest.raises(UserError, match=r"^x.yaml: dataset.combinations: trainval; .* write all, or a vocabulary file"):
        refuse_annotated_vocabulary(told, known, "cl_hoi", needs["teacher"], "x.yaml: ")
    for dataset in (told.model_copy(update={"combinations": ROOT / "v_coco.json"}), folder_of):
        shuffled = replace(known, hois=known.hois[::-1].copy())
        with pytest.raises(UserError, match="is read off V-COCO's annotations"):
            refuse_annotated_vocabulary(dataset, shuffled, "cl_hoi", needs["teacher"], "")
    swig = SwigHoiDataset(kind="swig-hoi", root=Path("data"))
    with pytest.raises(
        UserError, match=r"dataset\.kind: swig-hoi; its list of interactions is read off its annotations"
    ):
        refuse_annotated_vocabulary(swig, hico_vocabulary(), "cl_hoi", needs["teacher"], "")
    refuse_annotated_vocabulary(told, known, "cl_hoi", needs["instances"], "")
    free = told.model_copy(update={"combinations": "all"})
    refuse_annotated_vocabulary(free, v_coco_vocabulary("all"), "cl_hoi", needs["teacher"], "")
    hico = HicoDetDataset(kind="hico-det", root=Path("data"))
    refuse_annotated_vocabulary(hico, hico_vocabulary(), "cl_hoi", needs["teacher"], "")


@pytest.mark.parametrize("labels", ["ground_truth", "instances"])
def test_controls_may_read_what_they_are_named_for(folder, monkeypatch, labels):
    monkeypatch.chdir(ROOT)
    method, config, _ = student_section(prepare(configuration(folder, labels=labels)))
    needs = method.needs(config, None)
    assert needs.all_annotations
    assert "(control: manual labels)" in method.trained_on(config, 0, 24)


def test_a_training_without_labels_is_handed_none_and_a_control_all(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    workspace = prepare(configuration(folder))
    train = workspace.dataset["train"]
    assert len(train.hoi)
    for labels in ("teacher", "instances"):
        handed = unlabelled(train, method_named("cl_hoi").needs(ClHoiConfig(labels=labels), None))
        assert len(handed.annotations.hoi) == (0 if labels == "teacher" else len(train.hoi))
        assert (handed.annotations.image_hois is None) == (labels == "teacher")
        assert not handed.labelled.any()


def test_another_interaction_question_is_another_training_and_another_stage_1(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = configuration(folder)
    asked = [TEXTS[0], "what do the people do?"]
    change = [f"tables.{name}.columns={json.dumps(asked)}" for name in ("captions", "triplets")]
    found = []
    for overrides in ([], [*change, f"tables.image_labels.texts={json.dumps(asked)}"], []):
        workspace = prepare(path, overrides)
        with choose_executor("inline", "cpu", 1) as execute:
            fill(workspace, execute, threading.Event())
        resolved = resolve(workspace, plan_all(workspace))
        data = training_set(workspace, resolved)
        found.append((resolved.fingerprint, stage_name(resolved.config, data), data.values["context"]))
    first, other, again = found
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1], "which images say the same is told by the labels"
    assert first[2] == other[2], "the description is the same"


def poisoned(workspace: Workspace) -> Workspace:
    """The workspace with a training split whose annotations say something else of every image."""
    train = workspace.dataset["train"]
    order = np.random.default_rng(1).permutation(len(train.hoi))
    other = replace(
        train,
        hoi=train.hoi[order], verb=train.verb[order], object=train.object[order],
        human_box=train.object_box, object_box=train.human_box[order],
        image_hois=np.random.default_rng(2).random((len(train), len(workspace.vocabulary))) < 0.5,
    )  # fmt: skip
    return replace(workspace, dataset={**workspace.dataset, "train": other})


@pytest.mark.slow
def test_poisoned_annotations_change_no_fingerprint_and_no_bit(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    workspace = prepare(configuration(folder))
    with choose_executor("inline", "cpu", 1) as execute:
        fill(workspace, execute, threading.Event())
    run = train_student(workspace)
    other = poisoned(workspace)
    own, theirs = (resolve(each, plan_all(each)) for each in (workspace, other))
    assert own.fingerprint == theirs.fingerprint
    handed = training_set(other, theirs)
    assert len(handed.annotations.hoi) == 0
    assert handed.annotations.image_hois is None
    assert not handed.labelled.any()
    assert len(handed.labelled) == 24
    (folder / "poisoned").mkdir()
    fit(other, theirs, folder / "poisoned", None, Watch("training"))
    for name in ("model.safetensors", "config.json"):
        assert (folder / "poisoned/checkpoint" / name).read_bytes() == (run / "checkpoint" / name).read_bytes()
    assert "The teacher&#39;s labels" in (page := (run / "report.html").read_text()) or "The teacher's labels" in page
    record = json.loads((run / "student.json").read_text())
    assert record["pictures"] == {"labelled": 0, "unlabelled": 24, "test": 4}
    # the control does notice
    controls = (replace_student(each, labels="instances") for each in (workspace, other))
    assert len({resolve(each, plan_all(each)).fingerprint for each in controls}) == 2


def replace_student(workspace: Workspace, **keys) -> Workspace:
    assert workspace.config.student is not None
    student = {**workspace.config.student, **keys}
    return replace(workspace, config=workspace.config.model_copy(update={"student": student}))


def test_link_needs_no_label_where_whole_images_teach_it(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = configuration(folder)
    config = yaml.safe_load(path.read_text())
    taught = {"method": "link", "labelled": 0, "text_labels": {"images": "unlabelled"}}
    path.write_text(yaml.safe_dump({**config, "student": taught}))
    assert student_section(prepare(path)).data.labelled == 0
    path.write_text(yaml.safe_dump({**config, "student": {**taught, "text_labels": {"images": "labelled"}}}))
    with pytest.raises(UserError, match="labelled: 0; link learns from annotated images"):
        student_section(prepare(path))
    path.write_text(yaml.safe_dump({**config, "student": {**taught, "validation": 0.2}}))
    with pytest.raises(UserError, match="validation: chooses among the annotations of labelled images"):
        student_section(prepare(path))
