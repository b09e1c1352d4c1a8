"""A pico world of 24 pictures and a tiny BLIP, its cache filled once; every test gets a copy to change."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.graph import registry
from hoi_distill.pipeline.planning.plan import TablePlan, plan
from hoi_distill.pipeline.training.request import resolve
from hoi_distill.pipeline.workspace import Setup, prepare
from hoi_distill.stages.data.pico.world import pico_vocabulary, write_world
from hoi_distill.stages.derived import triplets
from hoi_distill.stages.teacher import text_embeddings
from hoi_distill.stages.teacher.blip import stages as blip
from hoi_distill.stages.teacher.detectors import given as detections_file
from tests.fixtures.toy_stages import TOYS
from tests.stages.teacher.conftest import WORDS, checkpoints  # noqa: F401
from tests.stages.teacher.conftest import blip_config as tiny_blip  # noqa: F401

TRAIN, TEST = 16, 8
PICTURES = TRAIN + TEST
QUESTIONS = ["a photo of", "is there anybody ?"]
STAGES = [
    detections_file.GivenDetections,
    blip.BlipFeatures,
    blip.BlipItm,
    blip.BlipCaptions,
    triplets.Triplets,
    text_embeddings.TextEmbeddings,
]


@pytest.fixture(scope="session")
def words() -> list[str]:
    """The tiny teacher's vocabulary, with the words of every prompt."""
    return list(dict.fromkeys([*WORDS, *(word for prompt in pico_vocabulary().prompts() for word in prompt.split())]))


@pytest.fixture(scope="session")
def processor(words):
    from transformers import BertTokenizer, BlipImageProcessorPil, BlipProcessor

    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    return BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), tokenizer)


@pytest.fixture(scope="session")
def blip_config(tiny_blip, words):  # noqa: F811
    return lambda **text: tiny_blip(vocab_size=len(words), **text)


class Line:
    """A whole line from pictures to the student's fingerprint, under ``root``."""

    def __init__(self, root: Path, teachers: Any, calls: Counter[str]) -> None:
        self.root, self.path, self.calls = root, root / "line.yaml", calls
        world = str(root / "world")
        teacher, captioner = str(teachers.itm), str(teachers.caption)
        prompts = list(pico_vocabulary().prompts()[:8])
        boxes = [f"{world}/detections_{split}2015.json" for split in ("train", "test")]
        self.config: dict[str, Any] = {
            "name": "line",
            "cache": str(root / "cache"),
            "runs": str(root / "runs"),
            "dataset": {"kind": "pico", "root": world, "train": TRAIN, "test": TEST},
            "tables": {
                "detections": {"stage": "detections_file", "path": boxes},
                "sized": {"stage": "toy_sized"},
                "features": {"stage": "blip_features", "checkpoint": teacher, "columns": ["original", "flip"]},
                "itm": {"stage": "blip_itm", "checkpoint": teacher, "columns": prompts, "token_mode": "cls"},
                "captions": {
                    "stage": "blip_captions", "checkpoint": captioner, "columns": QUESTIONS, "max_new_tokens": 4,
                },
                "triplets": {"stage": "triplets", "columns": QUESTIONS},
                "text": {"stage": "text_embeddings", "checkpoint": teacher},
            },
            "student": {"labelled": 6},
        }  # fmt: skip
        for name, table in self.config["tables"].items():
            # Shards of eight rows for the tables whose shards are damaged; batches of eight for all teachers.
            table.update({"shard_rows": 8} if name in ("itm", "captions", "triplets") else {})
            table.update({"batch_size": 8} if table["stage"].startswith("blip") else {})

    def table(self, name: str, **keys: Any) -> None:
        self.config["tables"][name].update(keys)

    def setup(self) -> Setup:
        self.path.write_text(yaml.safe_dump(self.config))
        return prepare(self.path)

    def plan(self) -> dict[str, TablePlan]:
        setup = self.setup()
        return plan(setup.nodes, setup.sources, setup.cache)

    def computed(self) -> dict[str, int]:
        """Run; cells computed, by table. The teachers' own count of their calls must say the same."""
        import threading

        setup = self.setup()
        self.calls.clear()
        with choose_executor("inline", "cpu", 1) as execute:
            reported = {name: cells for name, cells in fill(setup, execute, threading.Event()).cells.items() if cells}
        assert {name: self.calls[name] for name in self.calls if name != "sized"} == {
            setup.nodes[name].stage.name: cells for name, cells in reported.items() if name != "sized"
        }
        made = self.plan()
        assert all(one.complete() for one in made.values())
        return reported

    def student(self) -> tuple[str, str]:
        """Fingerprints of the training and of its evaluation."""
        setup = self.setup()
        resolved = resolve(setup, plan(setup.nodes, setup.sources, setup.cache))
        return resolved.fingerprint, resolved.evaluation


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """Cells that stages were asked to compute, by the stage's name."""
    counted: Counter[str] = Counter()
    for stage in STAGES:
        count_calls(monkeypatch, stage, counted)
    for name, where in TOYS.items():
        monkeypatch.setitem(registry.STAGES, name, where)
    return counted


def count_calls(monkeypatch, stage: Any, counted: Counter[str]) -> None:
    real = stage.compute

    def compute(self, batch, columns, inputs):
        counted[self.name] += batch.count * len(columns)
        return real(self, batch, columns, inputs)

    monkeypatch.setattr(stage, "compute", compute)


@pytest.fixture(scope="session")
def filled(tmp_path_factory, checkpoints) -> Path:  # noqa: F811
    """The folder that every test copies: world and filled cache."""
    root = tmp_path_factory.mktemp("filled")
    write_world(root / "world", train=TRAIN, test=TEST)
    line = Line(root, checkpoints, Counter())
    with pytest.MonkeyPatch.context() as patch:
        counted: Counter[str] = Counter()
        for stage in STAGES:
            count_calls(patch, stage, counted)
        for name, where in TOYS.items():
            patch.setitem(registry.STAGES, name, where)
        line.calls = counted
        done = line.computed()
    assert done == {
        "detections": PICTURES, "sized": PICTURES, "features": 2 * PICTURES, "itm": 8 * PICTURES,
        "captions": 2 * PICTURES, "triplets": 2 * PICTURES, "text": 58,
    }  # fmt: skip
    return root


@pytest.fixture
def line(tmp_path: Path, filled: Path, checkpoints, calls) -> Line:  # noqa: F811
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return Line(tmp_path, checkpoints, calls)
