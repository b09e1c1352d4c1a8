"""The resume state of a training: one file that is replaced in one step, from which a killed run continues.

Batches, views, learning rates and random numbers are functions of the step and the seed. The file therefore holds no more
than the weights, the optimizer's moments, what components keep, and the number of steps done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hoi_distill.stages.student.data import TrainingSet
from hoi_distill.stages.student.files import DAMAGE, load_tensors, save_tensors
from hoi_distill.stages.student.method import parameters_of
from hoi_distill.storage.digests import content_name, content_name_of
from hoi_distill.storage.errors import UserError

MODEL, OPTIMIZER, MORE = "model.", "optimizer.", "more."
"""Prefixes of the file's tensors."""


def run_name(config: Any, bookkeeping: Collection[str], data: TrainingSet) -> str:
    """A digest of what decides a run's weights. A state of another name is not resumed.

    Args:
        config: the method's parameters, a dataclass.
        bookkeeping: its fields that change no weight.
        data: the training set.
    """
    record = [
        parameters_of(config, bookkeeping),
        data.identity,
        len(data.image),
        int(data.labelled.sum()),
        data.vocabulary.digest(),
    ]
    return content_name(json.dumps(record).encode(), 8)


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    done: int,
    run: str,
    *,
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Replace ``path`` by the state after ``done`` steps.

    Args:
        path: the file.
        model: its weights are kept.
        optimizer: its moments are kept.
        done: number of steps done.
        run: name of the run, see :func:`run_name`.
        more: tensors of other parts of the training, by name.
    """
    tensors = {f"{MODEL}{name}": value for name, value in model.state_dict().items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{name}": value for name, value in slots.items()}
    tensors |= {f"{MORE}{name}": value for name, value in (more or {}).items()}
    tensors = {name: value.detach().cpu() for name, value in tensors.items()}  # once, for the checksum and the file
    save_tensors(path, tensors, {"done": str(done), "run": run, "checksum": checksum(tensors, str(done), run)})


def checksum(tensors: Mapping[str, Tensor], *words: str) -> str:
    """Hexadecimal digest of words, names and values, which are on the CPU."""

    def parts() -> Iterator[bytes | memoryview]:
        yield " ".join(words).encode()
        for name, value in sorted(tensors.items()):
            yield name.encode()
            yield value.contiguous().reshape(-1).view(torch.uint8).numpy().data

    return content_name_of(parts())


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: str,
    *,
    report: Callable[[str], None] = print,
) -> tuple[int, dict[str, Tensor]]:
    """Restore the saved state, if there is one. A damaged file is reported, and the training starts anew.

    Args:
        path: the file.
        model: gets the saved weights.
        optimizer: gets the saved moments.
        run: name of the run, see :func:`run_name`.
        report: gets a line for people.

    Returns:
        The number of steps done, and the tensors of other parts of the training by name; 0 and none where nothing was
        restored.

    Raises:
        UserError: the state is that of another run.
    """
    try:
        tensors, metadata = load_tensors(path)
        done, own = int(metadata["done"]), metadata["run"]
        if metadata.get("checksum", found := checksum(tensors, str(done), own)) != found:  # older versions wrote none
            raise ValueError("its bytes have changed")
    except FileNotFoundError:
        return 0, {}
    except PermissionError:
        raise
    except DAMAGE as error:
        report(f"{path}: damaged ({' '.join(str(error).split())}); the training starts anew")
        return 0, {}
    if own != run:
        raise UserError(f"{path}: the state of another run ({own}, this is {run}); remove it to start anew")
    parts: dict[str, dict[str, Tensor]] = {MODEL: {}, OPTIMIZER: {}, MORE: {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[f"{kind}."][rest] = value
    model.load_state_dict(parts[MODEL])
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in parts[OPTIMIZER].items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    return done, parts[MORE]
