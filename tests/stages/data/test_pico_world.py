"""A pico world on disk: HICO-DET's layout, the same bytes for the same seed, the promised long tail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.data.object_detections import load_detections
from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.data.pico.render import RENDERER_VERSION, render_scene
from hoi_distill.stages.data.pico.world import TEMPER, pico_vocabulary, scene_seed, write_world
from hoi_distill.storage.errors import UserError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("pico") / "world", train=24, test=12)


def _files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes_another_seed_other_bytes(world, tmp_path):
    again = write_world(tmp_path / "again", train=24, test=12)
    assert _files(again) == _files(world)
    other = write_world(tmp_path / "other", seed=1, train=24, test=12)
    assert _files(other)["anno_bbox.mat"] != _files(world)["anno_bbox.mat"]


@pytest.mark.slow
def test_processes_change_no_byte(tmp_path):
    one = write_world(tmp_path / "one", train=1000, test=2, processes=1)
    two = write_world(tmp_path / "two", train=1000, test=2, processes=2)
    assert _files(one) == _files(two)


def test_a_second_call_writes_nothing(world):
    before = {p: p.stat().st_mtime_ns for p in world.rglob("*")}
    started = time.process_time()
    write_world(world, train=24, test=12)
    assert time.process_time() - started < 0.1
    assert {p: p.stat().st_mtime_ns for p in world.rglob("*")} == before


@pytest.mark.parametrize(
    ("asked", "change"),
    [
        ({"train": 4, "test": 3}, "train: 6 -> 4"),
        ({"train": 7, "test": 3}, "train: 6 -> 7"),
        ({"train": 6, "test": 4}, "test: 3 -> 4"),
        ({"train": 4, "test": 2, "seed": 1}, "seed: 0 -> 1, train: 6 -> 4, test: 3 -> 2"),
    ],
)
def test_a_world_of_other_parameters_is_refused_and_kept(tmp_path, asked, change):
    root = write_world(tmp_path / "w", train=6, test=3)
    (root / "notes.txt").write_text("precious")
    before = _files(root)
    with pytest.raises(UserError) as error:
        write_world(root, **asked)
    line = str(error.value)
    assert line.startswith(f"{root}: ")
    assert f"({change})" in line
    assert "another dataset.root, or remove the folder" in line
    assert "\n" not in line
    assert _files(root) == before
    assert os.listdir(tmp_path) == ["w"]


def test_a_world_of_an_older_renderer_is_refused_and_kept(tmp_path, monkeypatch):
    root = write_world(tmp_path / "w", train=2, test=1)
    before = _files(root)
    monkeypatch.setattr("hoi_distill.stages.data.pico.world.RENDERER_VERSION", RENDERER_VERSION + 1)
    with pytest.raises(UserError, match=f"renderer: {RENDERER_VERSION} -> {RENDERER_VERSION + 1}.*remove the folder"):
        write_world(root, train=2, test=1)
    assert _files(root) == before


RENDERING = """
import sys
from hoi_distill.stages.data.pico.world import write_world
write_world(sys.argv[1], train=500, test=1)
"""


def test_a_world_killed_while_it_is_rendered_is_completed(tmp_path):
    """What the dead left is swept once it is old; folders of the user that look alike stay."""
    root = tmp_path / "w"
    writer = subprocess.Popen([sys.executable, "-c", RENDERING, str(root)], cwd=Path(__file__).parents[3])
    while len(list(tmp_path.glob(".w-rendering-*/images/train2015/*.jpg"))) < 3:
        assert writer.poll() is None
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    assert not root.exists()
    (tmp_path / ".w-backup").mkdir()
    (tmp_path / ".w-backup" / "notes.txt").write_text("precious")
    for folder in tmp_path.iterdir():
        os.utime(folder, (0, 0))
    write_world(root, train=6, test=3)
    assert _files(root) == _files(write_world(tmp_path / "quiet", train=6, test=3))
    assert sorted(os.listdir(tmp_path)) == [".w-backup", "quiet", "w"]
    assert os.listdir(tmp_path / ".w-backup") == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "w").mkdir()
    assert (write_world(tmp_path / "w", train=2, test=1) / "world.json").is_file()


def test_a_folder_of_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "anno_bbox.mat").write_bytes(b"precious")
    with pytest.raises(UserError, match="not empty and no pico world"):
        write_world(tmp_path, train=2, test=1)
    assert os.listdir(tmp_path) == ["anno_bbox.mat"]


def test_nothing_is_left_of_a_world_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("hoi_distill.stages.data.pico.world.write_annotations", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_world(tmp_path / "w", train=2, test=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_written_is_what_is_read_back(world, split):
    read = load_hico_det(world, split)
    vocabulary = pico_vocabulary()
    assert read.vocabulary == vocabulary
    for i in range(len(read)):
        scene = render_scene(scene_seed(0, split, i), temper=TEMPER[split])
        grown = np.concatenate([np.floor(scene.boxes[:, :2]), np.ceil(scene.boxes[:, 2:])], axis=1)
        want = {
            (*grown[human], *grown[obj], HOIS.index((verb, vocabulary.objects[scene.objects[obj]])))
            for human, obj, verbs in scene.pairs
            for verb in verbs
        }
        rows = read.pairs(i)
        got = {
            (*h, *o, int(hoi))
            for h, o, hoi in zip(read.human_box[rows], read.object_box[rows], read.hoi[rows], strict=True)
        }
        assert got == want
        assert read.image_hois is not None
        assert set(np.flatnonzero(read.image_hois[i])) == {row[-1] for row in want}
        assert (read.width[i], read.height[i]) == (128, 128)
        with Image.open(read.path[i]) as image:
            assert np.abs(np.asarray(image, np.int16) - scene.image).mean() < 4
    assert np.array_equal(read.vocabulary.hois[read.hoi], np.stack([read.verb, read.object], axis=1))


def test_detections_are_the_true_boxes_with_a_detectors_faults(world):
    read = load_hico_det(world, "train")
    found = load_detections(world / "detections_train2015.json", read)
    true = missed = named = 0
    for i in range(len(read)):
        scene = render_scene(scene_seed(0, "train", i))
        boxes, labels = found.boxes[found.of(i)], found.labels[found.of(i)]
        for box, label in zip(scene.boxes, scene.objects, strict=True):
            overlap = _iou(box, boxes)
            true += 1
            missed += not (overlap > 0.5).any()
            named += bool(((overlap > 0.5) & (labels == label)).any())
    assert len(found.scores) - (true - missed) > 0
    assert missed < 0.2 * true
    assert 0.8 * true < named


def _iou(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = np.clip(high - low, 0, None).prod(1)
    return both / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - both)


def test_marker_names_seed_counts_and_versions(world):
    marker = json.loads((world / "world.json").read_text())
    assert marker["seed"] == 0
    assert (marker["train"], marker["test"]) == (24, 12)
    assert {"renderer", "world"} <= set(marker)


def test_the_tail_is_long_in_training_and_covered_in_test():
    """Of the default world: at least 15 classes under ten pairs in the first 500 training images, none in test."""

    def counts(split, images):
        out = np.zeros(len(HOIS), int)
        for i in range(images):
            scene = render_scene(scene_seed(0, split, i), temper=TEMPER[split])
            names = [pico_vocabulary().objects[label] for label in scene.objects]
            for _, obj, verbs in scene.pairs:
                for verb in verbs:
                    out[HOIS.index((verb, names[obj]))] += 1
        return out

    assert (counts("train", 500) < 10).sum() >= 15
    assert counts("test", 1000).min() >= 10


def test_a_small_world_takes_under_a_second(tmp_path):
    started = time.process_time()
    write_world(tmp_path / "small", train=24, test=12)
    assert time.process_time() - started < 1
