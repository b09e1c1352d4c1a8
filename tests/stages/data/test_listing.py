"""Images that are there are found, however their folder is linked and their name is written."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.data.folder import load_annotated_folder, load_folder
from hoi_distill.stages.data.listing import below, images_below
from hoi_distill.stages.data.open_dataset import open_annotations
from hoi_distill.storage.errors import UserError
from tests.fixtures import hico_forms, swig_files, v_coco_files


def image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (shade, 0, 0)).save(path, "JPEG")
    return path


def test_linked_folders_are_followed_each_once_and_without_going_in_circles(tmp_path):
    root = tmp_path / "pics"
    for name in ("own.jpg", "deep/own.jpg", "../else/x.jpg", "../else/far/y.jpg"):
        image(root / name)
    (root / "linked").symlink_to("../else")
    (root / "again").symlink_to("../else/far")  # reached first through `again`: it sorts first
    (root / "deep/up").symlink_to("..")
    (root / "other_way").symlink_to("deep")
    (root / "broken").symlink_to("nowhere")
    found = list(images_below(root))
    assert found == ["again/y.jpg", "deep/own.jpg", "linked/x.jpg", "own.jpg"]
    assert load_folder(root).image_id.tolist() == found


def test_a_folder_that_is_a_link_is_a_folder(tmp_path):
    image(tmp_path / "pics/a.jpg")
    (tmp_path / "link").symlink_to("pics")
    assert list(images_below(tmp_path / "link")) == ["a.jpg"]


@pytest.mark.parametrize("suffix", [".JPG", ".jpe", ".jfif", ".gif", ".avif", ".TIFF"])
def test_suffixes_of_images(tmp_path, suffix):
    image(tmp_path / f"a{suffix}")
    assert list(images_below(tmp_path)) == [f"a{suffix}"]


def test_images_that_nothing_reads_are_told(tmp_path, caplog):
    for name in ("a.jpg", "b.heic", "sub/c.HEIC", "d.dng", "notes.txt"):
        image(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert list(images_below(tmp_path)) == ["a.jpg"]
    assert "passed over (1 .dng, 2 .heic); convert them to JPEG" in caplog.text


def test_a_name_that_is_no_utf8_is_escaped_in_the_id_and_kept_in_the_path(tmp_path):
    name = os.fsdecode(b"Mu\xf1oz.jpg")
    image(tmp_path / name)
    found = load_folder(tmp_path)
    assert found.image_id.tolist() == [r"Mu\xf1oz.jpg"]
    found.image_id[0].encode()
    assert Path(found.path[0]).read_bytes()
    assert found.width.tolist() == [64]
    record = {"pictures": [{"file_name": r"Mu\xf1oz.jpg"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(record))
    assert load_annotated_folder(tmp_path / "annotations.json", "train").path == found.path


def test_two_files_of_one_readable_name_are_told_apart(tmp_path):
    for name in (b"Mu\xf1oz.jpg", rb"Mu\xf1oz.jpg"):
        image(tmp_path / os.fsdecode(name))
    with pytest.raises(UserError, match=r"two files go by the name Mu\\xf1oz\.jpg; rename one"):
        images_below(tmp_path)


@pytest.mark.parametrize("write", ["./own.jpg", "sub/../own.jpg", "{root}/own.jpg", "own.jpg"])
def test_a_name_may_be_written_in_any_way(tmp_path, write, monkeypatch):
    root = tmp_path / "pics"
    image(root / "own.jpg")
    image(root / "sub/other.jpg", 9)
    name = write.format(root=root)
    (root / "annotations.json").write_text(json.dumps({"pictures": [{"file_name": name}]}))
    monkeypatch.chdir(tmp_path)
    for place in (root, Path("pics")):
        found = load_annotated_folder(place / "annotations.json", "train")
        assert found.image_id.tolist() == [name, "sub/other.jpg"]  # the listed one is not there a second time
        assert all(Path(path).is_file() for path in found.path)


def test_an_annotated_image_may_have_any_suffix_and_lie_anywhere(tmp_path):
    far = image(tmp_path / "far/away.photo")
    image(tmp_path / "pics/near.img")
    names = [str(far), "near.img", "../far/away.photo"]
    (tmp_path / "pics/annotations.json").write_text(json.dumps({"pictures": [{"file_name": n} for n in names[:2]]}))
    found = load_annotated_folder(tmp_path / "pics/annotations.json", "train")
    assert (found.image_id.tolist(), found.width.tolist()) == (names[:2], [64, 64])
    assert below(tmp_path / "pics", names[0]) == names[2]


def test_one_image_under_two_names_is_listed_twice(tmp_path):
    image(tmp_path / "a.jpg")
    images = [{"file_name": "a.jpg"}, {"file_name": "./a.jpg"}]
    (tmp_path / "annotations.json").write_text(json.dumps({"pictures": images}))
    with pytest.raises(UserError, match=r"entry 2 repeats the image \./a\.jpg of entry 1"):
        load_annotated_folder(tmp_path / "annotations.json", "train")


def test_what_is_not_there_is_still_named(tmp_path):
    image(tmp_path / "a.jpg")
    (tmp_path / "annotations.json").write_text(json.dumps({"pictures": [{"file_name": "./b.jpg"}]}))
    with pytest.raises(UserError, match=r"entry 1: no image .*b\.jpg"):
        load_annotated_folder(tmp_path / "annotations.json", "train")


@pytest.mark.parametrize("write", ["./{}", "sub/{}", "{folder}/{}"])
def test_hico_det_and_swig_hoi_find_images_by_any_name(tmp_path, write):
    document, records = hico_forms.instances("test"), swig_files.records()
    folder = tmp_path / "images/test2015"
    document["filenames"] = [write.format(name, folder=folder) for name in document["filenames"]]
    for number, name in enumerate(document["filenames"]):
        image(folder / name, number)
    hico_forms.save(tmp_path / "instances_test2015.json", document)
    read = open_annotations("hico-det", tmp_path, "test")
    assert read.image_id.tolist() == document["filenames"]
    assert all(Path(path).is_file() for path in read.path)

    folder = tmp_path / "images_512"
    for record in records:
        record["file_name"] = write.format(record["file_name"], folder=folder)
        image(folder / record["file_name"])
    read = open_annotations("swig-hoi", swig_files.write(tmp_path, records), "test")
    assert np.array_equal(read.image_id, [record["file_name"] for record in records])


@pytest.mark.parametrize("write", ["{}", "./{}", "train2014/{}", "./train2014/{}", "{folder}/{}"])
def test_v_coco_finds_images_by_any_name(tmp_path, write):
    content, folder = v_coco_files.official(), tmp_path / "the_pictures_of_coco/train2014"
    for entry in content["instances"]["images"]:
        image(folder / entry["file_name"])
        entry["file_name"] = write.format(entry["file_name"], folder=folder)
    (tmp_path / "images").symlink_to(folder.parent)
    read = open_annotations("v-coco", v_coco_files.write(tmp_path, content), "train", lenient=True)
    assert len(read) == 2
    assert all(Path(path).is_file() for path in read.path)
