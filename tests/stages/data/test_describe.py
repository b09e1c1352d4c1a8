"""What is on disk beside what is published."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hoi_distill.pipeline.cli import app
from hoi_distill.stages.data.describe import describe
from hoi_distill.storage.errors import UserError
from tests.fixtures.hico_forms import images, instances, ppdm, save, write_mat


def _counts(split):
    return {count.name: (count.found, count.published, count.agrees) for count in split.counts}


def test_counts_stand_beside_the_published_ones(tmp_path):
    write_mat(tmp_path)
    train, test = describe("hico-det", tmp_path).splits
    assert _counts(train)["images"] == (4, 38_118, False)
    assert _counts(train)["images with pairs"] == (3, 37_633, False)
    assert _counts(train)["pairs"] == (6, 117_871, False)
    assert _counts(test)["interactions"] == (600, 600, True)
    assert _counts(test)["interactions with pairs"] == (3, 600, False)
    assert _counts(train)["rare interactions"] == (600, 138, False)


def test_what_is_missing_is_named(tmp_path):
    save(tmp_path / "instances_test2015.json", instances("test"))
    train, test = describe("hico-det", tmp_path).splits
    assert train.counts == []
    assert "instances_train2015.json" in train.missing[0]
    assert any("anno.mat" in line for line in test.missing)
    assert any("the folder of 4 images" in line for line in test.missing)
    folder = tmp_path / "images/test2015"
    folder.mkdir(parents=True)
    for p in images("test")[1:]:
        Image.new("RGB", (64, 48)).save(folder / p.file_name)
    (test,) = describe("hico-det", tmp_path, ["test"]).splits
    assert "1 of 4 images: HICO_test2015_00000001.jpg" in test.missing


def test_bad_entries_are_told_and_left_out(tmp_path):
    document = instances("test")
    document["annotation"][0]["boxes_h"][0] = [1, 1, 99, 9]
    (test,) = describe("hico-det", save(tmp_path / "x.json", document), ["test"]).splits
    assert _counts(test)["pairs"][0] == 5
    assert "1 bad entries" in test.problems[0]
    assert "human box (1, 1, 99, 9)" in test.problems[0]


def test_images_of_other_sizes_and_boxes_beyond_them_are_suspicious(tmp_path):
    folder = tmp_path / "images/test2015"
    folder.mkdir(parents=True)
    for p in images("test"):
        Image.new("RGB", (63, 48)).save(folder / p.file_name)
    save(tmp_path / "instances_test2015.json", instances("test"))
    (test,) = describe("hico-det", tmp_path, ["test"]).splits
    assert "4 of 4 images opened are not of the annotated size" in test.problems[0]
    assert "63 x 48, annotated 64 x 48" in test.problems[0]
    (tmp_path / "instances_test2015.json").unlink()
    save(tmp_path / "test_hico.json", ppdm("test"))
    (test,) = describe("hico-det", tmp_path, ["test"]).splits
    assert "2 of 4 images opened have a box beyond their border" in test.problems[0]
    assert "by 1 pixels" in test.problems[0]


def test_the_command_prints_a_table_and_json(tmp_path):
    write_mat(tmp_path)
    table = CliRunner().invoke(app, ["dataset", "describe", "--annotations", str(tmp_path)])
    assert table.exit_code == 0
    assert "DIFFERS" in table.output
    assert "117,871" in table.output
    arguments = ["dataset", "describe", "--annotations", str(tmp_path), "--split", "test", "--json"]
    (test,) = json.loads(CliRunner().invoke(app, arguments).output)["splits"]
    assert {"name": "pairs", "found": 6, "published": 33_405, "agrees": False, "note": ""} in test["counts"]


def test_nothing_to_describe_is_an_error(tmp_path):
    with pytest.raises(UserError, match="anno_bbox"):
        describe("hico-det", tmp_path)
    with pytest.raises(UserError, match="there are hico-det"):
        describe("imagenet", tmp_path)


@pytest.mark.skipif("HOI_DISTILL_REFERENCE_DATA" not in os.environ, reason="no reference data")
def test_the_published_test_split_agrees_everywhere():
    root = Path(os.environ["HOI_DISTILL_REFERENCE_DATA"], "data/hico_det")
    train, test = describe("hico-det", root).splits
    assert [count.name for count in train.counts + test.counts if count.agrees is False] == ["pairs"]
    assert any("HAKE" in count.note for count in train.counts)


def test_all_bad_entries_and_all_images_of_another_size_are_listed(tmp_path):
    document = instances("test")
    document["annotation"][0]["boxes_h"][0] = [1, 1, 99, 9]
    document["annotation"][2]["boxes_o"][0] = [5, 5, 2, 2]
    document["annotation"][3]["hoi"][0] = 700
    save(tmp_path / "instances_test2015.json", document)
    folder = tmp_path / "images/test2015"
    folder.mkdir(parents=True)
    for number, p in enumerate(images("test")):
        Image.new("RGB", (64, 48) if number else (48, 64)).save(folder / p.file_name)
    (folder / images("test")[1].file_name).write_bytes(b"no picture")
    (folder / images("test")[2].file_name).write_bytes(b"nor this")
    (test,) = describe("hico-det", tmp_path, ["test"]).splits
    said = "\n".join(test.problems)
    assert test.problems[0].startswith("3 bad entries, left out here; the first: ")
    for part in ("unknown interaction 700", "human box (1, 1, 99, 9)", "object box (5, 5, 2, 2)"):
        assert part in said
    assert "1 of 4 images opened are not of the annotated size; the first: HICO_test2015_00000001.jpg: 48 x 64" in said
    assert "2 of 4 images opened cannot be opened; the first: HICO_test2015_00000002.jpg" in said
    assert "image HICO_test2015_00000003.jpg cannot be opened" in said


def test_a_turned_image_of_a_published_dataset_has_the_size_that_is_stored(tmp_path):
    save(tmp_path / "instances_test2015.json", instances("test"))
    folder = tmp_path / "images/test2015"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    for p in images("test"):
        Image.new("RGB", (64, 48)).save(folder / p.file_name, exif=exif)
    (test,) = describe("hico-det", tmp_path, ["test"]).splits
    assert test.problems == []
