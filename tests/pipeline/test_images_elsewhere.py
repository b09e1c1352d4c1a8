"""Images below an address or in tar files are the rows that they are on a disk, and are read as seldom."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.s3_proxy import Request, proxy
from hoi_distill.pipeline.graph import registry
from hoi_distill.pipeline.training.fit import ImageReader
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.hashed_files import ENTRY
from tests.fixtures import hico_forms
from tests.fixtures.object_stores import stored, use
from tests.fixtures.page_server import page_server
from tests.fixtures.toy_stages import TOYS, Album, computed, paint, run

SETTLED = 1_600_000_000
"""A time long ago, so that a server's times in whole seconds tell two versions apart."""


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, where in TOYS.items():
        monkeypatch.setitem(registry.STAGES, name, where)


@pytest.fixture
def album(tmp_path) -> Album:
    """Six images in a folder and one in a folder of that, all written long ago, and annotations that list them."""
    made = Album(tmp_path)
    (made.folder / "inner é").mkdir()
    paint(made.folder / "inner é" / "a b.png", 77, side=24)
    for path in names(made.folder).values():
        os.utime(path, (SETTLED, SETTLED))
    return made


def names(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*.*"))}


def pack(tar: Path, files: dict[str, Path]) -> Path:
    """A tar file as data sets of images with texts ship them: each image beside its text."""
    with tarfile.open(tar, "w") as file:
        for name, path in files.items():
            file.add(path, name)
            (text := tar.with_suffix(".txt")).write_text("a caption")
            file.add(text, f"{os.path.splitext(name)[0]}.txt")
    return tar


class Place:
    """Where the images lie.

    Attributes:
        root: what a configuration calls it.
        asked: methods of the requests so far.
        put: replaces an image by bytes, or removes it.
    """

    def __init__(self, root: str, asked: list[str], put: Callable[[str, bytes | None], None]) -> None:
        self.root, self.asked, self.put = root, asked, put


PLACES = [
    "tars", "pages", pytest.param("objects", marks=pytest.mark.slow), pytest.param("tars of objects", marks=pytest.mark.slow)
]  # fmt: skip


@pytest.fixture
def place(request, album, tmp_path, monkeypatch) -> Iterator[Place]:
    files, kind = names(album.folder), request.param
    with contextlib.ExitStack() as stack:
        if kind == "pages":
            root, asked = stack.enter_context(page_server(album.folder))

            def on_disk(name: str, data: bytes | None) -> None:
                (album.folder / name).unlink() if data is None else (album.folder / name).write_bytes(data)

            yield Place(root, asked, on_disk)
            return
        tars = {f"{i:02d}.tar": dict(list(files.items())[4 * i : 4 * i + 4]) for i in range(2)}
        sources = {name: pack(tmp_path / name, some) for name, some in tars.items()}

        def in_tar(name: str, data: bytes | None) -> None:
            tar = next(tar for tar, some in tars.items() if name in some)
            paint(files[name], 99)
            pack(tmp_path / tar, {each: path for each, path in tars[tar].items() if each != name or data is not None})

        if kind == "tars":
            yield Place(str(tmp_path / "{00..01}.tar"), [], in_tar)
            return
        away, asked = request.getfixturevalue("bucket_of"), []
        for name, path in (files if kind == "objects" else sources).items():
            stored(f"{away}/{name}").write_bytes(path.read_bytes())

        def act(sent: Request) -> str:
            asked.append(sent.method if "list-type" not in sent.path else "LIST")
            return "pass"

        between = stack.enter_context(proxy(request.getfixturevalue("endpoint"), act))
        use(monkeypatch, between, tmp_path / "copies")

        def as_object(name: str, data: bytes | None) -> None:
            if kind == "objects":
                stored(f"{away}/{name}").unlink() if data is None else stored(f"{away}/{name}").write_bytes(data)
            else:
                in_tar(name, data)
                for tar in tars:
                    stored(f"{away}/{tar}").write_bytes((tmp_path / tar).read_bytes())

        yield Place(away if kind == "objects" else f"{away}/*.tar", asked, as_object)


@pytest.fixture
def at(album) -> Callable[[Place], Album]:
    """The album with its images at a place; annotations name them, which lie on the disk."""
    pictures = [{"file_name": name, "split": "train"} for name in names(album.folder)]
    (album.root / "list.json").write_text(json.dumps({"pictures": pictures}))

    def change(place: Place) -> Album:
        album.config["dataset"] = {
            "kind": "folder", "root": place.root, "annotations": str(album.root / "list.json")
        }  # fmt: skip
        album.write()
        return album

    return change


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_images_elsewhere_are_the_rows_that_they_are_on_a_disk(album, at, place):
    here = album.workspace()
    assert computed(here) == {"scores": 21, "signs": 21}
    there = at(place).workspace()
    assert computed(there) == {}
    assert there.images.keys == here.images.keys
    assert there.dataset["train"].width.tolist() == here.dataset["train"].width.tolist() == [16] * 6 + [24]
    reads, local = ImageReader(there.images.uris), ImageReader(here.images.uris)
    assert all((reads(row) == local(row)).all() for row in range(7))


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_run_reads_them_there_and_a_second_plan_reads_none(at, place):
    album = at(place)
    assert computed(album.workspace()) == {"scores": 21, "signs": 21}
    place.asked.clear()
    album.workspace()
    assert "GET" not in place.asked
    assert len(place.asked) <= (7 if place.root.startswith("http") else 3)


def test_two_first_plans_at_once_name_the_members_of_a_tar_file_once(album, tmp_path, monkeypatch):
    tar = str(pack(tmp_path / "x.tar", names(album.folder)))
    os.utime(tar, (SETTLED, SETTLED))
    monkeypatch.setattr("hoi_distill.storage.file_digests.is_settled", lambda *_: True)
    first, second = (DigestMemory(tmp_path / "digests.sqlite") for _ in range(2))
    found = first.members(tar, lambda name: name.endswith(".png"))
    with monkeypatch.context() as patch:  # the second has looked before the first has written
        patch.setattr("hoi_distill.storage.file_digests._all_remembered", lambda *_: ([], np.empty(0, ENTRY)))
        assert second.members(tar, lambda name: name.endswith(".png")) == found
    assert DigestMemory(tmp_path / "digests.sqlite").members(tar, lambda name: name.endswith(".png")) == found


@pytest.mark.parametrize("place", ["pages"], indirect=True)
def test_given_boxes_know_the_sizes_of_images_elsewhere(album, at, place):
    """Nobody has opened an image there when the stage is made."""
    boxes = [{"image_id": "003.png", "category_id": 1, "bbox": [2, 2, 40, 9], "score": 0.9}]
    (album.root / "boxes.json").write_text(json.dumps(boxes))
    album.config["tables"]["detections"] = {
        "stage": "detections_file", "path": str(album.root / "boxes.json"), "categories": "coco"
    }  # fmt: skip
    here = prepare(album.write()).nodes["detections"].stage
    there = at(place).workspace().nodes["detections"].stage
    assert sorted(there.images.width.tolist()) == sorted(here.images.width.tolist()) == [16] * 6 + [24]
    assert there.source_digests(["003.png"]) == here.source_digests(["003.png"])


@pytest.mark.parametrize("place", [each for each in PLACES if each != "pages"], indirect=True)
def test_a_place_that_can_be_listed_needs_no_annotations(album, place):
    here = album.workspace()
    album.config["dataset"] = {"kind": "folder", "root": place.root}
    there = prepare(album.write())
    assert sorted(there.images.keys) == sorted(here.images.keys)
    assert sorted(there.images.ids.tolist()) == sorted(here.images.ids.tolist())
    assert len(prepare(album.path, limit=3).images.keys) == 3


@pytest.mark.parametrize("place", PLACES, indirect=True)
@pytest.mark.parametrize("data", [b"other bytes", None], ids=["changed", "lost"])
def test_an_image_that_changed_or_went_since_planning_leaves_its_cells_empty_and_is_named(at, place, data):
    workspace = at(place).workspace()
    place.put("003.png", data)
    done = run(workspace)
    assert any("003.png" in uri for uri in done.changed)
    assert done.cells["scores"] < 21
    assert not any(done.failures.values())


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_an_image_that_is_not_there_is_refused_by_name_before_work(at, place):
    album = at(place)
    place.put("003.png", None)
    with pytest.raises(UserError, match=r"album.yaml: dataset: .*003\.png"):
        album.workspace()


@pytest.mark.parametrize("place", ["pages", pytest.param("objects", marks=pytest.mark.slow)], indirect=True)
def test_what_is_no_image_is_a_failure_cell_as_on_a_disk(at, place):
    place.put("003.png", b"no image")
    done = run(at(place).workspace())
    assert done.failures["scores"] == 3
    assert "003.png: not an image in a known format" in done.reasons[0]


def test_sizes_that_annotations_state_are_compared_with_images_that_are_fetched(album, at, tmp_path):
    with page_server(album.folder) as (root, _):
        place = Place(root, [], lambda *_: None)
        record = {"file_name": "000.png", "split": "train", "width": 16, "height": 16}
        pairs = [{"human_box": [0, 0, 8, 8], "object_box": [2, 2, 9, 9], "object": "bicycle", "verbs": ["ride"]}]
        for change, said in (
            ({"width": 17}, r"000.png is 16 x 16 .*its annotations say 17 x 16"),
            ({"pairs": pairs, "width": 0}, r"entry 1 \(000.png\): no width and height"),
        ):
            made = at(place)
            (album.root / "list.json").write_text(json.dumps({"pictures": [record | change]}))
            with pytest.raises(UserError, match=said):
                made.workspace()


def test_annotated_data_sets_take_their_images_from_a_place(album, tmp_path):
    """HICO-DET's images as pages, in a tar file, or in a folder: the rows of the usual layout."""
    root = tmp_path / "hico"
    for split in ("train", "test"):
        hico_forms.save(root / f"instances_{split}2015.json", hico_forms.instances(split))
        for number in range(1, 5):
            file = root / f"images/{split}2015/HICO_{split}2015_{number:08d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            paint(file, number + 10 * (split == "test"), side=64)
    for document in root.glob("*.json"):
        content = json.loads(document.read_text())
        document.write_text(json.dumps(content | {"size": [[64, 64]] * 4, "annotation": [
            {key: [] for key in each} for each in content["annotation"]]}))  # fmt: skip
    album.config["dataset"] = {"kind": "hico-det", "root": str(root)}
    album.config["tables"].pop("signs")
    usual = prepare(album.write())
    moved = tmp_path / "moved"
    (root / "images").rename(moved)
    tar = pack(tmp_path / "hico.tar", names(moved))
    with page_server(moved) as (pages, _):
        for place in (pages, str(tar), str(moved)):
            album.config["dataset"]["images"] = place
            there = prepare(album.write())
            assert there.images.ids.tolist() == usual.images.ids.tolist()
            assert there.dataset["test"].width.tolist() == [64] * 4


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"kind": "folder", "root": "http://127.0.0.1:1/x"}, "cannot be listed; give annotations"),
        ({"kind": "folder", "root": "https://host/x?sign=1"}, r"dataset.root.*has a query"),
        ({"kind": "hico-det", "root": "s3://bucket/hico"}, r"dataset.root.*the address in dataset.images"),
        ({"kind": "folder", "root": "nowhere/{00..01}.tar"}, r"nowhere/00.tar: cannot be read: No such file"),
        ({"kind": "folder", "root": "*.tar"}, r"\*.tar: no such tar files"),
        ({"kind": "folder", "root": "http://127.0.0.1:1/*.tar"}, r"count the tar files"),
    ],
)
def test_a_place_that_cannot_be_is_refused_in_one_line(album, tmp_path, monkeypatch, dataset, said):
    monkeypatch.chdir(tmp_path)
    album.config["dataset"] = dataset
    with pytest.raises(UserError, match=said) as refused:
        prepare(album.write())
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_tar_file_is_refused_by_name(album, tmp_path):
    (tmp_path / "x.tar").write_bytes(b"PK" + bytes(5000))
    album.config["dataset"] = {"kind": "folder", "root": str(tmp_path / "x.tar")}
    with pytest.raises(UserError, match=r"x\.tar: not a whole tar file"):
        prepare(album.write())


def test_images_of_one_name_in_several_tar_files_are_told_apart(album, tmp_path):
    for number in range(2):
        paint(tmp_path / "image.png", 50 + number)
        pack(tmp_path / f"{number}.tar", {"image.png": tmp_path / "image.png"})
    album.config["dataset"] = {"kind": "folder", "root": str(tmp_path / "*.tar")}
    assert prepare(album.write()).images.keys == ["0.tar/image.png", "1.tar/image.png"]
