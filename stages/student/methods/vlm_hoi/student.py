"""A trained VLM-HOI student: the network, its vocabulary, and how it predicts. It needs no table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.data import TestSet
from hoi_distill.stages.student.methods.vlm_hoi.config import VlmHoiConfig
from hoi_distill.stages.student.methods.vlm_hoi.model_config import MurenConfig
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren
from hoi_distill.stages.student.methods.vlm_hoi.predict import Inference, predicted, write_triplets
from hoi_distill.stages.student.pretrained import best_device
from hoi_distill.stages.student.student import (
    CheckpointRecord,
    Columns,
    Identities,
    Student,
    load_weights,
    refuse_other_version,
    save_student,
)
from hoi_distill.storage.errors import UserError


@dataclass(frozen=True)
class VlmHoiStudent(Student):
    method: ClassVar[str] = "vlm-hoi"
    version: ClassVar[int] = 1

    model: Muren
    vocabulary: Vocabulary
    config: VlmHoiConfig
    identities: Identities = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    @override
    def tables(self) -> Mapping[str, Columns]:
        return {}

    @override
    def save_pretrained(self, folder: str | Path) -> None:
        save_student(self, self.model, folder, shape=self.model.config.to_json(), origin=self.origin)

    @override
    def predict(
        self,
        test: TestSet,
        run_dir: Path,
        shared: Path | None = None,
        report: Callable[[str], None] = print,
        device: str | None = None,
    ) -> Path:
        if test.read is None:
            raise UserError("vlm_hoi: needs the pictures themselves")
        self.model.to(device or best_device())
        path = run_dir / "detections.parquet"
        found = predicted(
            self.model,
            len(test.image_ids),
            test.read,
            Inference(self.config.pictures, self.config.scoring, self.config.predict_batch),
            vocabulary=self.vocabulary,
            missing_object=self.model.config.missing_object,
        )
        count = write_triplets(path, found, test.image_ids, self.vocabulary)
        report(f"predicted {count} triplets in {len(test.image_ids)} pictures")
        return path


def load(folder: Path, record: CheckpointRecord, vocabulary: Vocabulary) -> VlmHoiStudent:
    """A saved student, see :func:`hoi_distill.stages.student.pretrained.load_student`."""
    refuse_other_version(folder, record, VlmHoiStudent.version)
    model = Muren(MurenConfig.from_json(record["shape"]))
    load_weights(model, folder)
    config = VlmHoiConfig(**record["student"])
    return VlmHoiStudent(model.eval(), vocabulary, config, record["identities"], record["origin"])
