"""One frame for the pictures, boxes and sizes of a dataset: its reader says whether EXIF turns them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from hoi_distill.pipeline import inputs
from hoi_distill.pipeline.graph import registry
from hoi_distill.pipeline.inputs import image_source
from hoi_distill.pipeline.training.fit import PictureReader
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.folder import load_annotated_folder
from hoi_distill.stages.data.image import as_stored
from hoi_distill.stages.data.open_dataset import open_annotations
from hoi_distill.stages.evaluate.pages.pictures import load_picture
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values
from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.file_digests import DigestMemory
from hoi_distill.storage.selection import CellSelection
from tests.fixtures import hico_forms, swig_files, v_coco_files
from tests.fixtures.toy_stages import run

TURNED = {2: 6, 3: 3}
"""EXIF orientation of the second and the third picture of each split: a quarter and a half turn."""


class Looks(Stage):
    """Size of a picture, and whether its left half is the brighter one."""

    name = "looks"
    columns = ("value",)
    output = ArrowOutput(pa.list_(pa.int32()))
    batch_size = 2

    def parameters(self) -> dict[str, Any]:
        return {}

    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load."""

    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        return {"value": pa.array([looks(np.asarray(image)) for image in batch.images], self.output.type)}


def looks(pixels: np.ndarray) -> list[int]:
    height, width = pixels.shape[:2]
    half = width // 2
    return [width, height, int(pixels[:, :half].mean() > pixels[:, half:].mean() + 50)]


def picture(path: Path, number: int, size: tuple[int, int] = (64, 48), orientation: int = 1) -> None:
    """A bright left half in the stored raster; ``number`` makes the bytes its own."""
    raster = np.zeros((size[1], size[0], 3), np.uint8)
    raster[:, : size[0] // 2] = 240 - number
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(raster).save(path, **({"exif": exif} if orientation != 1 else {}))


@pytest.fixture
def hico(tmp_path: Path) -> Path:
    root = tmp_path / "hico"
    for start, split in ((0, "train"), (10, "test")):
        hico_forms.save(root / f"instances_{split}2015.json", hico_forms.instances(split))
        for number in range(1, 5):
            file = root / f"images/{split}2015/HICO_{split}2015_{number:08d}.jpg"
            picture(file, start + number, orientation=TURNED.get(number, 1))
    return root


def setup_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **dataset: Any) -> Workspace:
    monkeypatch.setitem(registry.STAGES, "looks", "tests.pipeline.test_frames:Looks")
    config = {
        "name": "frames", "cache": str(tmp_path / "cache"), "runs": str(tmp_path / "runs"),
        "dataset": {key: str(value) if isinstance(value, Path) else value for key, value in dataset.items()},
        "workers": {"executor": "inline", "count": 1},
        "tables": {"looks": {"stage": "looks"}, "given": {"stage": "ground_truth_boxes"}},
    }  # fmt: skip
    (tmp_path / "setup.yaml").write_text(yaml.safe_dump(config))
    return prepare(tmp_path / "setup.yaml")


def test_pictures_and_boxes_of_hico_det_are_in_the_stored_raster(hico, tmp_path, monkeypatch):
    workspace = setup_of(tmp_path, monkeypatch, kind="hico-det", root=hico)
    assert {part.frame for part in workspace.dataset.values()} == {"stored"}
    run(workspace)
    table = next(table for table in workspace.cache.tables() if table.dir.name.startswith("looks"))
    assert (
        table.read(CellSelection(workspace.sources["images"].ids, ("value",)))["value"].to_pylist() == [[64, 48, 1]] * 8
    )
    given = workspace.nodes["given"].stage.compute(
        Batch(workspace.sources["images"].ids, workspace.sources["images"].keys, 8), ("value",), {}
    )["value"]
    assert [(cell["width"], cell["height"]) for cell in given.to_pylist()] == [(64, 48)] * 8


def test_only_turned_pictures_are_rows_of_their_own(hico, tmp_path, monkeypatch):
    """What a folder of the same pictures has in the cache serves HICO-DET but for the turned ones, and stays as it is."""
    folder = setup_of(tmp_path, monkeypatch, kind="folder", root=hico / "images")
    assert run(folder).cells["looks"] == 8
    table = next(table for table in folder.cache.tables() if table.dir.name.startswith("looks"))
    upright = table.read(CellSelection(folder.sources["images"].ids, ("value",)))["value"].to_pylist()
    assert upright == [[64, 48, 1], [48, 64, 0], [64, 48, 0], [64, 48, 1]] * 2

    stored = setup_of(tmp_path, monkeypatch, kind="hico-det", root=hico)
    assert run(stored).cells["looks"] == 4
    shared = np.isin(stored.sources["images"].ids, folder.sources["images"].ids)
    assert shared.tolist() == [True, False, False, True] * 2
    for uri, row, same in zip(stored.sources["images"].uris, stored.sources["images"].ids, shared, strict=True):
        digest = digest_bytes(Path(uri).read_bytes())
        assert row.tobytes() == (digest if same else as_stored(digest))
    assert run(setup_of(tmp_path, monkeypatch, kind="folder", root=hico / "images")).cells == {}


def test_students_and_pages_see_the_frame_of_the_boxes(hico):
    file = hico / "images/test2015/HICO_test2015_00000002.jpg"
    assert looks(PictureReader([str(file)], "stored")(0)) == [64, 48, 1]
    assert looks(PictureReader([str(file)], "upright")(0)) == [48, 64, 0]
    assert load_picture(file, "stored").size == (64, 48)
    assert load_picture(file, "upright").size == (48, 64)


def swig(root: Path) -> Path:
    swig_files.write(root, swig_files.records())
    picture(root / "images_512/surfing_1.jpg", 1, (100, 80), 6)
    picture(root / "images_512/idle_2.jpg", 2, (60, 50))
    return root


def v_coco(root: Path) -> Path:
    v_coco_files.write(root, v_coco_files.official())
    picture(root / "train2014/COCO_train2014_000000000007.jpg", 1, (100, 80), 6)
    picture(root / "train2014/COCO_train2014_000000000009.jpg", 2, (100, 80))
    return root


def pairs_of_v_coco(root: Path) -> Path:
    v_coco(root)
    (root / "vcoco_train.json").unlink()
    (root / "instances_vcoco_train.json").write_text(json.dumps(v_coco_files.PAIRS))
    return root


def without_sizes(root: Path) -> Path:
    """HICO-DET in PPDM's form, which states no sizes."""
    hico_forms.save(root / "test_hico.json", hico_forms.ppdm("test"))
    for number in range(1, 5):
        picture(root / f"images/test2015/HICO_test2015_{number:08d}.jpg", number, orientation=TURNED.get(number, 1))
    return root


READERS = {
    "swig-hoi": ("swig-hoi", swig, "test", [[100, 80], [60, 50]]),
    "v-coco": ("v-coco", v_coco, "train", [[100, 80]] * 2),
    "v-coco, pairs": ("v-coco", pairs_of_v_coco, "train", [[100, 80]] * 2),
    "hico-det without sizes": ("hico-det", without_sizes, "test", [[64, 48]] * 4),
}


@pytest.mark.parametrize(("kind", "write", "split", "sizes"), READERS.values(), ids=READERS)
def test_every_published_dataset_is_read_as_stored(kind, write, split, sizes, tmp_path):
    annotations = open_annotations(kind, write(tmp_path), split)
    assert annotations.frame == annotations.take(np.arange(1)).frame == "stored"
    assert np.stack([annotations.width, annotations.height], 1).tolist() == sizes
    _, source = image_source({split: annotations}, DigestMemory(tmp_path / "digests.sqlite"))
    named = zip(source.uris, source.ids, strict=True)
    turned = [digest_bytes(Path(uri).read_bytes()) != row.tobytes() for uri, row in named]
    assert turned == ([False, True, True, False] if len(turned) == 4 else [True, False])


@pytest.mark.parametrize(("kind", "write", "split", "sizes"), list(READERS.values())[:2], ids=list(READERS)[:2])
def test_a_picture_of_another_size_than_stated_is_named(kind, write, split, sizes, tmp_path):
    root = write(tmp_path / "data")
    file = open_annotations(kind, root, split).path[1]
    picture(Path(file), 5, (64, 48))
    memory = DigestMemory(tmp_path / "digests.sqlite")
    width, height = sizes[1]
    with pytest.raises(UserError, match=rf"{file} is 64 x 48 \(as stored.*annotations say {width} x {height}"):
        image_source({split: open_annotations(kind, root, split)}, memory)
    kept, source = image_source({split: open_annotations(kind, root, split)}, memory, lenient=True)
    assert (len(kept[split]), len(source.ids), len(source.splits[split])) == (1, 1, 1)


def test_a_turned_size_stated_for_hico_det_is_named(hico, tmp_path, monkeypatch):
    document = hico_forms.instances("test")
    document["size"][1] = [48, 64]  # what a viewer shows of it
    hico_forms.save(hico / "instances_test2015.json", document)
    with pytest.raises(UserError, match=r"setup.yaml: dataset: hico-det test: .*_00000002.jpg is 64 x 48"):
        setup_of(tmp_path, monkeypatch, kind="hico-det", root=hico)
    workspace = setup_of(tmp_path, monkeypatch, kind="hico-det", root=hico, lenient=True)
    assert [len(workspace.dataset[split]) for split in ("train", "test")] == [4, 3]
    assert [len(workspace.sources["images"].splits[split]) for split in ("train", "test")] == [4, 3]


def test_an_annotated_folder_is_upright_and_its_stated_sizes_are_too(tmp_path):
    picture(tmp_path / "a.jpg", 1, orientation=6)
    record = {"file_name": "a.jpg", "width": 48, "height": 64, "pairs": []}
    (tmp_path / "annotations.json").write_text(json.dumps({"pictures": [record]}))
    found = load_annotated_folder(tmp_path / "annotations.json")
    assert (found.frame, found.width.tolist(), found.height.tolist()) == ("upright", [48], [64])
    record |= {"width": 64, "height": 48}
    (tmp_path / "annotations.json").write_text(json.dumps({"pictures": [record]}))
    with pytest.raises(UserError, match=r"entry 1: .*a\.jpg is 48 x 64 \(upright.*say 64 x 48"):
        load_annotated_folder(tmp_path / "annotations.json")
    assert len(load_annotated_folder(tmp_path / "annotations.json", lenient=True)) == 0


def test_headers_are_remembered_by_content_and_unreadable_ones_are_not(tmp_path, monkeypatch):
    root = swig(tmp_path / "data")
    (root / "images_512/idle_2.jpg").write_bytes(b"no picture")
    memory = DigestMemory(tmp_path / "digests.sqlite")
    opened: list[str] = []
    real = inputs.read_header
    monkeypatch.setattr(inputs, "read_header", lambda path: opened.append(Path(path).name) or real(path))
    annotations = open_annotations("swig-hoi", root, "test")
    rows = [image_source({"test": annotations}, memory)[1].ids.tolist() for _ in range(2)]
    assert opened == ["surfing_1.jpg", "idle_2.jpg", "idle_2.jpg"]
    assert rows[0] == rows[1]
    assert bytes(rows[0][1]) == digest_bytes(b"no picture")
