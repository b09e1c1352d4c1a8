"""Tables of the cache for other programs, and boxes back from one of them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from hoi_distill.pipeline.own_data.exports import _numbers, boxes_from_parquet, export_table
from hoi_distill.pipeline.planning.plan import plan
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_stages import run

NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three images with boxes from a file, of which one has none."""
    root = tmp_path_factory.mktemp("world")
    for number, name in enumerate(NAMES):
        Image.new("RGB", (64, 48), (80 * number, 0, 0)).save(root / name)
    entries = [
        {"image_id": name, "category_id": category, "bbox": [1.5, 2, 20, 30], "score": score}
        for name in NAMES[:2]
        for category, score in ((1, 0.9), (90, 0.25))
    ]
    (root / "boxes.json").write_text(json.dumps(entries))
    config = {
        "name": "own", "cache": str(root / "cache"), "workers": {"executor": "inline"},
        "dataset": {"kind": "folder", "root": str(root)},
        "tables": {"detections": {"stage": "detections_file", "path": str(root / "boxes.json")}},
    }  # fmt: skip
    (root / "own.yaml").write_text(yaml.safe_dump(config))
    workspace = prepare(root / "own.yaml")
    run(workspace)
    return workspace, root


def exported(workspace, out: Path, name="detections") -> int:
    return export_table(workspace, plan(workspace.nodes, workspace.sources, workspace.cache), name, out)


def test_boxes_go_out_and_come_back(world, tmp_path):
    workspace, root = world
    assert exported(workspace, tmp_path / "boxes.parquet") == 3
    table = pq.read_table(tmp_path / "boxes.parquet")
    assert table["name"].to_pylist() == list(NAMES)
    assert len(set(table["row"].to_pylist())) == 3
    assert boxes_from_parquet(tmp_path / "boxes.parquet", tmp_path / "boxes.json") == 4
    back = json.loads((tmp_path / "boxes.json").read_text())
    given = json.loads((root / "boxes.json").read_text())
    assert [(each["image_id"], each["category_id"]) for each in back] == [
        (each["image_id"], each["category_id"]) for each in given
    ]
    assert np.allclose([each["bbox"] for each in back], [each["bbox"] for each in given], atol=1e-5)
    again = prepare(root / "own.yaml", [f"tables.detections.path={tmp_path / 'boxes.json'}"])
    plans = plan(again.nodes, again.sources, again.cache)
    assert plans["detections"].counts["empty"] == 0  # the very boxes that are in the cache


def test_a_tar_is_a_webdataset(world, tmp_path):
    workspace, _ = world
    exported(workspace, tmp_path / "boxes.tar")
    with tarfile.open(tmp_path / "boxes.tar") as tar:
        assert tar.getnames() == [f"{number:08d}.json" for number in range(3)]
        first = json.load(tar.extractfile("00000000.json"))
    assert first["name"] == "a.png"
    assert first["values"]["value"]["labels"] == [0, 79]


def test_wrong_calls_are_one_line(world, tmp_path):
    workspace, root = world
    table = pa.table({"name": ["a.png"], "value": [1]})
    pq.write_table(table, tmp_path / "other.parquet")
    exported(workspace, tmp_path / "boxes.parquet")
    broken = pq.read_table(tmp_path / "boxes.parquet")
    values = broken["value"].to_pylist()
    values[1]["labels"] = [0, 200]
    column = pa.array(values, broken["value"].type)
    pq.write_table(broken.set_column(2, "value", column), tmp_path / "broken.parquet")
    empty = prepare(root / "own.yaml", [f"cache={tmp_path / 'cache'}"])
    calls = [
        (
            lambda: exported(workspace, tmp_path / "x.parquet", "detection"),
            r"there is no 'detection' \(did you mean det",
        ),
        (lambda: exported(workspace, tmp_path / "x.csv"), r"x\.csv: the ending chooses the form; there are \.parquet"),
        (lambda: exported(workspace, tmp_path / "x.npy"), r"x\.npy: a cell of detections is a struct.*write \.parquet"),
        (lambda: exported(workspace, root / "a.png" / "x.tar"), "--out"),
        (
            lambda: exported(empty, tmp_path / "x.tar"),
            r"tables\.detections: 3 cells are empty; fill them: hoi-distill run",
        ),
        (lambda: boxes_from_parquet(tmp_path / "other.parquet", tmp_path / "x"), "no exported table of detections"),
        (lambda: boxes_from_parquet(tmp_path / "gone.parquet", tmp_path / "x"), "no exported table of detections"),
        (lambda: boxes_from_parquet(tmp_path / "broken.parquet", tmp_path / "x"), r"row 2 \(b\.png\): not boxes"),
    ]
    for call, said in calls:
        with pytest.raises(UserError, match=said) as refusal:
            call()
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.parametrize("cells", [[None, None], [None, [0.5, 1.5]], [[0.5, 1.5], [2.0, 3.0]]])
def test_a_chunk_without_a_value_has_the_shape_of_the_others(cells):
    """The type says it, so a column that nobody asked for in 256 rows is NaN."""
    numbers = _numbers(pa.array(cells, pa.list_(pa.float32(), 2)), None, Path("x.npy"))
    assert numbers.shape == (2, 2)
    assert np.isnan(numbers).all(1).tolist() == [cell is None for cell in cells]
