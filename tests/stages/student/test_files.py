"""What a training keeps is whole or not there: damage is made good, a full disk is an error and leaves no litter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.files import DAMAGE, kept_array, load_tensors, new_array, save_tensors
from hoi_distill.stages.student.training.resume import load_state, save_state
from hoi_distill.storage.files import owner
from hoi_distill.storage.files.atomic import atomic_path

ROOT = Path(__file__).parents[3]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def scribbled(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def flipped(path: Path) -> None:
    """One bit in the middle, where values are."""
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(data)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, emptied, scribbled, gone])
def test_a_damaged_array_is_made_anew(tmp_path, damage, caplog):
    made = []

    def fill(array: np.ndarray) -> None:
        made.append(1)
        array[:] = np.arange(20).reshape(4, 5)

    for _ in range(2):
        assert kept_array(tmp_path / "table.npy", np.float32, (4, 5), fill)[3, 4] == 19
    assert len(made) == 1
    damage(tmp_path / "table.npy")
    assert kept_array(tmp_path / "table.npy", np.float32, (4, 5), fill)[3, 4] == 19
    assert len(made) == 2
    assert ("damaged" in caplog.text) == (damage is not gone)
    assert kept_array(tmp_path / "table.npy", np.float16, (4, 5), fill).dtype == np.float16  # another kind is no answer
    assert [path.name for path in tmp_path.iterdir()] == ["table.npy"]


def test_an_error_while_making_leaves_nothing_and_the_dead_are_swept(tmp_path):
    dead = tmp_path / f"{owner.tag().rsplit('-', 1)[0]}-4194304-beef-table.npy"  # above the kernel's largest pid
    dead.mkdir()
    (dead / "half").write_bytes(b"x")

    def broken(array: np.ndarray) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        kept_array(tmp_path / "table.npy", np.float32, (4,), broken)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_a_damaged_one(tmp_path):
    place = tmp_path / "kept"
    place.mkdir()
    (place / "old").write_text("x")
    with atomic_path(place) as draft:
        draft.mkdir()
        (draft / "new").write_text("y")
    assert [path.name for path in place.iterdir()] == ["new"]


@pytest.mark.parametrize("what", ["array", "tensors"])
def test_a_disk_without_room_is_an_error_not_a_signal_and_leaves_what_was_there(tmp_path, what):
    """A limit on files stands for the disk: both refuse at the same system calls."""
    save_tensors(tmp_path / "tensors", {"a": torch.zeros(3)}, {})
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np, torch
from hoi_distill.stages.student.files import kept_array, save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
folder = Path({str(tmp_path)!r})
try:
    if {what!r} == "array":
        kept_array(folder / "array", np.float32, (1000, 1000), lambda array: array.fill(1))
    else:
        save_tensors(folder / "tensors", {{"a": torch.zeros(1000_000)}}, {{}})
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("27", 0), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tensors"]
    assert load_tensors(tmp_path / "tensors")[0]["a"].shape == (3,)


def test_an_array_has_its_room_before_it_is_written(tmp_path):
    array = new_array(tmp_path / "a.npy", np.float32, (1000, 300))
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 1_200_000
    assert not array.any()


@pytest.mark.parametrize("damage", [cut, emptied, scribbled, flipped, gone])
def test_a_damaged_state_is_told_and_the_training_starts_anew(tmp_path, damage):
    path = tmp_path / "latest.safetensors"

    def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(20, 20)
        return model, torch.optim.AdamW(model.parameters())

    model, optimizer = network()
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    save_state(path, model, optimizer, 7, "run", more={"ema": torch.ones(2)})
    fresh, other = network()
    done, more = load_state(path, fresh, other, "run")
    assert done == 7
    assert torch.equal(fresh.weight, model.weight)
    assert more["ema"].tolist() == [1, 1]
    damage(path)
    said: list[str] = []
    fresh, other = network()
    before = fresh.weight.clone()
    assert load_state(path, fresh, other, "run", report=said.append) == (0, {})
    assert torch.equal(fresh.weight, before)
    assert other.state_dict()["state"] == {}
    assert [line.startswith(f"{path}: damaged") for line in said] == ([] if damage is gone else [True])


def test_damaged_tensors_are_one_of_the_errors_that_readers_catch(tmp_path):
    save_tensors(tmp_path / "t", {"a": torch.zeros(3)}, {"config": "x"})
    assert load_tensors(tmp_path / "t")[1] == {"config": "x"}
    for damage in (cut, emptied, scribbled, gone):
        damage(tmp_path / "t")
        with pytest.raises(DAMAGE):
            load_tensors(tmp_path / "t")
