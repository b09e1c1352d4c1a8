"""What reruns when something changes: one test for every row of the design's table, counting cells by table."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from hoi_distill.pipeline.graph import registry
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.teacher.blip import stages as blip
from hoi_distill.storage.check import check_table
from tests.fixtures.line import IMAGES, TRAIN
from tests.fixtures.object_stores import stored
from tests.fixtures.toy_stages import Album, flip_byte
from tests.fixtures.toy_stages import computed as toys_computed

OF_EVERY_IMAGE = {"detections": 1, "sized": 1, "features": 2, "itm": 8, "captions": 2, "triplets": 2}


def test_nothing_changes(line):
    student = line.student()
    assert line.computed() == {}
    assert line.student() == student


def test_dataset_moved_and_touched(line):
    student = line.student()
    moved = line.root / "elsewhere" / "pictures"
    moved.parent.mkdir()
    shutil.move(line.root / "world", moved)
    for file in moved.rglob("*"):
        os.utime(file, (time.time(), time.time()))
    line.config["dataset"]["root"] = str(moved)
    line.table("detections", path=[str(moved / f"detections_{split}2015.json") for split in ("train", "test")])
    assert line.computed() == {}
    assert line.student() == student


def test_files_renamed(tmp_path, calls):
    album = Album(tmp_path)
    assert toys_computed(album.workspace()) == {"scores": 18, "signs": 18}
    for number, file in enumerate(sorted(album.folder.iterdir(), reverse=True)):
        file.rename(album.folder / f"renamed-{number}.png")
    assert toys_computed(album.workspace()) == {}


def test_one_images_bytes(line):
    student = line.student()
    image = sorted((line.root / "world/images/train2015").iterdir())[3]
    Image.open(image).transpose(Image.Transpose.ROTATE_180).save(image, quality=90)
    assert line.computed() == OF_EVERY_IMAGE
    assert line.student() != student


def test_more_images(line):
    """A larger world, drawn elsewhere: the images that it shares with the smaller one are known by their bytes."""
    line.config["dataset"].update(root=str(line.root / "larger"), train=TRAIN + 2)
    for table in line.config["tables"].values():
        if table["stage"] == "detections_file":
            table["path"] = [path.replace("world", "larger") for path in table["path"]]
    assert line.computed() == {name: 2 * cells for name, cells in OF_EVERY_IMAGE.items()}


def test_ten_more_prompts(line):
    line.table("itm", columns=list(pico_vocabulary().prompts()[:18]))
    assert line.computed() == {"itm": 10 * IMAGES}


def test_another_setups_prompts_retrain_nothing(line):
    student = line.student()
    line.table("itm", columns=list(pico_vocabulary().prompts()[:18]))
    line.computed()
    line.table("itm", columns=list(pico_vocabulary().prompts()[:8]))
    assert line.computed() == {}
    assert line.student() == student


def test_another_caption_question(line):
    student = line.student()
    for name in ("captions", "triplets"):
        line.table(name, columns=["a photo of", "is there anybody ?", "riding a"])
    assert line.computed() == {"captions": IMAGES, "triplets": IMAGES}
    assert line.student() == student


def test_a_box_in_the_detections_file(line):
    student = line.student()
    file = line.root / "world/detections_train2015.json"
    found = json.loads(file.read_text())
    name = found[0]["image_id"]
    found[0]["bbox"][2] -= 0.5
    file.write_text(json.dumps(found))
    assert name.endswith("1.jpg")
    assert line.computed() == {"detections": 1, "sized": 1}
    assert line.student() != student  # image 1 is a labelled one


@pytest.mark.parametrize(
    ("table", "keys", "field"),
    [
        ("itm", {"token_mode": "enc"}, "token_mode: cls -> enc"),
        ("itm", {"dtype": "bfloat16"}, "dtype: float32 -> bfloat16"),
        ("features", {"dtype": "bfloat16"}, "dtype: float32 -> bfloat16"),
        ("features", {"fused_attention": True}, "attention: None -> fused"),
        ("features", {"codec": "int8"}, "codec"),
    ],
)
def test_what_one_table_declares(line, table, keys, field):
    line.table(table, **keys)
    reasons = [reason.text for reason in line.plan()[table].reasons]
    assert len(reasons) == 1
    assert field in reasons[0]
    cells = {"itm": 8, "features": 2}[table] * IMAGES
    assert line.computed() == {table: cells}


def other_teacher(folder: Path, source: Path, change) -> str:
    """A copy of a checkpoint with something changed."""
    from transformers import BlipForImageTextRetrieval

    shutil.copytree(source, folder)
    model = BlipForImageTextRetrieval.from_pretrained(folder)
    change(model)
    model.save_pretrained(folder)
    return str(folder)


def retrain_head(model) -> None:
    model.itm_head.bias.data += 1.0


def retrain_tower(model) -> None:
    model.vision_model.post_layernorm.bias.data += 1.0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (retrain_head, {"itm": 8 * IMAGES, "text": 58}),
        (retrain_tower, {"itm": 8 * IMAGES, "text": 58, "features": 2 * IMAGES}),
    ],
    ids=["head", "tower"],
)
def test_teacher_weights(line, checkpoints, change, expected):
    """Another head keeps the feature maps; the captioner is a checkpoint of its own. What reads detections stays."""
    weights = other_teacher(line.root / "teacher", checkpoints.itm, change)
    for name in ("itm", "features", "text"):
        line.table(name, checkpoint=weights)
    assert line.computed() == expected


def test_same_weights_elsewhere(line, checkpoints):
    shutil.copytree(checkpoints.itm, line.root / "teacher")
    for name in ("itm", "features", "text"):
        line.table(name, checkpoint=str(line.root / "teacher"))
    assert line.computed() == {}


def test_image_size(line, checkpoints):
    """Another size is another preprocessing, in the tables that declare it; text embeddings know only the teacher."""
    teacher = line.root / "teacher"
    shutil.copytree(checkpoints.itm, teacher)
    file = teacher / "processor_config.json"
    config = file.read_text()
    assert '"height": 64' in config
    file.write_text(config.replace('"height": 64', '"height": 48').replace('"width": 64', '"width": 48'))
    for name in ("itm", "features"):
        line.table(name, checkpoint=str(teacher))
    empty = {name: made.counts["empty"] for name, made in line.plan().items() if made.counts["empty"]}
    assert empty == {"itm": 8 * IMAGES, "features": 2 * IMAGES}


@pytest.mark.parametrize("keys", [{"itm_weight": 0.5}, {"learning_rate": 2e-3}, {"seed": 1}])
def test_student_parameters(line, keys):
    training, evaluation = line.student()
    line.config["student"].update(keys)
    assert line.computed() == {}
    again = line.student()
    assert again[0] != training
    assert again[1] != evaluation


def test_bookkeeping_retrains_nothing(line):
    student = line.student()
    line.config["student"].update({"log_every": 3, "save_every": 7})
    assert line.student() == student


def test_refactoring(line, monkeypatch):
    """Another class of another name, module and code, which declares the same: fingerprints are declared."""

    class Matcher(blip.BlipItm):
        """Renamed, moved, commented."""

        def compute(self, batch, columns, inputs):
            answers = super().compute(batch, columns, inputs)
            return dict(reversed(answers.items()))

    monkeypatch.setattr(registry, "Matcher", Matcher, raising=False)
    monkeypatch.setitem(registry.STAGES, "blip_itm", "hoi_distill.pipeline.graph.registry:Matcher")
    line.config["tables"]["itm"]["memory_mib"] = 8
    line.config["tables"]["features"]["batch_size"] = 4
    assert line.computed() == {}


def test_declared_version_with_equal_values(line, monkeypatch):
    """Captions are computed again under the new version; they say the same, so nothing below them is."""
    monkeypatch.setattr(blip.BlipCaptions, "version", 2)
    assert line.computed() == {"captions": 2 * IMAGES}


def test_declared_version_with_other_values(line, monkeypatch):
    """One batch's captions differ under the new version: the triplets of those rows are read again."""
    real, changed = blip.cells, []

    def cells(texts, scores):
        made = real(texts, scores)
        if changed:
            return made
        changed.append(len(made))
        text = pa.array([f"{words} person riding bicycle" for words in made.field("text").to_pylist()])
        return pa.StructArray.from_arrays([text, made.field("score")], fields=list(made.type))

    monkeypatch.setattr(blip.BlipCaptions, "version", 2)
    monkeypatch.setattr(blip, "cells", cells)
    assert line.computed() == {"captions": 2 * IMAGES, "triplets": 8}
    assert changed == [8]


@pytest.mark.parametrize(("name", "cells"), [("captions", 2 * 8), ("itm", 8 * 8), ("detections", IMAGES)])
def test_a_shards_bytes(line, name, cells):
    """Its cells once check has found it, and nothing below; the student stands."""
    student = line.student()
    table = line.plan()[name].table
    flip_byte(sorted(stored(table.dir / "shards").iterdir())[0])
    assert line.computed() == {}
    assert [bad.cells for bad in check_table(table)] == [cells]
    assert [(reason.text, reason.cells) for reason in line.plan()[name].reasons] == [("shard lost", cells)]
    assert line.computed() == {name: cells}
    assert line.student() == student


def test_a_repaired_shard_whose_last_bits_moved(line, monkeypatch):
    """A recomputed cell keeps its first value digest, so a GPU that rounds otherwise today reruns nothing below."""
    student = line.student()
    table = line.plan()["captions"].table
    flip_byte(min(stored(table.dir / "shards").iterdir()))
    check_table(table)
    real = blip.cells
    monkeypatch.setattr(blip, "cells", lambda texts, scores: real([f"{t} a dog" for t in texts], scores))
    assert line.computed() == {"captions": 2 * 8}
    assert line.computed() == {}
    assert line.student() == student
