"""A trained pair classifier: what scoring a picture's pairs takes, saved with ``region_cnn.safetensors`` where the
student brings its own picture encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.data import Report, TestSet, valid_classes
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.network import PairClassifier, Shape
from hoi_distill.stages.student.methods.pair_classifier.region_cnn import RegionCNN, map_reader
from hoi_distill.stages.student.pairs.batches import MapReader
from hoi_distill.stages.student.pairs.instances import PictureTable
from hoi_distill.stages.student.pairs.predict import predict_test_set
from hoi_distill.stages.student.pretrained import best_device
from hoi_distill.stages.student.student import (
    Columns,
    Student,
    load_weights,
    refuse_other_version,
    save_student,
    weights_of,
)

ENCODER = "region_cnn.safetensors"


@dataclass(frozen=True)
class PairStudent(Student):
    """A pair classifier with its vocabulary.

    Attributes:
        region_cnn: the student's own picture encoder, or None where it reads the teacher's feature maps.
    """

    method: ClassVar[str] = "pair-classifier"
    version: ClassVar[int] = 1

    model: PairClassifier
    vocabulary: Vocabulary
    config: PairClassifierConfig
    identities: dict[str, Any] = field(default_factory=dict)
    region_cnn: RegionCNN | None = None
    origin: None = None

    def tables(self) -> Mapping[str, Columns]:
        looked_through: dict[str, Columns] = {"features": self.config.views[:1]} if self.region_cnn is None else {}
        return {"detections": None, **looked_through}

    def save_pretrained(self, folder: str | Path) -> None:
        beside = {} if self.region_cnn is None else {ENCODER: self.region_cnn.save}
        save_student(self, self.model, folder, beside, shape=asdict(self.model.shape))

    def predict(
        self,
        test: TestSet,
        run_dir: Path,
        shared: Path | None = None,
        report: Report = print,
        device: str | None = None,
    ) -> Path:
        valid = torch.from_numpy(valid_classes(self.vocabulary))
        views, where = self.config.views[:1], shared or run_dir.parent

        def maps_of(pictures: PictureTable) -> MapReader:
            return map_reader(test.source, pictures, views, self.region_cnn, where, test.read)

        return predict_test_set(
            self.model.to(device or best_device()),
            test,
            run_dir,
            self.config,
            self.vocabulary,
            valid,
            maps_of=maps_of,
            report=report,
        )


def load(folder: Path, record: Mapping[str, Any], vocabulary: Vocabulary) -> PairStudent:
    """A saved pair classifier, see :meth:`hoi_distill.stages.student.student.Student.from_pretrained`."""
    refuse_other_version(folder, record, PairStudent.version)
    config = PairClassifierConfig(**{**record["student"], "views": tuple(record["student"]["views"])})
    model = PairClassifier(Shape(**record["shape"]), torch.from_numpy(vocabulary.hois[:, 0].astype("int64")))
    load_weights(model, folder)
    cnn = RegionCNN.load(weights_of(folder, ENCODER)) if config.encoder == "region_cnn" else None
    return PairStudent(model.eval(), vocabulary, config, record["identities"], cnn)
