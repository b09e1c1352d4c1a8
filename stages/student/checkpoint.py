"""A trained student as a directory: ``config.json`` (method, version, vocabulary's digest ...), ``model.safetensors``,
``vocabulary.json``. Which other files and keys there are is its method's."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stages.data.vocabulary import Vocabulary
from stages.student.files import save_tensors
from stages.student.method import METHODS, Columns, method_named
from storage.errors import UserError
from storage.files import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from stages.student.prepare import TestSet


class Student(ABC):
    """Everything that finding interactions in a picture takes.

    Attributes:
        method: its name in :data:`stages.student.method.METHODS`.
        version: raised when the network's tensors change meaning.
        config: the parameters it was trained with, a dataclass.
        origin: what its weights started from, where that is worth recording.
        identities: by role, what the tables came from that it reads, to be compared with what is offered at prediction.
    """

    method: ClassVar[str]
    version: ClassVar[int]
    vocabulary: Vocabulary
    config: Any
    identities: dict[str, Any]
    origin: dict[str, Any] | None

    @abstractmethod
    def tables(self) -> Mapping[str, Columns]:
        """The tables that it reads at test time, by role, with their columns."""

    @abstractmethod
    def predict(
        self,
        test: TestSet,
        run_dir: Path,
        shared: Path | None = None,
        report: Callable[[str], None] = print,
        device: str | None = None,
    ) -> Path:
        """Write ``run_dir/detections.parquet`` (:data:`stages.student.predict.SCHEMA`) and return its path.

        Args:
            shared: where variants of a study keep what they share; default: the run folder's parent.
            device: where the network works; default: a GPU where there is one.
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None: ...

    @staticmethod
    def from_pretrained(
        source: str | Path, vocabulary: Vocabulary | None = None, revision: str | None = None
    ) -> Student:
        """Load a directory, or a model hub's repository of that name; in evaluation mode, on the CPU.

        Args:
            vocabulary: refuse a student of any other.

        Raises:
            UserError: no such checkpoint, or one of another method, version or vocabulary, or with other tensors.
        """
        folder = _folder(source, revision)
        record = json.loads((folder / "config.json").read_text())
        name = str(record.get("method")).replace("-", "_")
        if name not in METHODS:
            raise UserError(f"{folder}: method is {record.get('method')!r}, this program reads {', '.join(METHODS)}")
        own = Vocabulary.load(folder / "vocabulary.json")
        if vocabulary is not None and own.digest() != vocabulary.digest():
            raise UserError(
                f"{folder}: trained for vocabulary {own.digest()} ({len(own.hois)} interactions), "
                f"asked to predict {vocabulary.digest()} ({len(vocabulary.hois)}); use a checkpoint of that vocabulary"
            )
        return method_named(name).load(folder, record, own)


def save_student(student: Student, model: nn.Module, folder: str | Path, **more: Any) -> None:
    """Write what every checkpoint has; ``more`` are the method's own keys of ``config.json``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", model.state_dict(), {"format": "pt"})
    student.vocabulary.save(folder / "vocabulary.json")
    record = {
        "method": student.method,
        "version": student.version,
        "vocabulary": student.vocabulary.digest(),
        "student": asdict(student.config),
        "identities": student.identities,
        **more,
    }
    write_atomically(folder / "config.json", json.dumps(record, indent=2, sort_keys=True) + "\n")


def refuse_other_version(folder: Path, record: Mapping[str, Any], expected: int) -> None:
    """Raises UserError for a checkpoint whose tensors mean something else."""
    if record.get("version") != expected:
        raise UserError(f"{folder}: version is {record.get('version')!r}, this program reads {expected!r}")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Raises UserError where ``model.safetensors`` does not hold just this network's tensors."""
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / 'model.safetensors'}: not the tensors of its config.json: {reason}") from error


def _folder(source: str | Path, revision: str | None) -> Path:
    folder = Path(source)
    if (folder / "config.json").exists():
        return folder
    if folder.exists() or str(source).count("/") != 1:
        inside = "; did you mean its checkpoint/?" if (folder / "checkpoint" / "config.json").exists() else ""
        missing = "it has no config.json" if folder.exists() else "there is no such folder"
        raise UserError(f"{source}: not a student's checkpoint: {missing}{inside}")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source), revision=revision))
