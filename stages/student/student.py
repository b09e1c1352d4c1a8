"""A trained student as a directory: ``config.json`` (method, version, vocabulary's digest ...), ``model.safetensors``,
``vocabulary.json``. Which other files and keys there are is its method's."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from hoi_distill.stages.checkpoints import weight_files
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.files import save_tensors
from hoi_distill.storage.digests import content_name, digest_of_file
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files.atomic import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from hoi_distill.stages.exported_graph import ExportedGraph
    from hoi_distill.stages.student.data import TestSet


Columns = tuple[str, ...] | None
"""Columns of a table; None: all that it has."""
Identities = dict[str, Any]
"""By role, what made a table that a student reads; compared with the table that is offered at prediction."""
CheckpointRecord = dict[str, Any]
"""A checkpoint's ``config.json``: ``method``, ``version``, ``vocabulary``, ``student`` (the parameters), ``identities``,
``checksums``, and the method's own keys."""


@dataclass(frozen=True, eq=False)
class PairAttention:
    """Where a network looks for each of the P pairs of one image.

    Attributes:
        human_box: float32 ``[P, 4]``, xyxy pixels.
        object_box: float32 ``[P, 4]``, xyxy pixels.
        weights: by layer and branch ("layer 1, spatial") float32 ``[P, h, w]``, the mean over heads of the attention to the
            cells of the map: it sums to 1.
    """

    human_box: np.ndarray
    object_box: np.ndarray
    weights: Mapping[str, np.ndarray]


class Student(ABC):
    """Everything that finding interactions in an image takes.

    Attributes:
        method: its name in :data:`hoi_distill.stages.student.method.METHODS`.
        version: raised when the network's tensors change meaning.
        config: the parameters it was trained with, a dataclass.
        origin: what its weights started from, where that is worth recording.
        identities: what made the tables that it reads.
    """

    method: ClassVar[str]
    version: ClassVar[int]
    vocabulary: Vocabulary
    config: Any
    identities: Identities
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
        """Write ``run_dir/detections.parquet`` (:data:`hoi_distill.stages.evaluate.detections.SCHEMA`) and return its path.

        Args:
            test: the images.
            run_dir: the run's folder.
            shared: where variants of a study keep what they share; default: the run folder's parent.
            report: is given lines for people.
            device: where the network works; default: a GPU where there is one.
        """

    def graph(self, maps: tuple[int, int, int] | None) -> ExportedGraph:  # noqa: ARG002 - a default
        """The network as one graph of an image.

        Args:
            maps: ``(C, h, w)`` of the feature maps; None where the student reads none.

        Raises:
            UserError: students of this method, or of these parameters, are not exported.
        """
        raise UserError(f"students of method {self.method} are not exported")

    def graph_inputs(self, detections: Any) -> dict[str, np.ndarray] | None:  # noqa: ARG002 - a default
        """What the graph is given of an image beside its feature map.

        Args:
            detections: the image's cell of the ``detections`` table.

        Returns:
            Arrays by the names of the graph's inputs; None where no person is detected, or nothing beside the person.

        Raises:
            UserError: see :meth:`graph`.
        """
        raise UserError(f"students of method {self.method} are not exported")

    def pair_attention(self, detections: Any, features: np.ndarray) -> PairAttention:  # noqa: ARG002 - a default
        """Where the network looks for each pair of an image, on the CPU.

        Args:
            detections: the image's cell of the ``detections`` table.
            features: float ``[C, h, w]``, its feature map.

        Raises:
            UserError: networks of this method have no attention of pairs to a map.
        """
        raise UserError(f"students of method {self.method} have no attention of a pair to the feature map")

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint, which :func:`~hoi_distill.stages.student.pretrained.load_student` reads."""


VALIDATION_RECORD = "validation.json"
"""In a run's folder: which student held-out images chose."""


@dataclass(frozen=True)
class HeldOut:
    """Annotated images that a training is judged by and does not train on.

    Attributes:
        images: how many there are.
        score: ``(student, folder, device)`` to the mean average precision on them, in percent. The folder is for files that
            are made on the way.
        every: steps between two checks; None: a twentieth of the training.
        patience: so many checks in a row without a better one end the training; 0: it goes on to its last step.
    """

    images: int
    score: Callable[[Student, Path, str], float]
    every: int | None = None
    patience: int = 0


def save_student(
    student: Student,
    model: nn.Module,
    folder: str | Path,
    own_files: Mapping[str, Callable[[Path], None]] = MappingProxyType({}),
    **more: Any,
) -> None:
    """Write what every checkpoint has, ``config.json`` with the others' checksums last; each file whole or not at all.

    Args:
        student: says what ``config.json`` holds.
        model: the network.
        folder: made where it is not there.
        own_files: what writes the method's own files, by their name.
        more: the method's own keys of ``config.json``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Callable[[Path], None]] = {
        "model.safetensors": lambda path: save_tensors(path, model.state_dict(), {"format": "pt"}),
        "vocabulary.json": student.vocabulary.save,
        **own_files,
    }
    for name, write in files.items():
        write(folder / name)
    record = {
        "method": student.method,
        "version": student.version,
        "vocabulary": student.vocabulary.digest(),
        "student": asdict(student.config),
        "identities": student.identities,
        **more,
    }
    record = json.loads(json.dumps(record))  # as it will be read
    record["checksums"] = {name: _checksum(folder / name) for name in files} | {
        "config.json": _settings_checksum(record)
    }
    write_atomically(folder / "config.json", json.dumps(record, indent=2, sort_keys=True) + "\n")


def refuse_changed(folder: Path, record: CheckpointRecord) -> None:
    """Raises UserError where a file of the checkpoint is not the one that was saved, as ``record``, its ``config.json``, knows.
    One that was saved before there were checksums has none to break."""
    for name, checksum in (record.get("checksums") or {}).items():
        now = _settings_checksum(record) if name == "config.json" else _checksum(folder / name)
        if now != checksum:
            raise UserError(
                f"{folder / name}: not as it was saved (checksum {now[:12]}, config.json knows {str(checksum)[:12]}); put it "
                "back or train again; if the change is meant, take the key 'checksums' out of config.json"
            )


def refuse_damaged(folder: Path) -> None:
    """Raises UserError where a file of a checkpoint is missing or not as it was saved; nothing is loaded."""
    record = read_record(folder)
    weights_of(folder)
    refuse_changed(folder, record)


def weights_of(folder: Path, name: str = "model.safetensors") -> Path:
    """A checkpoint's weight file; UserError where it is missing, cut or only Git LFS's pointer."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path}: missing from the checkpoint; put it back or train again")
    weight_files.refuse_cut(path)
    return path


def _checksum(path: Path) -> str:
    """32 hex digits over the bytes of a file; "missing" where there is none."""
    if not path.is_file():
        return "missing"
    return digest_of_file(path).hex()


def _settings_checksum(record: CheckpointRecord) -> str:
    """Of ``config.json``: of all that it says but the checksums."""
    settings = {key: value for key, value in record.items() if key != "checksums"}
    return content_name(json.dumps(settings, sort_keys=True).encode())


def read_record(folder: Path) -> CheckpointRecord:
    """A checkpoint's ``config.json``; UserError where it is not a student's."""
    path = folder / "config.json"
    weight_files.refuse_pointer(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); put the checkpoint's own back") from None
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key) or {}, dict) for key in ("checksums", "identities")
    ):
        raise UserError(f"{path}: not a student's configuration; put the checkpoint's own back")
    return record


def refuse_other_version(folder: Path, record: CheckpointRecord, expected: int) -> None:
    """Raises UserError for a checkpoint whose tensors mean something else."""
    if record.get("version") != expected:
        raise UserError(f"{folder}: version is {record.get('version')!r}, this program reads {expected!r}")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Raises UserError where ``model.safetensors`` is not whole or does not hold just this network's tensors."""
    from safetensors.torch import load_file

    path = weights_of(folder)
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not the tensors of its config.json: {reason}") from error
