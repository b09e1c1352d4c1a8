"""A pico world of 24 images and a tiny BLIP, its cache filled once; every test gets a copy to change."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from hoi_distill.pipeline.graph import registry
from hoi_distill.stages.data.pico.world import pico_vocabulary, write_world
from tests.fixtures.line import IMAGES, STAGES, TEST, TRAIN, Line, count_calls
from tests.fixtures.object_stores import BOTH, upload
from tests.fixtures.tiny_blip import WORDS, save_checkpoints, tiny_blip_config, tiny_processor
from tests.fixtures.toy_stages import TOYS


@pytest.fixture(scope="session")
def words() -> list[str]:
    """The tiny teacher's vocabulary, with the words of every prompt."""
    return list(dict.fromkeys([*WORDS, *(word for prompt in pico_vocabulary().prompts() for word in prompt.split())]))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, words):
    """The tiny checkpoints with these words."""
    root = tmp_path_factory.mktemp("checkpoints")
    return save_checkpoints(root, tiny_processor(words), lambda: tiny_blip_config(vocab_size=len(words)))


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """Cells that stages were asked to compute, by the stage's name."""
    counted: Counter[str] = Counter()
    for stage in STAGES:
        count_calls(monkeypatch, stage, counted)
    for name, where in TOYS.items():
        monkeypatch.setitem(registry.STAGES, name, where)
    return counted


@pytest.fixture(scope="session")
def filled(tmp_path_factory, checkpoints) -> Path:
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
        "detections": IMAGES, "sized": IMAGES, "features": 2 * IMAGES, "itm": 8 * IMAGES,
        "captions": 2 * IMAGES, "triplets": 2 * IMAGES, "text": 58,
    }  # fmt: skip
    return root


@pytest.fixture(params=BOTH)
def line(request, tmp_path: Path, filled: Path, checkpoints, calls) -> Line:
    """The line with its cache on disk, and with the same files as objects."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    made = Line(tmp_path, checkpoints, calls)
    if request.param == "objects":
        made.config["cache"] = request.getfixturevalue("bucket_of")
        upload(tmp_path / "cache", made.config["cache"])
        shutil.rmtree(tmp_path / "cache")
    return made
