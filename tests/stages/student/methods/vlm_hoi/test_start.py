"""What ``student.start`` names is found, fetched and whole before a training is planned, whatever form its weights have."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from hoi_distill.stages.student.methods.vlm_hoi.config import VlmHoiConfig, starting_files, starting_place
from hoi_distill.storage.errors import UserError
from tests.fixtures.hub import hub

WEIGHTS = {"a": torch.arange(4.0)}


def start(folder):
    return [path.name for path in starting_files(VlmHoiConfig(start=str(folder)))]


def test_only_the_weights_that_are_read_count(tmp_path):
    for name in ("model.safetensors", "model.fp16.safetensors"):
        save_file(WEIGHTS, tmp_path / name)
    torch.save(WEIGHTS, tmp_path / "detr.pth")
    assert start(tmp_path) == ["model.safetensors"]


def test_a_folder_around_one_pth_stands_for_it(tmp_path):
    torch.save(WEIGHTS, tmp_path / "detr.pth")
    assert starting_place(str(tmp_path)) == tmp_path / "detr.pth"
    assert start(tmp_path) == ["detr.pth"]
    torch.save(WEIGHTS, tmp_path / "muren.pth")
    with pytest.raises(UserError, match=r"student.start: .*no weight files .*detr.pth"):
        start(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "detr.pth"])
@pytest.mark.parametrize("text", ["", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"])
def test_weights_that_are_not_there_in_full_are_refused_at_planning(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=rf"student.start: .*{name}: "):
        start(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch_model.bin", "detr-r50.pth"])
def test_a_hub_id_fetches_old_weights_too(tmp_path, name):
    served = tmp_path / "served/org/name"
    served.mkdir(parents=True)
    (served / "config.json").write_text(json.dumps({}))
    torch.save(WEIGHTS, served / name)
    (served / "picture.jpg").write_bytes(b"not asked for")
    code = (
        "from hoi_distill.stages.student.methods.vlm_hoi.config import VlmHoiConfig, starting_files; "
        "print(*[p.name for p in starting_files(VlmHoiConfig(start='org/name'))])"
    )
    with hub(tmp_path / "served") as there:
        assert there.run(code, tmp_path / "home") == name
        assert sorted(there.asked) == sorted([name, "config.json"])


def test_a_place_that_is_neither_here_nor_on_the_hub_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"^student.start: org/nothing@main: checkpoint not found[^\n]*$"):
        starting_files(VlmHoiConfig(start="org/nothing"))
