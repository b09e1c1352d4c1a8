"""``hoi-distill init``: from a folder of images to a configuration that a workspace takes."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hoi_distill.pipeline.own_data import start as starting
from hoi_distill.pipeline.own_data.look import Machine, cached_models, look_at
from hoi_distill.pipeline.own_data.start import Given, start_project
from hoi_distill.pipeline.training.annotations import labels_of
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.storage.errors import UserError

PHOTOS = Path(__file__).parents[3] / "docs/photos"


@pytest.fixture
def here(tmp_path, monkeypatch):
    shutil.copytree(PHOTOS, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starting, "this_machine", lambda: Machine(0, (), ()))  # whatever lies on the developer's own
    return tmp_path


OWN = Given(*(Path("photos") / name for name in ("annotations.csv", "verbs.txt", "objects.txt", "boxes.json")))


def test_a_project_of_photographs_is_one_that_can_be_planned_and_trained(here):
    lines = start_project(Path("mine"), Path("photos"), OWN, 0.2)
    workspace = prepare(Path("mine/mine.yaml"))
    assert list(workspace.nodes) == ["detections", "features", "itm", "text"]
    assert [len(workspace.dataset[split]) for split in ("train", "test")] == [7, 1]
    method, config, data = student_section(workspace)
    distinct = workspace.images.distinct_records("train")
    labels = labels_of(workspace, data, method, method.needs(config, workspace.vocabulary), distinct)
    assert labels.labelled.sum() == 4  # the images that the annotations name
    config = method.sized(config, 4, 3)
    assert config.steps == 150
    assert method.distilled(config, 4, 3) == {"itm_on: both": 7}  # the teacher's scores are used
    assert lines[0] == "8 images in photos (8 .jpg; 640 x 344 to 640 x 453)"
    assert lines[1].startswith("9 annotated interactions; 4 images to train on, 1 to test on, 3 without")
    commands = [line.split()[1] for line in lines if line.startswith("  hoi-distill")]
    assert commands == ["plan", "train", "predict"]


def test_the_example_of_boxes_is_a_file_of_boxes(here):
    start_project(Path("mine"), Path("photos"), OWN, 0.2)
    example = Path("mine/boxes.example.json")
    start_project(Path("other"), Path("photos"), OWN._replace(boxes=example), 0.2)
    assert {entry["category_id"] for entry in json.loads(example.read_text())} == {1, 2}  # person, bicycle


@pytest.mark.parametrize("name", ["2024", "null"])
def test_names_that_yaml_or_a_shell_would_read_otherwise_are_kept(here, name):
    shutil.copytree(PHOTOS, "it's photos #1")
    lines = start_project(Path(name), Path("it's photos #1"), Given(None, None, None, None), 0.2)
    assert prepare(Path(name, f"{name}.yaml")).config.name == name
    (typed,) = (line for line in lines if line.startswith("  hoi-distill plan"))
    assert shlex.split(typed)[:3] == ["hoi-distill", "plan", f"{name}/{name}.yaml"]


def test_images_alone_are_a_project_too(here):
    lines = start_project(Path("mine"), Path("photos"), Given(), 0.2)
    workspace = prepare(Path("mine/mine.yaml"))
    assert list(workspace.nodes) == ["features", "itm", "text"]
    assert workspace.vocabulary == hico_vocabulary()
    assert [line.split()[1] for line in lines if line.startswith("  hoi-distill")] == ["plan", "run", "page"]


def test_what_lies_on_the_machine_is_used(here, monkeypatch):
    monkeypatch.setattr(starting, "this_machine", lambda: Machine(2, ("org/blip",), ("org/detr",)))
    start_project(Path("mine"), Path("photos"), OWN._replace(boxes=None), 0.2)
    config = yaml.safe_load(Path("mine/mine.yaml").read_text())
    assert config["workers"] == {"executor": "ray", "count": 2}
    assert config["tables"]["detections"] == {"stage": "detector", "checkpoint": "org/detr", "gpus": 1}
    assert {table.get("checkpoint") for table in config["tables"].values()} == {"org/blip", "org/detr"}


def test_without_a_detector_the_annotated_boxes_stand_in(here):
    lines = start_project(Path("mine"), Path("photos"), OWN._replace(boxes=None), 0.2)
    config = yaml.safe_load(Path("mine/mine.yaml").read_text())
    assert config["tables"]["detections"] == {"stage": "ground_truth_boxes"}
    assert any("the annotated boxes stand in" in line for line in lines)


def test_checkpoints_are_found_in_the_hubs_cache_if_they_are_whole(tmp_path, monkeypatch):
    for name, architecture, files in (
        ("org--whole", "BlipForImageTextRetrieval", ["model.safetensors"]),
        ("org--begun", "BlipForImageTextRetrieval", []),
        ("org--other", "BertModel", ["model.safetensors"]),
    ):
        snapshot = tmp_path / f"models--{name}" / "snapshots/0"
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        for file in files:
            (snapshot / file).touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cached_models("blip_itm") == ("org/whole",)
    assert cached_models("detector") == ()


def test_broken_images_are_named_and_do_not_refuse_the_others(here):
    (here / "photos/cut.jpg").write_bytes((here / "photos/bus.jpg").read_bytes()[:20000])
    (here / "photos/text.png").write_text("no image")
    album = look_at(Path("photos"))
    assert set(album.broken) == {"cut.jpg", "text.png"}
    assert album.suffixes == {".jpg": 9, ".png": 1}
    lines = start_project(Path("mine"), Path("photos"), OWN, 0.2)
    assert sum(line.startswith("  cannot be read: ") for line in lines) == 2


WRONG = [
    ({"project": "my project"}, "my project: a project's name has letters"),
    ({"images": "nowhere"}, "nowhere: no such folder of images"),
    ({"images": "empty"}, "--images empty: no images in it"),
    ({"images": "broken"}, "--images broken: none of 1 images can be read; the first, a.jpg: "),
    ({"verbs": None}, "--objects: needs --verbs too"),
    ({"objects": None}, "--verbs: needs --objects too"),
    ({"annotations": "photos/gone.csv"}, "photos/gone.csv: no such file; annotations are a CSV table"),
    ({"annotations": "photos/README.md"}, "photos/README.md: not readable as JSON"),
    ({"annotations": "test.csv"}, "test.csv: no training image"),
    ({"verbs": "few.txt"}, "photos/annotations.csv: row 4: unknown verb 'wave_at'; add it to the verbs"),
    ({"verbs": "less.txt"}, "photos/annotations.csv: row 7: watch boat is none of the interactions; add boat to the verb's"),
    ({"boxes": "photos/gone.json"}, "photos/gone.json: cannot be read"),
    ({"boxes": "photos/annotations.csv"}, "photos/annotations.csv: not readable as JSON"),
    ({"boxes": "logits.json"}, "logits.json: entry 1 .*: score is not in 0 to 1, give a probability"),
    ({"boxes": "others.json"}, "others.json: none of its images"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_a_wrong_call_is_one_line_and_writes_nothing(here, given, said):
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken/a.jpg").write_text("no image")
    table = (here / "photos/annotations.csv").read_text().splitlines()
    (here / "test.csv").write_text("\n".join([table[0], table[-1]]))
    (here / "few.txt").write_text("ride")
    (here / "less.txt").write_text("ride\nwave at\nwatch: bus")
    entry = {"image_id": "bus.jpg", "category_id": 1, "bbox": [0, 0, 9, 9], "score": 3.2}
    (here / "logits.json").write_text(json.dumps([entry]))
    (here / "others.json").write_text(json.dumps([{**entry, "image_id": "train.jpg"}]))
    said_of = {**OWN._asdict(), **{k: v and Path(v) for k, v in given.items() if k in OWN._fields}}
    project, images = Path(given.get("project", "mine")), Path(given.get("images", "photos"))
    with pytest.raises(UserError, match=said) as refusal:
        start_project(project, images, Given(**said_of), 0.2)
    assert "\n" not in str(refusal.value)
    assert not project.exists()


def test_a_project_that_is_there_is_kept(here):
    start_project(Path("mine"), Path("photos"), OWN, 0.2)
    Path("mine/mine.yaml").write_text("changed: true\n")
    with pytest.raises(UserError, match=r"mine/mine\.yaml: is there already"):
        start_project(Path("mine"), Path("photos"), OWN, 0.2)
    assert Path("mine/mine.yaml").read_text() == "changed: true\n"


def test_a_detector_of_coco_cannot_serve_objects_of_ones_own(here):
    Path("photos/objects.txt").write_text("kite\nhang glider\n")
    Path("photos/verbs.txt").write_text("fly\n")
    given = OWN._replace(annotations=None, boxes=None, detector="org/detr")
    with pytest.raises(UserError, match=r"--detector org/detr: detectors know COCO's 80 objects, not hang_glider"):
        start_project(Path("mine"), Path("photos"), given, 0.2)


def test_an_image_that_exif_turns_is_annotated_as_it_stands(here):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save("photos/turned.jpg", exif=exif)
    rows = Path("photos/annotations.csv").read_text() + "turned.jpg,ride,bicycle,0,0,40,30,5,20,35,60,train\n"
    Path("photos/annotations.csv").write_text(rows)
    start_project(Path("mine"), Path("photos"), OWN, 0.2)
    assert len(prepare(Path("mine/mine.yaml")).dataset["train"]) == 8
