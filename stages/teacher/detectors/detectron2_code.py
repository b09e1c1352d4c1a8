"""What a checkpoint of somebody else may name of detectron2: nothing that runs code when it is read.

A lazy configuration (``.py``) is a program. A yaml configuration is read by detectron2 with every tag that yaml knows, some of
which call functions, and so may the files that it stands on. A ``.pkl`` and a ``.pth`` are pickles. Who writes a configuration
of a run names such files deliberately; a downloaded student names them for whoever predicts with it.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from typing_extensions import override

from hoi_distill.storage.errors import UserError

PLAIN = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}  # fmt: skip
"""What a pickle of arrays calls."""
REMEDY = "give the boxes with --detections instead"


class Arrays(pickle.Unpickler):
    """Reads pickles of arrays and plain values only."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        """A class by its name, if it is one of arrays and plain values."""
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it calls {module}.{name}")
        return super().find_class(module, name)


def refuse_code(config: str, weights: str) -> None:
    """Of a foreign checkpoint's ``detectron2`` stage: its files only hold values, or are detectron2's own.

    Raises:
        UserError: reading one of them would run code of its own.
    """
    path = Path(os.path.expanduser(config))
    if path.is_file():
        _refuse_tags(path)
    elif path.is_absolute() or ".." in path.parts:  # beside the names of the model zoo, which lie in detectron2
        raise UserError(f"{config}: no such detectron2 configuration; {REMEDY}")
    file = Path(os.path.expanduser(weights))
    if file.is_file():
        _refuse_calls(file)


def _refuse_tags(path: Path) -> None:
    import yaml

    if path.suffix not in (".yaml", ".yml"):
        raise UserError(
            f"{path}: a detectron2 configuration in Python is a program, which a checkpoint shall not run; {REMEDY}"
        )
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        here = waiting.pop()
        if here in seen:
            continue
        seen.add(here)
        try:
            record = yaml.safe_load(here.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{here}: not a configuration of plain values ({why}); {REMEDY}") from None
        base = record.get("_BASE_", []) if isinstance(record, dict) else []
        for name in base if isinstance(base, list) else [base]:
            if "://" in str(name):
                raise UserError(f"{here}: stands on {name}, which nobody has looked at; {REMEDY}")
            waiting.append(Path(os.path.normpath(here.parent / os.path.expanduser(str(name)))))


def _refuse_calls(file: Path) -> None:
    import torch

    try:
        if file.suffix == ".pkl":
            with open(file, "rb") as stream:
                Arrays(stream, encoding="latin1").load()
        else:
            torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - pickles raise what they like
        why = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        raise UserError(f"{file}: weights that run code when they are read, or none at all ({why}); {REMEDY}") from None
