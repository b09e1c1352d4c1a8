"""A trained student as a directory: ``config.json``, ``model.safetensors``, ``vocabulary.json``, and
``region_cnn.safetensors`` where the student brings its own picture encoder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from stages.data.vocabulary import Vocabulary
from stages.student.config import StudentConfig
from stages.student.model import PairClassifier, Shape
from stages.student.region_cnn import RegionCNN
from storage.errors import UserError

METHOD = "pair-classifier"
VERSION = 1
"""Raised when the network's tensors change meaning."""


@dataclass(frozen=True)
class Student:
    """Everything that scoring a picture's pairs takes.

    Attributes:
        identities: what the features and detections came from (``{"detector": ..., "encoder": ...}``), to be compared
            with what is offered at prediction.
        region_cnn: the student's own picture encoder, or None where it reads the teacher's feature maps.
    """

    model: PairClassifier
    vocabulary: Vocabulary
    config: StudentConfig
    identities: dict[str, Any] = field(default_factory=dict)
    region_cnn: RegionCNN | None = None

    def save_pretrained(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        self.vocabulary.save(folder / "vocabulary.json")
        if self.region_cnn is not None:
            self.region_cnn.save(folder / "region_cnn.safetensors")
        record = {
            "method": METHOD,
            "version": VERSION,
            "vocabulary": self.vocabulary.digest(),
            "shape": asdict(self.model.shape),
            "student": asdict(self.config),
            "identities": self.identities,
        }
        (folder / "config.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(
        cls, source: str | Path, vocabulary: Vocabulary | None = None, revision: str | None = None
    ) -> Student:
        """Load a directory, or a model hub's repository of that name; in evaluation mode, on the CPU.

        Args:
            vocabulary: refuse a student of any other.

        Raises:
            UserError: no such checkpoint, or one of another method, version or vocabulary, or with other tensors.
        """
        folder = _folder(source, revision)
        record = json.loads((folder / "config.json").read_text())
        for key, expected in (("method", METHOD), ("version", VERSION)):
            if record.get(key) != expected:
                raise UserError(f"{folder}: {key} is {record.get(key)!r}, this program reads {expected!r}")
        own = Vocabulary.load(folder / "vocabulary.json")
        if vocabulary is not None and own.digest() != vocabulary.digest():
            raise UserError(
                f"{folder}: trained for vocabulary {own.digest()} ({len(own.hois)} interactions), "
                f"asked to predict {vocabulary.digest()} ({len(vocabulary.hois)}); use a checkpoint of that vocabulary"
            )
        config = StudentConfig(**{**record["student"], "views": tuple(record["student"]["views"])})
        model = PairClassifier(Shape(**record["shape"]), torch.from_numpy(own.hois[:, 0].astype("int64")))
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{folder / 'model.safetensors'}: not the tensors of its config.json: {reason}") from error
        cnn = RegionCNN.load(folder / "region_cnn.safetensors") if config.encoder == "region_cnn" else None
        return cls(model.eval(), own, config, record["identities"], cnn)


def _folder(source: str | Path, revision: str | None) -> Path:
    folder = Path(source)
    if (folder / "config.json").exists():
        return folder
    if folder.exists() or str(source).count("/") != 1:
        raise UserError(f"{source}: not a student's checkpoint: it has no config.json")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source), revision=revision))
