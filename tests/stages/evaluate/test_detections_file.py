"""What is written is read back; what is malformed is refused in one line that names file, row and column."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.evaluate.detections import SCHEMA, HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import read_detections, write_detections
from hoi_distill.storage.errors import UserError


def read(path: Path, annotations: Annotations) -> HoiDetections:
    return read_detections(path, annotations.image_id, annotations.vocabulary)


@pytest.fixture
def written(tmp_path: Path, annotations: Annotations, perfect: HoiDetections) -> Path:
    path = tmp_path / "detections.parquet"
    write_detections(path, perfect, annotations.image_id)
    return path


def test_written_rows_come_back(written: Path, annotations: Annotations, perfect: HoiDetections):
    back = read(written, annotations)
    for name in HoiDetections.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(back, name), getattr(perfect, name), err_msg=name)
        assert getattr(back, name).dtype == getattr(perfect, name).dtype, name


def test_classes_of_another_list_may_be_passed_over(written: Path, annotations: Annotations, perfect: HoiDetections):
    table, at = pq.read_table(written), SCHEMA.names.index("hoi")
    pq.write_table(table.set_column(at, "hoi", pa.array(np.arange(len(table), dtype=np.int32) + 1000)), written)
    with pytest.raises(UserError, match="hoi 1000 is outside"):
        read(written, annotations)
    found = read_detections(written, annotations.image_id, annotations.vocabulary, any_class=True)
    assert len(found) == len(perfect)


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_scores_stay_as_wide_as_the_file_has_them(
    kind: pa.DataType, written: Path, annotations: Annotations, perfect: HoiDetections
):
    table = pq.read_table(written)
    pq.write_table(with_column(table, "score", table["score"].cast(kind, safe=False)), written)
    score = read(written, annotations).score
    assert score.dtype == (np.float64 if kind == pa.float64() else np.float32)
    np.testing.assert_allclose(score, perfect.score, rtol=1e-3)


def test_no_rows_are_a_file_too(tmp_path: Path, annotations: Annotations, perfect: HoiDetections):
    none = HoiDetections(*(getattr(perfect, name)[:0] for name in HoiDetections.__dataclass_fields__))
    write_detections(tmp_path / "none.parquet", none, annotations.image_id)
    back = read(tmp_path / "none.parquet", annotations)
    assert len(back) == 0
    assert back.human_box.shape == (0, 4)


def test_other_writers_types_are_understood(written: Path, annotations: Annotations, perfect: HoiDetections):
    table = pq.read_table(written)
    loose = pa.table(
        {
            "score": table["score"].cast(pa.float64()),
            "image_id": table["image_id"].dictionary_encode(),
            "human_box": table["human_box"].cast(pa.list_(pa.float64())),
            "object_box": table["object_box"].cast(pa.large_list(pa.float32())),
            "object": table["object"].cast(pa.int64()),
            "verb": table["verb"].cast(pa.int16()),
            "hoi": table["hoi"].cast(pa.uint8()),
            "remark": pa.array(["ignored"] * len(table)),
        }
    )  # fmt: skip
    pq.write_table(loose, written, row_group_size=2)
    back = read(written, annotations)
    for name in HoiDetections.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(back, name), getattr(perfect, name), err_msg=name)


WHOLE = {
    "whole pixels": ("human_box", pa.list_(pa.int64())),
    "whole pixels of a fixed list": ("object_box", pa.list_(pa.int16(), 4)),
    "whole scores": ("score", pa.int64()),
    "whole scores that others cast": ("score", pa.uint8()),
}


@pytest.mark.parametrize("case", WHOLE)
def test_whole_numbers_are_read_where_fractions_are_meant(
    case: str, written: Path, annotations: Annotations, perfect: HoiDetections
):
    name, kind = WHOLE[case]
    table = pq.read_table(written)
    score = pa.array([90, 80, 70, 60, 50], pa.int64())
    values = (
        score.cast(kind)
        if name == "score"
        else pa.array([list(map(int, box)) for box in table[name].to_pylist()], kind)
    )
    pq.write_table(with_column(table, name, values), written)
    expected = np.array([90, 80, 70, 60, 50]) if name == "score" else getattr(perfect, name)
    np.testing.assert_array_equal(getattr(read(written, annotations), name), expected)


@pytest.mark.parametrize("kinds", ["none", "text and double"])
def test_an_empty_frame_is_a_file_without_rows(kinds: str, tmp_path: Path, annotations: Annotations):
    kind = {
        "none": lambda name: pa.null(),
        "text and double": lambda name: pa.string() if "box" in name else pa.float64(),
    }
    pq.write_table(
        pa.table({name: pa.array([], kind[kinds](name)) for name in SCHEMA.names}), tmp_path / "empty.parquet"
    )
    back = read(tmp_path / "empty.parquet", annotations)
    assert len(back) == 0
    assert back.human_box.shape == (0, 4)


def test_a_folder_of_parts_is_one_file(tmp_path: Path, written: Path, annotations: Annotations, perfect: HoiDetections):
    table, folder = pq.read_table(written), tmp_path / "found.parquet"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    pq.write_table(table.slice(2), folder / "part-1.parquet")
    pq.write_table(table.slice(0, 2), folder / "part-0.parquet")
    back = read(folder, annotations)
    for name in HoiDetections.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(back, name), getattr(perfect, name), err_msg=name)
    pq.write_table(changed(table.cast(_nullable(written)), "score", 3, None), folder / "part-1.parquet")
    with pytest.raises(UserError, match=r"part-1\.parquet: row 3: score is empty"):
        read(folder, annotations)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), pa.field(name, values.type), values)


def changed(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    return with_column(table, name, pa.array(values, table.schema.field(name).type))


MALFORMED = {
    "missing column": (lambda t: t.drop_columns(["verb"]), "column 'verb' is missing"),
    "a column twice": (lambda t: t.append_column("score", t["score"]), "column 'score' is there 2 times"),
    "a box column twice": (lambda t: t.append_column("human_box", t["verb"]), "column 'human_box' is there 2 times"),
    "a pixel too large to be one": (
        lambda t: with_column(t, "human_box", pa.array([[0, 0, 2**60 + 1, 3]] * len(t))), "column 'human_box': ",
    ),
    "a whole score too large to be told from others": (
        lambda t: with_column(t, "score", pa.array([2**60 + 1] * len(t))), "column 'score': ",
    ),
    "a box beyond all images": (lambda t: with_column(t, "human_box", pa.array([[0, 0, 1e40, 3]] * len(t))), "human_box"),
    "a list for an image": (lambda t: with_column(t, "image_id", pa.array([["a.jpg"]] * len(t))), "'image_id' holds list"),
    "a record for an image": (
        lambda t: with_column(t, "image_id", pa.array([{"name": "a.jpg"}] * len(t))), "'image_id' holds struct",
    ),
    "bytes that are no text": (
        lambda t: with_column(t, "image_id", pa.array([b"Mu\xf1oz.jpg"] * len(t)).cast(pa.string(), safe=False)),
        r"row 0: image_id 'Mu\\xf1oz.jpg' is no image",
    ),
    "text for a score": (lambda t: with_column(t, "score", pa.array(["high"] * len(t))), "'score' holds string"),
    "numbers for an image": (lambda t: with_column(t, "image_id", pa.array(range(len(t)))), "'image_id' holds int64"),
    "fractions for a class": (lambda t: with_column(t, "hoi", pa.array([0.5] * len(t))), "'hoi' holds double"),
    "a box of texts": (lambda t: with_column(t, "human_box", pa.array([["1"] * 4] * len(t))), "'human_box' holds list"),
    "NaN score": (lambda t: changed(t, "score", 2, float("nan")), "row 2: score nan is not a finite"),
    "infinite score": (lambda t: changed(t, "score", 2, float("inf")), "row 2: score inf"),
    "NaN box": (lambda t: changed(t, "object_box", 1, [0, 0, float("nan"), 3]), "row 1: object_box"),
    "empty cell": (lambda t: changed(t, "score", 3, None), "row 3: score is empty"),
    "empty box": (lambda t: changed(t, "human_box", 3, None), "row 3: human_box is empty"),
    "hole in a box": (lambda t: changed(t, "human_box", 3, [0, 0, None, 3]), "row 3: human_box"),
    "x, y, width, height": (lambda t: changed(t, "human_box", 0, [50, 50, 10, 10]), "boxes are x1, y1, x2, y2"),
    "three numbers": (
        lambda t: with_column(t, "human_box", pa.array([[0.0, 0.0, 1.0]] * len(t))),
        "row 0: human_box [0.0, 0.0, 1.0] is not four",
    ),
    "unknown image": (lambda t: changed(t, "image_id", 4, "z.jpg"), "row 4: image_id 'z.jpg' is no image"),
    "object out of range": (lambda t: changed(t, "object", 0, 80), "row 0: object 80 is outside 0 ... 79"),
    "negative verb": (lambda t: changed(t, "verb", 0, -1), "row 0: verb -1 is outside 0 ... 1"),
    "class out of range": (lambda t: changed(t, "hoi", 1, 3), "row 1: hoi 3 is outside -1 ... 2"),
    "objects in another order": (lambda t: changed(t, "object", 1, 49), "counted in COCO-80 order"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_in_one_line(case: str, written: Path, annotations: Annotations):
    change, complaint = MALFORMED[case]
    pq.write_table(change(pq.read_table(written).cast(_nullable(written))), written)
    with pytest.raises(UserError) as refusal:
        read(written, annotations)
    line = str(refusal.value)
    assert complaint in line
    assert line.startswith(str(written))
    assert "\n" not in line


def _nullable(path: Path) -> pa.Schema:
    """The file's schema, with room for empty cells."""
    return pa.schema([field.with_nullable(True) for field in pq.read_schema(path)])


def test_what_is_no_parquet_file_is_refused(tmp_path: Path, annotations: Annotations):
    (tmp_path / "text.parquet").write_text("image_id,score\n")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read(tmp_path / "text.parquet", annotations)
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent.parquet", annotations)
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read(tmp_path, annotations)


@pytest.mark.parametrize("kept", [0, 4, 300, -8])
def test_a_file_cut_short_is_refused(kept: int, written: Path, annotations: Annotations):
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(UserError, match="not a readable Parquet file") as refusal:
        read(written, annotations)
    assert "\n" not in str(refusal.value)


def test_damaged_pages_are_refused(written: Path, annotations: Annotations):
    data = bytearray(written.read_bytes())
    data[8:400] = bytes(392)
    written.write_bytes(data)
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read(written, annotations)


def test_rows_without_class_or_object_are_let_through_only_where_they_mean_something(
    written: Path, annotations: Annotations
):
    table = pq.read_table(written).cast(_nullable(written))
    words = annotations.vocabulary
    pq.write_table(changed(table, "hoi", 1, -1), written)
    assert read_detections(written, annotations.image_id, words).hoi[1] == -1
    with pytest.raises(UserError, match="row 1: hoi -1 names no class"):
        read_detections(written, annotations.image_id, words, every_row_classed=True)
    pq.write_table(changed(changed(table, "hoi", 1, -1), "object", 1, -1), written)
    assert read_detections(written, annotations.image_id, words, object_optional=True).object[1] == -1
    with pytest.raises(UserError, match=r"row 1: object -1 is outside 0 ... 79"):
        read_detections(written, annotations.image_id, words)


def test_reading_does_not_go_row_by_row(tmp_path: Path, annotations: Annotations, perfect: HoiDetections):
    many = HoiDetections(
        *(np.repeat(getattr(perfect, name), 60_000, axis=0) for name in HoiDetections.__dataclass_fields__)
    )
    write_detections(tmp_path / "many.parquet", many, annotations.image_id)
    start = time.process_time()
    assert len(read(tmp_path / "many.parquet", annotations)) == 300_000
    assert time.process_time() - start < 3
