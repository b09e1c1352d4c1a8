"""What a training keeps beside its weights: worked out once, whole or not there, made anew where it was damaged.

Room for an array that is mapped is taken first: a full disk would else end the process without a word (SIGBUS).
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from hoi_distill.storage.files.atomic import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
DAMAGE = (OSError, ValueError, LookupError, RuntimeError, EOFError, zipfile.BadZipFile)
"""What readers raise of a file that was cut or scribbled over."""
_log = logging.getLogger(__name__)


def kept(place: Path, read: Callable[[Path], T], make: Callable[[Path], None]) -> T:
    """What ``read`` finds in ``place``, a file or a folder. Where it is not there whole, ``make`` writes it first.

    Args:
        place: the file or folder.
        read: raises one of :data:`DAMAGE` unless everything is there.
        make: is given the place of a draft.

    Raises:
        OSError: it cannot be written; nothing of the draft is left.
    """
    found = intact(place, read)
    if found is not None:
        return found
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(place) as draft:
        make(draft)
    return read(place)


def intact(place: Path, read: Callable[[Path], T]) -> T | None:
    """What ``read`` finds in ``place``; None where it is not there, or, which is told, not whole."""
    try:
        return read(place)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    except DAMAGE as error:
        _log.warning("%s: damaged (%s); it is made anew", place, " ".join(str(error).split()))
        return None


def new_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new ``npy`` file, mapped for writing, all zeros, with its room on the disk taken. Raises OSError where there is none."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    return array


def mapped(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """An ``npy`` file, mapped for reading. Raises one of :data:`DAMAGE` where it is not there or not of this kind."""
    found: np.ndarray = np.load(path, mmap_mode="r")
    if (found.dtype, found.shape) != (np.dtype(dtype), shape):
        raise ValueError(f"{found.dtype} {list(found.shape)} instead of {np.dtype(dtype)} {list(shape)}")
    return found


def shared_place(own: Path, shared: Path | None, name: str | None) -> Path:
    """Where an array lies that many trainings read: in a folder that they share, under a name of all that it is made of.

    Args:
        own: its place in the run's folder. It stays there where a run has it already, or where nothing can be shared.
        shared: the folder; None: there is none.
        name: what it is made of, see :meth:`~hoi_distill.stages.student.data.TrainingSet.name_of`; None: nothing is known.
    """
    if shared is None or name is None or own.exists():
        return own
    return shared / f"{own.stem}-{name}{own.suffix}"


def kept_array(
    path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """An array in ``path`` (npy), mapped for reading; ``fill`` writes it, from zeros, where it is not there whole."""

    def make(draft: Path) -> None:
        array = new_array(draft, dtype, shape)
        fill(array)
        array.flush()

    return kept(path, lambda place: mapped(place, dtype, shape), make)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole and durable, or leave what was there. Raises OSError where the disk has no room."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        try:
            save_file(
                {name: value.detach().contiguous() for name, value in tensors.items()}, draft, dict(metadata) or None
            )
        except SafetensorError as error:
            if (found := re.search(r"os error (\d+)", str(error))) is None:
                raise
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, on the CPU, and its metadata. Raises one of :data:`DAMAGE`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
