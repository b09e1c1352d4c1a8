"""The exact state of a training run in one file, replaced in one step: a killed run goes on from its last save.

Batches, views, learning rate and the random numbers of a step are pure functions of the step and the seed, so weights,
optimiser moments and the number of steps done are all there is to keep.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hoi_distill.stages.student.files import DAMAGE, load_tensors, save_tensors
from hoi_distill.storage.errors import UserError


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    done: int,
    run: str,
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Replace ``path`` by the state after ``done`` steps. ``run`` names what is trained, see :func:`load_state`; ``more``
    is what else the method keeps."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
    tensors |= {f"more.{name}": value for name, value in (more or {}).items()}
    tensors = {name: value.detach().cpu() for name, value in tensors.items()}  # once, for the checksum and the file
    save_tensors(path, tensors, {"done": str(done), "run": run, "checksum": checksum(tensors, str(done), run)})


def checksum(tensors: Mapping[str, Tensor], *words: str) -> str:
    """Hexadecimal digest of words, names and values, which are on the CPU."""
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: str,
    more: dict[str, Tensor] | None = None,
    report: Callable[[str], None] = print,
) -> int:
    """Put the saved state back, if there is one, and return the number of steps done. ``more`` is updated by what was
    saved beside. A damaged one is told to ``report``, and the training starts anew.

    Raises:
        UserError: the state is that of another run.
    """
    try:
        tensors, metadata = load_tensors(path)
        done, own = int(metadata["done"]), metadata["run"]
        if metadata.get("checksum", found := checksum(tensors, str(done), own)) != found:  # older versions wrote none
            raise ValueError("its bytes have changed")
    except FileNotFoundError:
        return 0
    except PermissionError:
        raise
    except DAMAGE as error:
        report(f"{path}: damaged ({' '.join(str(error).split())}); the training starts anew")
        return 0
    if own != run:
        raise UserError(f"{path}: the state of another run ({own}, this is {run}); remove it to start anew")
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    if more is not None:
        more.update({name[5:]: value for name, value in tensors.items() if name.startswith("more.")})
    return done
