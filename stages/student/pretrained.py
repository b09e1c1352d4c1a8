"""A trained student from its directory or from a model hub."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path

import torch
from pydantic import ValidationError

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.method import METHODS, method_named
from hoi_distill.stages.student.student import Student, read_record, refuse_changed
from hoi_distill.storage.errors import UserError


def load_student(source: str | Path, vocabulary: Vocabulary | None = None, revision: str | None = None) -> Student:
    """Load a directory, or a model hub's repository of that name; in evaluation mode, on the CPU.

    Args:
        source: a folder, or the name of a repository.
        vocabulary: refuse a student of any other.
        revision: branch, tag or commit of a repository; default: its newest.

    Raises:
        UserError: no such checkpoint, one of another method, version or vocabulary, or with other tensors, or one of which
            a file is missing, damaged or not what was saved.
    """
    folder = checkpoint_folder(source, revision)
    record = read_record(folder)
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


def _reason(error: Exception) -> str:
    """The key in the error of a constructor that lacks a key or does not know one."""
    reason = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"no key {reason}"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        return f"unknown key {key!r}" if first["type"] == "unexpected_keyword_argument" else f"{key}: {first['msg']}"
    found = re.search(r"unexpected keyword argument ('\w+')", reason)
    return f"unknown key {found[1]}" if found else reason


def checkpoint_folder(source: str | Path, revision: str | None) -> Path:
    """The folder of a checkpoint: ``source`` itself, or where the model hub's repository of that name lies after a download.

    Raises:
        UserError: there is neither, or it is no checkpoint.
    """
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
    except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen unrelated classes for "not to be had"
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{source}: not a student's checkpoint: there is no such folder, and the model hub has it not to give: {why}"
        ) from None
    if not (folder / "config.json").exists():
        raise UserError(f"{source}: not a student's checkpoint: the model hub's repository has no config.json")
    return folder


def best_device() -> str:
    """``cuda`` where torch finds a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
