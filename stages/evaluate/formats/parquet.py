"""The Parquet file of scored human-object pairs: reading with checks, and writing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import SCHEMA, HoiDetections
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import atomic_write


def detections_table(detections: HoiDetections, image_ids: Sequence[str] | np.ndarray) -> pa.Table:
    """The detections as a table of :data:`~hoi_distill.stages.evaluate.detections.SCHEMA`, scores as wide as they are.

    Args:
        detections: ``image`` counts in ``image_ids``.
        image_ids: the images' names.
    """
    ids = pa.DictionaryArray.from_arrays(detections.image.astype(np.int32), pa.array(image_ids, pa.string()))
    boxes = (
        pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(box, np.float32).reshape(-1), 4)
        for box in (detections.human_box, detections.object_box)
    )
    numbers = (pa.array(column.astype(np.int32)) for column in (detections.object, detections.verb, detections.hoi))
    columns: list[pa.Array] = [ids.cast(pa.string()), *boxes, *numbers, pa.array(detections.score)]
    at = SCHEMA.get_field_index("score")
    return pa.table(columns, schema=SCHEMA.set(at, SCHEMA.field(at).with_type(columns[at].type)))


def write_detections(path: Path, detections: HoiDetections, image_ids: Sequence[str] | np.ndarray) -> None:
    """Write the Parquet file. ``image_ids`` names every image of the dataset, in its order."""
    pq.write_table(detections_table(detections, image_ids), path, compression="zstd")


@contextlib.contextmanager
def detections_writer(path: Path) -> Iterator[pq.ParquetWriter]:
    """A Parquet file of detections, written table by table. It takes its place when the block ends without an error."""
    with atomic_write(path) as file, pq.ParquetWriter(file, SCHEMA) as writer:
        yield writer


def read_detections(
    path: Path,
    image_ids: Sequence[str] | np.ndarray,
    vocabulary: Vocabulary,
    *,
    any_class: bool = False,
    every_row_classed: bool = False,
    object_optional: bool = False,
) -> HoiDetections:
    """Read and check a Parquet file of detections, or a folder of such files: its parts, in the order of their names.

    Args:
        path: the file or folder.
        image_ids: the N images of the split, in its order.
        vocabulary: the classes that object, verb and hoi count.
        any_class: allow classes of another list; do not check that hoi is the class of verb and object.
        every_row_classed: refuse rows whose hoi is -1.
        object_optional: allow an object of -1: the verb has no object, or an object of no known category.

    Raises:
        UserError: the file is missing or no Parquet file, lacks a column or has it twice, has a column of another type,
            an empty or non-finite value, an image that is not in the split, an id out of range, an inverted box, or a
            class that is not its own verb and object (as when two orders of objects are mixed up).
    """
    if parts := parquet_parts(path):
        read = [
            read_detections(
                part, image_ids, vocabulary,
                any_class=any_class, every_row_classed=every_row_classed, object_optional=object_optional,
            )
            for part in parts
        ]  # fmt: skip
        return HoiDetections(
            *(np.concatenate([getattr(one, field.name) for one in read]) for field in fields(HoiDetections))
        )
    table = _read_columns(path)
    image = _images(path, table["image_id"], image_ids)
    boxes = {name: _boxes(path, name, table[name]) for name in ("human_box", "object_box")}
    ids = {}
    sizes = len(vocabulary.objects), len(vocabulary.verbs), np.iinfo(np.int32).max if any_class else len(vocabulary)
    for name, low, high in zip(("object", "verb", "hoi"), (-object_optional, 0, -1), sizes, strict=True):
        ids[name] = _cast(path, name, table[name], pa.int64()).to_numpy()
        _refuse(path, (ids[name] < low) | (ids[name] >= high), name, ids[name], f"is outside {low} ... {high - 1}")
    if every_row_classed:
        _refuse(path, ids["hoi"] < 0, "hoi", ids["hoi"], "names no class, which every detection here must")
    narrow = pa.types.is_float16(_plain_type(table["score"].type)) or pa.types.is_float32(
        _plain_type(table["score"].type)
    )
    score = _cast(path, "score", table["score"], pa.float32() if narrow else pa.float64()).to_numpy()
    _refuse(path, ~np.isfinite(score), "score", score, "is not a finite number")
    if not any_class:
        _refuse_mixed_up(path, ids, vocabulary.hois)
    return HoiDetections(
        image, boxes["human_box"], boxes["object_box"],
        ids["object"].astype(np.int32), ids["verb"].astype(np.int32), ids["hoi"].astype(np.int32), score,
    )  # fmt: skip


def _refuse_mixed_up(path: Path, ids: dict[str, np.ndarray], hois: np.ndarray) -> None:
    """Raises UserError for the first row whose class is not its own verb and object."""
    classed = np.flatnonzero(ids["hoi"] >= 0)
    other = (hois[ids["hoi"][classed]] != np.stack([ids["verb"], ids["object"]], 1)[classed]).any(1)
    if other.any():
        row = int(classed[other.argmax()])
        verb, obj = hois[ids["hoi"][row]]
        raise UserError(
            f"{path}: row {row}: hoi {ids['hoi'][row]} is verb {verb} with object {obj}, but the row says verb "
            f"{ids['verb'][row]} with object {ids['object'][row]}; objects are counted in COCO-80 order, person = 0"
        )


def parquet_parts(folder: Path) -> list[Path]:
    """The Parquet files directly in a folder, as Spark, Dask and others write one table; none where it is no folder."""
    return sorted(folder.glob("*.parquet")) if folder.is_dir() else []


def _read_columns(path: Path) -> pa.Table:
    """The columns of the schema; every name present once, no cell empty, every type one that can be meant."""
    try:
        file = pq.ParquetFile(path)
        present, rows = file.schema_arrow, file.metadata.num_rows
        for name in SCHEMA.names:
            if (times := present.names.count(name)) != 1:
                wrong = "is missing" if not times else f"is there {times} times"
                raise UserError(f"{path}: column {name!r} {wrong}; a detections file has {', '.join(SCHEMA.names)}")
        if not rows:
            return SCHEMA.empty_table()  # an empty frame's columns have no types, or any
        for field in SCHEMA:
            kind = present.field(field.name).type
            if not _fits(kind, field.type):
                raise UserError(f"{path}: column {field.name!r} holds {kind}; it must hold {field.type}")
        # An image's name stands in every one of its rows: as a dictionary it is decoded once.
        table = pq.ParquetFile(path, read_dictionary=["image_id"]).read(columns=SCHEMA.names)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; give a Parquet file of detections") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: this is not a readable Parquet file ({str(error).splitlines()[0]})") from None
    for name in SCHEMA.names:
        if table[name].null_count:
            _refuse(path, table[name].is_null().to_numpy(), name, None, "is empty")
    return table


def _images(path: Path, column: pa.ChunkedArray, image_ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """``int32 [D]`` position of each row's image in the split."""
    known = pa.array(image_ids, pa.string())
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    parts = [np.zeros(0, np.int32)]
    for chunk in encoded.chunks:
        position = pc.fill_null(pc.index_in(chunk.dictionary.cast(pa.string()), value_set=known), -1).to_numpy()
        parts.append(position[chunk.indices.to_numpy()])
    image = np.concatenate(parts).astype(np.int32, copy=False)
    _refuse(path, image < 0, "image_id", column, "is no image of this split")
    return image


def _fits(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a column of ``kind`` can be read as ``wanted``: same family, any width, as other writers choose them; whole
    numbers where fractions are wanted."""
    kind = _plain_type(kind)
    if pa.types.is_string(wanted):
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if pa.types.is_integer(wanted):
        return pa.types.is_integer(kind)
    if pa.types.is_floating(wanted):
        return pa.types.is_floating(kind) or pa.types.is_integer(kind)
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return listed and _fits(kind.value_type, wanted.value_type)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values, dictionary or not."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _boxes(path: Path, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """``float32 [D, 4]`` from a column of lists, each checked to be one upright finite box."""
    _refuse(path, pc.list_value_length(column).to_numpy() != 4, name, column, "is not four numbers")
    flat = _cast(path, name, pc.list_flatten(column), pa.float32()).to_numpy(zero_copy_only=False)
    boxes = flat.reshape(-1, 4)
    _refuse(path, ~np.isfinite(boxes).all(1), name, boxes, "is not four finite numbers")
    inverted = (boxes[:, 2:] < boxes[:, :2]).any(1)
    _refuse(path, inverted, name, boxes, "ends before it begins; boxes are x1, y1, x2, y2")
    return boxes


def _cast(path: Path, name: str, column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """The column as another kind of numbers, none of which may be too large for it."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: column {name!r}: {str(error).splitlines()[0]}") from None


def _refuse(path: Path, bad: np.ndarray, name: str, values: object, complaint: str) -> None:
    """One line for the first bad row."""
    if not bad.any():
        return
    row = int(bad.argmax())
    value = "" if values is None else f" {_plain(values[row])}"  # type: ignore[index]
    more = f" (and {int(bad.sum()) - 1} more rows)" if bad.sum() > 1 else ""
    raise UserError(f"{path}: row {row}: {name}{value} {complaint}{more}")


def _plain(value: object) -> str:
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if isinstance(value, pa.StringScalar | pa.LargeStringScalar):
        value = value.as_buffer().to_pybytes().decode("utf-8", "backslashreplace")  # which it may not be
    value = value.as_py() if isinstance(value, pa.Scalar) else value
    return str(value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value))
