"""Detections without a detector: boxes from a COCO-results file, or the annotated ones, for study.

A cell is what every detector of this project stores: ``{boxes, scores, labels, width, height}``, boxes xyxy in pixels
of the original image (zero-based, half-open), labels 0-based in COCO-80 order (person = 0), best score first, at
most :data:`TOP`, no score floor. Each row's input digest covers its own records only, so that an edited box recomputes
what was computed from that image and nothing else.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from typing_extensions import override

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.object_detections import ObjectDetections, load_detections
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.stage import ArrowOutput, Batch, Stage, Values
from hoi_distill.storage.digests import digest64
from hoi_distill.storage.errors import UserError

_log = logging.getLogger(__name__)

TOP = 100
"""Boxes kept of each image."""
DETECTIONS = pa.struct(
    [
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))),
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int16())),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)


class GivenDetections(Stage):
    """Detections that are looked up by the image's name, not computed. An image without records gets no boxes.

    Args:
        annotations: the data set whose images are asked for; only their names and sizes are kept.
    """

    name = "detections"
    decodes = False
    columns = ("value",)
    output = ArrowOutput(DETECTIONS)
    batch_size = 256

    def __init__(self, annotations: Annotations) -> None:
        none = np.zeros(0, np.int64)
        self.images = replace(  # the stage travels with every task
            annotations.take(none),
            image_id=annotations.image_id,
            path=[""] * len(annotations),
            width=annotations.width,
            height=annotations.height,
            pair_offsets=np.zeros(len(annotations) + 1, np.int64),
            vocabulary=None,
        )

    @cached_property
    @abstractmethod
    def detections(self) -> ObjectDetections:
        """All boxes, by image, within each by falling score."""

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {str(key): row for row, key in enumerate(self.images.image_id)}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("detections", "_row_of")}

    @override
    def source_digests(self, keys: Sequence[str]) -> np.ndarray:
        """``uint64 [N]``: an image's cell depends on its own records and size."""
        found, digests = self.detections, np.empty(len(keys), np.uint64)
        for position, key in enumerate(keys):
            row = self._row_of[key]
            part = self._top(row)
            size = np.array([self.images.width[row], self.images.height[row]], np.int32)
            records = (found.boxes[part], found.scores[part], found.labels[part], size)
            digests[position] = digest64(b"".join(record.tobytes() for record in records))
        return digests

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        """Nothing to load: the records are read when they are first asked for."""

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        found = self.detections
        rows = np.array([self._row_of[key] for key in batch.keys])
        parts = [self._top(row) for row in rows]
        chosen = np.concatenate([np.arange(part.start, part.stop) for part in parts])
        offsets = pa.array(np.cumsum([0, *(part.stop - part.start for part in parts)]), pa.int32())
        boxes = pa.FixedSizeListArray.from_arrays(pa.array(found.boxes[chosen].reshape(-1)), 4)
        lists = [pa.ListArray.from_arrays(offsets, boxes)]
        lists += [pa.ListArray.from_arrays(offsets, pa.array(array[chosen])) for array in (found.scores, found.labels)]
        sizes = [pa.array(side[rows].astype(np.int32)) for side in (self.images.width, self.images.height)]
        return {"value": pa.StructArray.from_arrays([*lists, *sizes], fields=list(DETECTIONS))}

    def _top(self, row: int) -> slice:
        part = self.detections.of(row)
        return slice(part.start, min(part.stop, part.start + TOP))


class DetectionsFromFile(GivenDetections):
    """Boxes from COCO-results JSON files, each a list of ``{image_id, category_id, bbox [x, y, w, h], score}``.

    Raises:
        UserError: from planning on, when the file or an entry is not what it should be
            (:func:`hoi_distill.stages.data.object_detections.load_detections`). What is allowed and hardly meant is warned of
            there, too: boxes beyond their images, images without any.
    """

    class Config(Stage.Config):
        path: str | Path | tuple[str | Path, ...]
        """A file, or several (one a split, say)."""
        lenient: bool = False
        """Drop bad entries with a warning instead of refusing the file."""
        categories: Literal["coco", "vocabulary"] | None = None
        """What ``category_id`` counts: ``coco``, its official ids, or ``vocabulary``, the positions in its objects, from
        1. It must be said where those are not COCO's."""

    partial = False
    """Whether the images are only some of those that the file is about, so that it may have no box of them."""

    def __init__(self, config: Config, annotations: Annotations, vocabulary: Vocabulary) -> None:
        path, objects = config.path, vocabulary.objects
        if config.categories is None and objects != COCO_OBJECTS:
            raise UserError(
                "categories: the vocabulary has objects of its own; write categories: vocabulary where category_id counts "
                "them from 1, or coco where boxes need only tell persons from things"
            )
        super().__init__(annotations)
        self.paths = [str(one) for one in ([path] if isinstance(path, (str, Path)) else path)]
        self.lenient, self.told = config.lenient, False
        self.objects = objects if config.categories == "vocabulary" else None

    @override
    def parameters(self) -> dict[str, Any]:
        """The file's name is provenance; what it says of an image is that row's input digest."""
        return {"detector": "file", "top": TOP}

    @override
    def provenance(self) -> dict[str, Any]:
        return {"files": self.paths}

    @cached_property
    @override
    def detections(self) -> ObjectDetections:
        several = len(self.paths) > 1
        found = _merged(
            [
                load_detections(
                    path, self.images, lenient=self.lenient, partial=several or self.partial, objects=self.objects
                )
                for path in self.paths
            ]
        )
        if several and not self.partial and not len(found.scores):
            raise UserError(f"{', '.join(self.paths)}: no box of any image of {self.images.name}")
        if not self.told:  # a stage that has travelled to a worker has told it where it was planned
            self.told = True
            for line in (*found.remarks, *self._without(found)):
                _log.warning(line)
        return found

    def _without(self, found: ObjectDetections) -> Iterator[str]:
        """A line on the images without an entry."""
        rows = np.array(list(self._row_of.values()))
        without = rows[np.diff(found.offsets)[rows] == 0]
        if len(without):
            yield (
                f"{', '.join(self.paths)}: no entry for {len(without):,} of {len(rows):,} images (first "
                f"{self.images.image_id[without[0]]}), which get no boxes"
            )


def _merged(parts: Sequence[ObjectDetections]) -> ObjectDetections:
    """The boxes of several files as one, by image and falling score."""
    if len(parts) == 1:
        return parts[0]
    image = np.concatenate([np.repeat(np.arange(len(p.offsets) - 1), np.diff(p.offsets)) for p in parts])
    scores = np.concatenate([part.scores for part in parts])
    order = np.lexsort((-scores, image))
    return ObjectDetections(
        offsets=np.sum([part.offsets for part in parts], axis=0),
        boxes=np.concatenate([part.boxes for part in parts])[order],
        scores=scores[order],
        labels=np.concatenate([part.labels for part in parts])[order],
        remarks=tuple(line for part in parts for line in part.remarks),
    )


class DetectionsFromAnnotations(GivenDetections):
    """The annotated boxes, each once, score 1: a perfect detector, for study. Persons come first."""

    def __init__(self, annotations: Annotations) -> None:
        super().__init__(annotations)
        image = annotations.pair_image()
        labels = np.concatenate([np.zeros(len(image), np.int16), annotations.object])
        boxes = np.concatenate([annotations.human_box, annotations.object_box]).astype(np.float32)
        keys = np.column_stack([np.concatenate([image, image]), labels, boxes]).astype(np.float64)
        unique = np.unique(keys, axis=0)  # by image, then label, then box
        self._given = ObjectDetections(
            offsets=np.searchsorted(unique[:, 0], np.arange(len(annotations) + 1)).astype(np.int64),
            boxes=unique[:, 2:].astype(np.float32),
            scores=np.ones(len(unique), np.float32),
            labels=unique[:, 1].astype(np.int16),
        )

    @override
    def parameters(self) -> dict[str, Any]:
        return {"detector": "annotations", "top": TOP}

    @cached_property
    @override
    def detections(self) -> ObjectDetections:
        return self._given
