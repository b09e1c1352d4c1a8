"""VLM-HOI through the commands: what retrains, what is never asked for, and a student that predicts by itself."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoTokenizer, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

from hoi_distill.pipeline.config.schema import load_config
from hoi_distill.pipeline.config.student import read_section
from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.planning.plan import plan
from hoi_distill.pipeline.prediction import predict_images
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.request import Resolved, resolve
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.pico.world import write_world
from hoi_distill.stages.data.v_coco.loader import v_coco_vocabulary
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.student.methods.vlm_hoi.config import network_config
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import columns_for
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren
from hoi_distill.storage.errors import UserError
from tests.fixtures.v_coco_files import official, write
from tests.fixtures.vlm_hoi_world import DETECTOR, MODEL

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config(tmp_path_factory, blip_config) -> Path:
    root = tmp_path_factory.mktemp("vlm_hoi")
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "stages/teacher/pico/itm")
    teacher = str(root / "teacher")
    BlipForImageTextRetrieval(blip_config(vocab_size=len(tokenizer), initializer_range=0.1)).save_pretrained(teacher)
    BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), tokenizer).save_pretrained(teacher)
    write_world(root / "world", seed=0, train=24, test=4)
    document = {
        "name": "vlm-hoi",
        "cache": str(root / "cache"),
        "runs": str(root / "runs"),
        "dataset": {"kind": "pico", "root": str(root / "world"), "seed": 0, "train": 24, "test": 4},
        "tables": {
            "itm": {
                "stage": "blip_itm", "checkpoint": teacher, "columns": ["prompts", "verb_prompts"], "token_mode": "cls",
            },
        },
        "student": {
            "method": "vlm_hoi", "labelled": 12, "tables": {"text": None, "captions": None}, "model": MODEL, "start": DETECTOR,
            "allow_random_decoder": True, "labelled_per_step": 4, "unlabelled_per_step": 4, "epochs": 1,
            "pictures": {"short_sides": [64], "max_side": 64, "test_short_side": 64, "crop": 0},
        },
    }  # fmt: skip
    path = root / "vlm_hoi.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def resolved(workspace: Workspace) -> Resolved:
    return resolve(workspace, plan(workspace.nodes, workspace.sources, workspace.cache))


def test_a_line_from_images_to_predictions(config, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="table itm: no cell is filled; fill it with: hoi-distill run"):
        resolved(prepare(config))
    with choose_executor("inline", "cpu", 1) as execute:
        fill(prepare(config), execute, threading.Event())

    def empty(workspace: Workspace) -> int:
        return sum(
            table_plan.counts["empty"]
            for table_plan in plan(workspace.nodes, workspace.sources, workspace.cache).values()
        )

    # What is distilled retrains the student and asks the teacher nothing.
    first = resolved(prepare(config))
    assert (len(first.records), first.test, first.text) == (12, {}, None)
    names = {first.fingerprint}
    for change in ("itm.weight=0", "itm.weight=0.5", "itm.family=F4", "itm.prompt=verb", "f7.weight=1", "loss.verb=1"):
        workspace = prepare(config, [f"student.{change}"])
        names.add(resolved(workspace).fingerprint)
        assert empty(workspace) == 0
    assert len(names) == 7
    assert resolved(prepare(config, ["student.loader_workers=2"])).fingerprint == first.fingerprint
    assert resolved(prepare(config, ["student.itm.weight=0"])).train == {}
    assert len(resolved(prepare(config, ["student.f7.weight=1"])).records) == 24
    with pytest.raises(UserError, match=r"tables.itm.columns: the student needs 'a photo of a .*'; add it"):
        resolved(prepare(config, ["student.itm.prompt=object"]))

    # Random teachers may well be worse than chance, which is refused: here none is asked.
    workspace = prepare(config, ["student.itm.weight=0"])
    run = train_student(workspace)
    record = json.loads((run / "student.json").read_text())
    assert (record["method"], record["start"]["from"]) == ("vlm_hoi", DETECTOR)
    assert record["start"]["found"]
    assert record["start"]["missing"]
    assert "Trained on the annotated pairs of 12 images." in (run / "report.html").read_text()
    before = (run / "checkpoint/model.safetensors").stat().st_mtime_ns
    assert train_student(prepare(config, ["student.itm.weight=0"])) == run
    assert (run / "checkpoint/model.safetensors").stat().st_mtime_ns == before

    # Prediction needs neither cache nor teacher, and images of any size.
    images = sorted((config.parent / "world/images/test2015").iterdir())[:2]
    monkeypatch.setattr("hoi_distill.pipeline.detector.build_stage", None)
    assert predict_images(run / "checkpoint", images, tmp_path / "out", threshold=0.1) == {}
    rows = pq.read_table(tmp_path / "out/detections.parquet").to_pylist()
    assert {row["image_id"] for row in rows} <= {image.name for image in images}
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    with pytest.raises(UserError, match="takes no boxes"):
        predict_images(run / "checkpoint", images, tmp_path / "out", detections=config, threshold=0.1)


@pytest.mark.parametrize("name", ["hico_det", "v_coco", "pico"])
def test_published_configurations_are_sound(name):
    """Checked without the dataset: keys, values, the network they describe, and the columns that they ask for."""
    path = ROOT / f"configs/{name}_vlm_hoi.yaml"
    document = load_config(path)
    words = v_coco_vocabulary() if name == "v_coco" else hico_vocabulary()
    assert document.student is not None
    method, config, _ = read_section(document.student, "student.")
    shape = network_config(config, words)
    assert (shape.queries, shape.missing_object, shape.shared_fusion) == {
        "hico_det": (64, False, False), "v_coco": (100, True, True), "pico": (16, False, False)
    }[name]  # fmt: skip
    asked = set(columns_for(words, "full", shape.missing_object).prompts)
    named = {"prompts": words.prompts(), "verb_prompts": words.verb_prompts()}
    columns = document.tables["itm"].parameters()["columns"]
    there = {prompt for each in ([columns] if isinstance(columns, str) else columns) for prompt in named[each]}
    assert asked <= there
    assert method.name == "vlm_hoi"
    with torch.device("meta"):
        backbone = Muren(shape).backbone
    learning = sum(each.numel() for each in backbone.parameters() if each.requires_grad)
    assert (learning == 0) == (name == "v_coco")  # its recipe freezes the CNN


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("student.itm.alpa=1", "student.itm.alpa: unknown key; did you mean alpha?"),
        ("student.model.querys=3", "student.model.querys: unknown key; did you mean queries?"),
        ("student.model.verbs=3", "student.model.verbs: decided by the vocabulary"),
        ("student.f7.family=F1", "student.f7.family"),
        ("student.itm.family=F9", "student.itm.family"),
        ("student.method=vlm_hio", "no method 'vlm_hio'; there are pair_classifier, vlm_hoi"),
        ("student.start=nowhere", "student.start: nowhere: no weights there"),
        ("student.pictures.flip=2", "student.pictures.flip: expected at most 1; got 2"),
        ("student.itn_on=none", "student.itn_on: unknown key"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(config, change, said):
    def looked_at() -> None:
        workspace = prepare(config, [change])
        network_config(student_section(workspace)[1], workspace.vocabulary)
        resolved(workspace)

    with pytest.raises(UserError) as refusal:
        looked_at()
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_v_coco_has_verbs_without_objects_and_is_judged_officially(tmp_path, capsys):
    """From files to figures, no score asked: images, split by split, are those of the tests of its loader."""
    root = tmp_path / "v_coco"
    for split in ("trainval", "test"):
        write(root, official(), f"vcoco_{split}.json", ids=f"vcoco_{split}.ids")
    (root / "train2014").mkdir()
    for number in (7, 9):
        Image.new("RGB", (100, 80), (number, 9, 200)).save(root / f"train2014/COCO_train2014_{number:012}.jpg")
    document = {
        "name": "v-coco", "cache": str(tmp_path / "cache"), "runs": str(tmp_path / "runs"),
        "dataset": {"kind": "v-coco", "root": str(root)},
        "tables": {"boxes": {"stage": "ground_truth_boxes"}},
        "student": {
            "method": "vlm_hoi", "labelled": None, "tables": {"text": None, "captions": None}, "model": MODEL,
            "start": DETECTOR, "allow_random_decoder": True, "itm": {"weight": 0}, "labelled_per_step": 2, "epochs": 2,
            "scoring": {"top": 200, "nms_within": "object"},
            "pictures": {"short_sides": [64], "max_side": 96, "test_short_side": 64, "crop": 0},
        },
    }  # fmt: skip
    path = tmp_path / "v_coco.yaml"
    path.write_text(yaml.safe_dump(document))
    run = train_student(prepare(path))
    assert "25 roles" in capsys.readouterr().out
    assert json.loads((run / "official.json").read_text())["dataset"] == "v-coco"
    shape = json.loads((run / "checkpoint/config.json").read_text())["shape"]
    assert (shape["verbs"], shape["missing_object"], shape["shared_fusion"]) == (29, True, True)
    assert pq.read_table(run / "detections.parquet").num_rows > 0
