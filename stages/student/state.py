"""The exact state of a training run in one file, replaced in one step: a killed run goes on from its last save.

Batches, views, learning rate and the random numbers of a step are pure functions of the step and the seed, so weights,
optimiser moments and the number of steps done are all there is to keep.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from storage.errors import UserError


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
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    save_file({name: value.contiguous() for name, value in tensors.items()}, draft, {"done": str(done), "run": run})
    with open(draft, "rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: str,
    more: dict[str, Tensor] | None = None,
) -> int:
    """Put the saved state back, if there is one, and return the number of steps done. ``more`` is updated by what was
    saved beside.

    Raises:
        UserError: the state is that of another run.
    """
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata["run"] != run:
        raise UserError(f"{path}: the state of another run ({metadata['run']}, this is {run}); remove it to start anew")
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".", 2)
            slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    if more is not None:
        more.update({name[5:]: value for name, value in tensors.items() if name.startswith("more.")})
    return int(metadata["done"])
