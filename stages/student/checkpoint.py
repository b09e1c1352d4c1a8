"""A trained student as a directory: ``config.json`` (method, version, vocabulary's digest ...), ``model.safetensors``,
``vocabulary.json``. Which other files and keys there are is its method's."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from hoi_distill.stages import weight_files
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.files import save_tensors
from hoi_distill.stages.student.method import METHODS, Columns, method_named
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.files import write_atomically

if TYPE_CHECKING:
    from torch import nn

    from hoi_distill.stages.student.prepare import TestSet


class Student(ABC):
    """Everything that finding interactions in a picture takes.

    Attributes:
        method: its name in :data:`hoi_distill.stages.student.method.METHODS`.
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
        """Write ``run_dir/detections.parquet`` (:data:`hoi_distill.stages.student.predict.SCHEMA`) and return its path.

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
            UserError: no such checkpoint, one of another method, version or vocabulary, or with other tensors, or one of which
                a file is missing, damaged or not what was saved.
        """
        folder = _folder(source, revision)
        record = _record(folder)
        name = str(record.get("method")).replace("-", "_")
        if name not in METHODS:
            raise UserError(f"{folder}: method is {record.get('method')!r}, this program reads {', '.join(METHODS)}")
        own = Vocabulary.load(folder / "vocabulary.json")
        if vocabulary is not None and own.digest() != vocabulary.digest():
            raise UserError(
                f"{folder}: trained for vocabulary {own.digest()} ({len(own.hois)} interactions), "
                f"asked to predict {vocabulary.digest()} ({len(vocabulary.hois)}); use a checkpoint of that vocabulary"
            )
        if record.get("vocabulary") != own.digest():
            raise UserError(
                f"{folder}/vocabulary.json: vocabulary {own.digest()}, but config.json was trained for "
                f"{record.get('vocabulary')}; put the checkpoint's own back"
            )
        method = method_named(name)
        try:
            student = method.load(folder, copy.deepcopy(record), own)  # which may take it apart
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:  # constructors raise what they like of a key that they lack or cannot use
            raise UserError(
                f"{folder}/config.json: not what this program writes for method {name} ({_reason(error)}); use the version that "
                "trained it, or train again"
            ) from error
        refuse_changed(folder, record)
        return student


def save_student(
    student: Student,
    model: nn.Module,
    folder: str | Path,
    beside: Mapping[str, Callable[[Path], None]] = MappingProxyType({}),
    **more: Any,
) -> None:
    """Write what every checkpoint has, ``config.json`` with the others' checksums last; each file whole or not at all.

    Args:
        beside: what writes the method's own files, by their name.
        more: the method's own keys of ``config.json``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Callable[[Path], None]] = {
        "model.safetensors": lambda path: save_tensors(path, model.state_dict(), {"format": "pt"}),
        "vocabulary.json": student.vocabulary.save,
        **beside,
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


def refuse_changed(folder: Path, record: Mapping[str, Any]) -> None:
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
    record = _record(folder)
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
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _settings_checksum(record: Mapping[str, Any]) -> str:
    """Of ``config.json``: of all that it says but the checksums."""
    settings = {key: value for key, value in record.items() if key != "checksums"}
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def _record(folder: Path) -> dict[str, Any]:
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


def _reason(error: Exception) -> str:
    """Of what a constructor raises of a key that it lacks or does not know, the key."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"no key {said}"
    found = re.search(r"unexpected keyword argument ('\w+')", said)
    return f"unknown key {found[1]}" if found else said


def refuse_other_version(folder: Path, record: Mapping[str, Any], expected: int) -> None:
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


def _folder(source: str | Path, revision: str | None) -> Path:
    folder = Path(os.path.expanduser(source))
    if (folder / "config.json").exists():
        return folder
    # A name with one slash may be the hub's; below a folder that is here it is a path.
    local = str(folder.parent) != "." and folder.parent.is_dir()
    if folder.exists() or local or str(source).count("/") != 1:
        inside = "; did you mean its checkpoint/?" if (folder / "checkpoint" / "config.json").exists() else ""
        missing = "it has no config.json" if folder.exists() else "there is no such folder"
        raise UserError(f"{source}: not a student's checkpoint: {missing}{inside}")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's client raises a dozen unrelated classes for "not to be had"
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source}: not a student's checkpoint: there is no such folder, and the model hub has it not to give: {why}"
        ) from None
    if not (folder / "config.json").exists():
        raise UserError(f"{source}: not a student's checkpoint: the model hub's repository has no config.json")
    return folder
