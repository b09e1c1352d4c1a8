"""The scenes that the crowd's teachers learn from, drawn once into a folder outside git: images, captions and dense labels.

They are of worlds of their own: students' worlds have other seeds. No caption or dense label tells what is done; that is
:meth:`CorpusPart.interactions`, which the tower never asks for.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.crowd.classes import HOIS
from hoi_distill.stages.data.crowd.layout import SIZE
from hoi_distill.stages.data.crowd.plan import ImagePlan, plan_split
from hoi_distill.stages.data.crowd.render import render_crowd
from hoi_distill.stages.data.crowd.texts import plain
from hoi_distill.stages.teacher.crowd.training.dense import DenseLabels, dense_labels

FOLDER = Path("data/crowd-corpus")


@dataclass(frozen=True)
class CorpusPart:
    """Some scenes of one world, all acts equally frequent. Of ``planned`` scenes those stay that are no twins: seven tenths."""

    world: int
    planned: int

    def describe(self) -> str:
        """A file name that says all of it."""
        return f"world-{self.world}-{self.planned}"

    def plans(self) -> list[ImagePlan]:
        """What each scene shows."""
        return [plan for plan in plan_split(self.world, "test", self.planned) if plan.swapped is None]

    def interactions(self) -> np.ndarray:
        """bool ``[N, 46]``, which interactions each scene shows, in the vocabulary's order."""
        plans = self.plans()
        shown = np.zeros((len(plans), len(HOIS)), bool)
        for row, plan in zip(shown, plans, strict=True):
            row[[HOIS.index((act.verb, act.name)) for act in plan.acts]] = True
        return shown


TAUGHT = CorpusPart(150, 10_000)
"""7,000 scenes."""
PROBED = CorpusPart(151, 1_200)
"""840 scenes from which probes learn."""
HELD_OUT = CorpusPart(152, 600)
"""420 scenes that nothing has learnt from: every figure of the model card is measured there."""


@dataclass(frozen=True)
class Corpus:
    """N scenes.

    Attributes:
        pixels: uint8 ``[N, 256, 256, 3]``, memory-mapped.
        captions: What :func:`~hoi_distill.stages.data.crowd.texts.plain` says of each.
        labels: Dense labels with a leading axis N.
    """

    pixels: np.ndarray
    captions: list[str]
    labels: DenseLabels


def load(part: CorpusPart, folder: Path = FOLDER) -> Corpus:
    """The part from ``folder``, drawn first if it is not there (about 14 ms a scene)."""
    pixels, rest = folder / f"{part.describe()}.npy", folder / f"{part.describe()}.npz"
    if not rest.exists():
        _draw(part, pixels, rest)
    with np.load(rest) as arrays:
        labels = DenseLabels(*(arrays[field.name] for field in fields(DenseLabels)))
        return Corpus(np.load(pixels, mmap_mode="r"), json.loads(str(arrays["captions"])), labels)


def _draw(part: CorpusPart, pixels: Path, rest: Path) -> None:
    """Writes the images, then (atomically, as the mark of completion) all else."""
    plans = part.plans()
    pixels.parent.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=(len(plans), SIZE, SIZE, 3))
    captions, labels = [], []
    for i, plan in enumerate(plans):
        scene = render_crowd(plan)
        images[i] = scene.image
        captions.append(plain(scene))
        labels.append(dense_labels(scene))
    images.flush()
    stacked = {field.name: np.stack([getattr(one, field.name) for one in labels]) for field in fields(DenseLabels)}
    unfinished = rest.with_suffix(f".{os.getpid()}.npz")
    stacked["captions"] = np.array(json.dumps(captions))
    with unfinished.open("wb") as out:
        np.savez(out, **stacked)  # type: ignore[arg-type]  # numpy's stub takes the last keyword for all
    unfinished.replace(rest)
