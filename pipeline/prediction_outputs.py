"""What ``predict`` writes: detections as Parquet, CSV, COCO-style JSON and JSON lines, drawings, and crops of pairs.

Everything is written as it comes. Memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow.parquet as pq

from hoi_distill.pipeline.hoi_result import HOIResult
from hoi_distill.stages.data.coco import COCO_CATEGORY_IDS, COCO_OBJECTS
from hoi_distill.stages.evaluate.formats.parquet import detections_writer
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.storage.files.atomic import atomic_write

COLUMNS = (
    "image", "verb", "object", "score",
    "human_x1", "human_y1", "human_x2", "human_y2", "object_x1", "object_y1", "object_x2", "object_y2",
    "seconds", "human_track", "object_track",
)  # fmt: skip
"""Of the CSV file. The last three are those of a video's frames."""


@dataclass(frozen=True)
class Wanted:
    """What is written beside ``detections.parquet``.

    Attributes:
        threshold: triplets of a lower score are in no file but that one.
        drawings: a drawing of each image, and a video with boxes of each video.
        csv: ``detections.csv``.
        coco: ``detections.coco.json``.
        crops: ``crops/<name>.<number>.jpg``, the image around each pair.
        lines: a line of JSON for each image, on standard output.
    """

    threshold: float = 0.0
    drawings: bool = True
    csv: bool = False
    coco: bool = False
    crops: bool = False
    lines: bool = False


@dataclass(frozen=True)
class Frame:
    """Where an image stands in a video.

    Attributes:
        seconds: from the video's beginning.
        human_track: for each pair the track of its person, from 1; 0 where there is none.
        object_track: likewise of its object.
    """

    seconds: float
    human_track: list[int]
    object_track: list[int]


class Outputs:
    """The files of one call, all open. Made by :func:`outputs`."""

    def __init__(self, out: Path, wanted: Wanted, table: pq.ParquetWriter) -> None:
        self.out, self.wanted, self.table = out, wanted, table
        self.rows: Any = None
        self.records: IO[str] | None = None
        self.first = True

    def add(self, name: str, result: HOIResult, frame: Frame | None = None) -> None:
        """Write the pairs of one image to all files but ``detections.parquet``.

        Args:
            name: the image's.
            result: its pairs from the threshold on, the best first.
            frame: where it stands in a video.
        """
        records = result.to_dict()
        for position, record in enumerate(records):
            if frame is not None:
                record |= {"human_track": frame.human_track[position], "object_track": frame.object_track[position]}
            if self.rows is not None:
                seconds = "" if frame is None else f"{frame.seconds:.3f}"
                self.rows.writerow(_row(name, record, seconds))
            if self.records is not None:
                self.records.write(("\n" if self.first else ",\n") + json.dumps(coco_record(name, record)))
                self.first = False
            if self.wanted.crops:
                self._crop(name, position + 1, result, record)
        if self.wanted.lines:
            time = {} if frame is None else {"seconds": round(frame.seconds, 3)}
            print(json.dumps({"image": name, **time, "size": list(result.image.size), "pairs": records}))

    def draw(self, name: str, result: HOIResult) -> None:
        """Write ``<name>.predicted.png``."""
        if not self.wanted.drawings:
            return
        target = self.out / f"{name}.predicted.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as drawing:
            result.plot(self.wanted.threshold).save(drawing, "PNG")

    def _crop(self, name: str, number: int, result: HOIResult, record: dict[str, Any]) -> None:
        """Write the image around both boxes of a pair."""
        human, other = (np.array(record[key] or record["human_box"]) for key in ("human_box", "object_box"))
        x1, y1, x2, y2 = box_ops.enclosing(human, other).round().astype(int).tolist()
        target = self.out / "crops" / f"{name}.{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            result.image.crop((x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))).save(file, "JPEG", quality=90)


@contextlib.contextmanager
def outputs(out: Path, wanted: Wanted) -> Iterator[Outputs]:
    """Open the files of a call. Each takes its place when the block ends without an error."""
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        written = Outputs(out, wanted, stack.enter_context(detections_writer(out / "detections.parquet")))
        if wanted.csv:
            file = stack.enter_context(atomic_write(out / "detections.csv", "w"))
            written.rows = csv.writer(file, lineterminator="\n")
            written.rows.writerow(COLUMNS)
        if wanted.coco:
            written.records = stack.enter_context(atomic_write(out / "detections.coco.json", "w"))
            written.records.write("[")
        yield written
        if written.records is not None:
            written.records.write("\n]\n")


def coco_record(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A pair as an entry of COCO's results, with two boxes.

    Args:
        name: the image's.
        record: of :meth:`hoi_distill.pipeline.hoi_result.HOIResult.to_dict`.

    Returns:
        ``image_id``, ``bbox`` and ``category_id`` of the person (1), the same of the object with ``object_`` before them
        (None where there is none or it is no object of COCO's), ``object``, ``verb`` and ``score``. Boxes are x, y, width,
        height.
    """
    obj = record["object"]
    return {
        "image_id": name,
        "category_id": 1,
        "bbox": _xywh(record["human_box"]),
        "object_category_id": COCO_CATEGORY_IDS[COCO_OBJECTS.index(obj)] if obj in COCO_OBJECTS else None,
        "object_bbox": _xywh(record["object_box"]),
        **{key: value for key, value in record.items() if key not in ("human_box", "object_box")},
    }


def _xywh(box: list[float] | None) -> list[float] | None:
    return None if box is None else [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _row(name: str, record: dict[str, Any], seconds: str) -> list[Any]:
    """A pair as a line of the CSV file."""
    numbers = [f"{edge:.2f}" for edge in record["human_box"]]
    numbers += [f"{edge:.2f}" for edge in record["object_box"]] if record["object_box"] else [""] * 4
    tracks = [record.get(key) or "" for key in ("human_track", "object_track")]
    return [name, record["verb"], record["object"] or "", f"{record['score']:.6f}", *numbers, seconds, *tracks]
