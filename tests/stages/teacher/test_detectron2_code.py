"""What a downloaded checkpoint names of detectron2 runs no code of its own; what holds values only is taken."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from hoi_distill.stages.teacher.detectors.detectron2_code import refuse_code
from hoi_distill.storage.errors import UserError

ZOO = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with harmless files, in which nothing may spring up."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("MODEL: {WEIGHTS: ''}\nSOLVER: {STEPS: (1, 2)}\n")
    (tmp_path / "plain.yaml").write_text("_BASE_: base.yaml\nMODEL: {MASK_ON: false}\n")
    with open(tmp_path / "plain.pkl", "wb") as file:
        pickle.dump({"model": {"a": np.ones((2, 3), np.float32), "b": np.float32(2)}, "__author__": "x"}, file, 2)
    torch.save({"model": {"a": torch.ones(2)}, "iteration": 3}, tmp_path / "plain.pth")
    yield tmp_path
    assert not (tmp_path / "sprung").exists(), "it ran"


@pytest.mark.parametrize("config", [ZOO, "plain.yaml", "base.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"])
@pytest.mark.parametrize("weights", ["plain.pth", "plain.pkl", "absent.pth"])
def test_values_are_taken(here, config, weights):
    refuse_code(config, weights)


def write(path, text):
    path.write_text(text)
    return path.name


SPRING = "!!python/object/apply:os.mkdir [sprung]"
CONFIGS = {
    "lazy": lambda f: write(f / "x.py", "import os; os.mkdir('sprung')"),
    "no suffix": lambda f: write(f / "config", "import os; os.mkdir('sprung')"),
    "tag": lambda f: write(f / "x.yaml", f"MODEL: {SPRING}\n"),
    "long tag": lambda f: write(f / "x.yml", "MODEL: !<tag:yaml.org,2002:python/object/apply:os.mkdir> [sprung]\n"),
    "base": lambda f: (write(f / "evil.yaml", f"A: {SPRING}\n"), write(f / "x.yaml", "_BASE_: evil.yaml\n"))[1],
    "bases": lambda f: (
        write(f / "evil.yaml", f"A: {SPRING}\n"), write(f / "x.yaml", "_BASE_: [base.yaml, ./evil.yaml]\n"),
    )[1],
    "base of base": lambda f: (
        write(f / "evil.yaml", f"A: {SPRING}\n"), write(f / "mid.yaml", "_BASE_: evil.yaml\n"),
        write(f / "x.yaml", "_BASE_: mid.yaml\n"),
    )[2],
    "base elsewhere": lambda f: write(f / "x.yaml", "_BASE_: https://example.org/evil.yaml\n"),
    "outside the zoo": lambda f: "../../../../tmp/evil.py",
    "absolute": lambda f: "/nowhere/evil.py",
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_configuration_that_runs_code_is_refused_unread(here, kind):
    config = CONFIGS[kind](here)
    with pytest.raises(UserError, match="--detections") as error:
        refuse_code(config, "plain.pth")
    assert "\n" not in str(error.value)


def test_a_circle_of_bases_ends(here):
    write(here / "a.yaml", "_BASE_: b.yaml\n")
    write(here / "b.yaml", "_BASE_: a.yaml\n")
    refuse_code("a.yaml", "plain.pth")


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "x.pyth", "x"])
def test_weights_that_run_code_are_refused_unrun(here, name):
    if name.endswith(".pkl"):
        (here / name).write_bytes(pickle.dumps({"model": Trap()}))
    else:
        torch.save({"model": Trap()}, here / name)
    with pytest.raises(UserError, match=f"{name}: weights that run code"):
        refuse_code(ZOO, name)


def test_looking_imports_no_detectron2():
    code = "import sys, hoi_distill.stages.teacher.detectors.detectron2_code\n"
    code += "assert not {'torch', 'detectron2', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
