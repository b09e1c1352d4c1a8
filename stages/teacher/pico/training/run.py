"""What the trainings of all pico models share: command, recipe, learning rate, log, averaged weights and checkpoint."""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    RecipeT = TypeVar("RecipeT", bound=DataclassInstance)


def begin(
    parser: argparse.ArgumentParser, recipe: type[RecipeT], argv: list[str] | None
) -> tuple[RecipeT, Path, dict[str, Any]]:
    """Read the command line and get ready to train on one thread.

    Args:
        parser: Has the script's own options, flags of the recipe included. ``--out`` and one option for each other field
            of the recipe are added.
        recipe: A dataclass with a ``seed``. Every field has a default.
        argv: The command line, by default the process's own.

    Returns:
        The recipe; the output folder, which exists; and the script's own options that are no field of the recipe.
    """
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and recipe.json")
    fields = asdict(recipe())
    for name, value in fields.items():
        if not isinstance(value, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args(argv))
    chosen = recipe(**{name: options.pop(name) for name in fields})
    torch.set_num_threads(1)
    torch.manual_seed(chosen.seed)  # type: ignore[attr-defined]
    out = options.pop("out")
    out.mkdir(parents=True, exist_ok=True)
    return chosen, out, options


def write_recipe(out: Path, recipe: DataclassInstance, **more: Any) -> None:
    """Write ``recipe.json``: the recipe, what else is given, and the CPU seconds of this process."""
    record = asdict(recipe) | more | {"cpu_seconds": round(time.process_time(), 1)}
    (out / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")


def one_cycle(step: int, steps: int, warmup: int) -> float:
    """The factor of the learning rate: a linear warm-up, then a cosine to zero."""
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))


def descend(
    optimizer: torch.optim.Optimizer, losses: Mapping[str, Tensor], parameters: Iterable[nn.Parameter], longest: float
) -> None:
    """One step down the sum of the losses. The gradient of ``parameters`` is cut to the norm ``longest``."""
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    nn.utils.clip_grad_norm_(parameters, longest)
    optimizer.step()


class AveragedWeights:
    """The exponential moving average of a model's weights.

    Args:
        model: Its present weights are the first average.
        decay: Of the average; smaller in the first steps.

    Attributes:
        model: A copy of the model, with the averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(requires_grad=False)
        self._decay = decay

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights after a step, counted from 0."""
        decay = min(self._decay, step / (step + 10))
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)


class Log:
    """Running means of losses, printed and written as JSON lines.

    Args:
        path: The file. It is emptied first.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._count = path, 0
        self._sums: dict[str, float] = {}
        path.write_text("")

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Count the losses of one step."""
        self._count += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())

    def flush(self, phase: str, step: int) -> None:
        """Write the means since the last line.

        Raises:
            FloatingPointError: If a mean is not finite.
        """
        means = {name: round(total / self._count, 4) for name, total in self._sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            raise FloatingPointError(f"{phase} step {step}: loss is not finite: {means}")
        line = json.dumps({"phase": phase, "step": step, "cpu_s": round(time.process_time(), 1), **means})
        print(line, flush=True)
        with self.path.open("a") as out:
            out.write(line + "\n")
        self._sums, self._count = {}, 0


def save_checkpoint(model: nn.Module, processor: Any, folder: Path) -> None:
    """Write fp16 weights, a configuration that asks for float32 arithmetic, and the processor."""
    copy.deepcopy(model).half().save_pretrained(folder)  # type: ignore[operator]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    processor.save_pretrained(folder)
