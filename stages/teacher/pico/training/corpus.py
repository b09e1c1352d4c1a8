"""The teacher's corpus: images with captions, rendered once into a folder outside git.

Its seeds start at 1,000,000,000, far above the students' worlds (which count from 0), so that no student ever meets a
image its teacher was trained on. Only images and sentences are kept: a scene's boxes end here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.data.pico.render import SIZE, render_scene
from hoi_distill.stages.teacher.pico.training import captions
from hoi_distill.stages.teacher.pico.training.captions import Fact, Grammar

FOLDER = Path("data/pico-corpus")
_POSITION = {fact: i for i, fact in enumerate(HOIS)}


@dataclass(frozen=True)
class CorpusPart:
    """Some scenes: ``count`` seeds from ``first_seed``; ``tempers`` are taken in turn (1 = the world's long tail)."""

    name: str
    first_seed: int
    count: int
    tempers: tuple[float, ...]
    people: tuple[int, int] = (1, 3)
    plain: bool = False

    def describe(self) -> str:
        """A file name that says all of it."""
        tempers = "-".join(f"{t:g}" for t in self.tempers)
        return f"{self.name}-{self.first_seed}-{self.count}-t{tempers}"


PLAIN = CorpusPart("plain", 1_000_000_000, 16_000, (0.2,), people=(1, 1), plain=True)
"""The curriculum: one person, no clutter."""
SCENES = CorpusPart("scenes", 1_100_000_000, 48_000, (0.2, 0.35))
LONG_TAILED_PLAIN = CorpusPart("plain", 1_350_000_000, 16_000, (1.0,), people=(1, 1), plain=True)
LONG_TAILED_SCENES = CorpusPart("scenes", 1_300_000_000, 48_000, (1.0,))
"""For the ablation: captions as long-tailed as the students' own images, and no others."""
TRAINED = (PLAIN, SCENES, LONG_TAILED_PLAIN, LONG_TAILED_SCENES)
"""All that some shipped pico BLIP was trained on."""
HELD_OUT = CorpusPart("heldout", 1_200_000_000, 1_000, (0.35,))
"""Never trained on; every figure of the model card is measured here."""


@dataclass(frozen=True)
class Corpus:
    """Images ``uint8 [N, 128, 128, 3]`` (memory-mapped) and two sentences each: the caption and the co-labels'."""

    pixels: np.ndarray
    captions: list[str]
    also: list[str]

    def facts(self, grammar: Grammar) -> tuple[np.ndarray, np.ndarray]:
        """Parsed back from the sentences: ``(primary, every)``, both ``bool [N, len(grammar.facts)]``."""
        primary = np.zeros((len(self.captions), len(grammar.facts)), bool)
        every = np.zeros_like(primary)
        for i, (caption, also) in enumerate(zip(self.captions, self.also, strict=True)):
            primary[i, grammar.parse_caption(caption)] = True
            every[i, grammar.parse_caption(also)] = True
        return primary, every | primary


def load(part: CorpusPart, folder: Path = FOLDER) -> Corpus:
    """The part from ``folder``, rendered first if it is not there (about 1 ms a scene)."""
    pixels, sentences = folder / f"{part.describe()}.npy", folder / f"{part.describe()}.jsonl"
    if not sentences.exists():
        _render(part, pixels, sentences)
    lines = [json.loads(line) for line in sentences.read_text().splitlines()]
    return Corpus(np.load(pixels, mmap_mode="r"), [line["caption"] for line in lines], [line["also"] for line in lines])


def _render(part: CorpusPart, pixels: Path, sentences: Path) -> None:
    """Writes the images, then (atomically, as the mark of completion) the sentences."""
    pixels.parent.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=(part.count, SIZE, SIZE, 3))
    unfinished = sentences.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("w") as lines:
        for i in range(part.count):
            temper = part.tempers[i % len(part.tempers)]
            scene = render_scene(part.first_seed + i, temper=temper, people=part.people, plain=part.plain)
            images[i] = scene.image
            lines.write(json.dumps({"caption": _sentence(scene.facts), "also": _sentence(scene.co_facts)}) + "\n")
    images.flush()
    unfinished.replace(sentences)


def _sentence(facts: Iterable[Fact]) -> str:
    """A caption in the vocabulary's order (which does not depend on where things stand); empty without facts."""
    ordered = sorted(set(facts), key=_POSITION.__getitem__)
    return captions.caption(ordered) if ordered else ""
