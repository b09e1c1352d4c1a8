"""A trained pair classifier: what scoring a picture's pairs takes, saved with ``region_cnn.safetensors`` where the
student brings its own picture encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.data import TestSet
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.network import PairClassifier, Shape
from hoi_distill.stages.student.methods.pair_classifier.region_cnn import RegionCNN, map_reader
from hoi_distill.stages.student.pairs.batches import MapReader
from hoi_distill.stages.student.pairs.instances import PictureTable
from hoi_distill.stages.student.pairs.student import StudentOfPairs
from hoi_distill.stages.student.student import (
    CheckpointRecord,
    Columns,
    Identities,
    load_weights,
    refuse_other_version,
    save_student,
    weights_of,
)

ENCODER = "region_cnn.safetensors"


@dataclass(frozen=True)
class PairStudent(StudentOfPairs):
    """A pair classifier with its vocabulary.

    Attributes:
        region_cnn: the student's own picture encoder, or None where it reads the teacher's feature maps.
    """

    method: ClassVar[str] = "pair-classifier"
    version: ClassVar[int] = 1

    model: PairClassifier
    vocabulary: Vocabulary
    config: PairClassifierConfig
    identities: Identities = field(default_factory=dict)
    region_cnn: RegionCNN | None = None
    origin: None = None

    @override
    def tables(self) -> Mapping[str, Columns]:
        """Detections, and feature maps where it has no encoder of its own."""
        return super().tables() if self.region_cnn is None else {"detections": None}

    @override
    def save_pretrained(self, folder: str | Path) -> None:
        own_files = {} if self.region_cnn is None else {ENCODER: self.region_cnn.save}
        save_student(self, self.model, folder, own_files, shape=asdict(self.model.shape))

    @override
    def maps(self, test: TestSet, pictures: PictureTable, shared: Path) -> MapReader:
        """Those of the student's own encoder, if it has one."""
        return map_reader(
            test.source, pictures, self.config.views[:1], cnn=self.region_cnn, shared=shared, read=test.read
        )


def load(folder: Path, record: CheckpointRecord, vocabulary: Vocabulary) -> PairStudent:
    """A saved pair classifier, see :func:`hoi_distill.stages.student.pretrained.load_student`."""
    refuse_other_version(folder, record, PairStudent.version)
    config = PairClassifierConfig(**{**record["student"], "views": tuple(record["student"]["views"])})
    model = PairClassifier(Shape(**record["shape"]), torch.from_numpy(vocabulary.hois[:, 0].astype("int64")))
    load_weights(model, folder)
    cnn = RegionCNN.load(weights_of(folder, ENCODER)) if config.encoder == "region_cnn" else None
    return PairStudent(model.eval(), vocabulary, config, record["identities"], cnn)
