"""Batches are read ahead, in order, and fail when it is their turn."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hoi_distill.stages.student.training.loading import batches_ahead, moved, pinned


class Squares(Dataset):
    """Batch ``step`` is its square; one of them fails."""

    def __init__(self, broken: int = -1) -> None:
        self.broken, self.threads, self.read = broken, set(), []

    def __getitem__(self, step: int) -> Tensor:
        if step == self.broken:
            raise ValueError("broken")
        self.threads.add(threading.get_ident())
        self.read.append(step)
        return torch.tensor([step * step, torch.get_num_threads()])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(workers):
    batches = list(batches_ahead(Squares(), range(3, 9), workers=workers, pin=False))
    assert [int(batch[0]) for batch in batches] == [9, 16, 25, 36, 49, 64]
    assert workers or all(int(batch[1]) == torch.get_num_threads() for batch in batches)
    assert list(batches_ahead(Squares(), range(4, 4), workers=workers, pin=False)) == []


def test_another_thread_reads_two_batches_ahead_and_no_more():
    squares = Squares()
    batches = batches_ahead(squares, range(100), workers=0, pin=False)
    for step in range(5):
        assert int(next(batches)[0]) == step * step
        assert len(squares.read) <= step + 3
    batches.close()
    assert threading.get_ident() not in squares.threads
    assert squares.read == list(range(len(squares.read)))
    assert len(squares.read) <= 8


def test_a_batch_that_cannot_be_read_is_an_error_at_its_step():
    batches = batches_ahead(Squares(broken=2), range(5), workers=0, pin=False)
    assert [int(next(batches)[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(batches)


@dataclass(frozen=True)
class Two:
    first: Tensor
    rest: dict[str, list[Tensor | None]]


def test_every_tensor_of_a_batch_is_pinned(monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor + 1)
    batch = pinned(Two(torch.tensor(1), {"a": [torch.tensor(2), None], "b": (torch.tensor(3), "word")}))
    assert batch == Two(torch.tensor(2), {"a": [torch.tensor(3), None], "b": (torch.tensor(4), "word")})


def test_a_batch_is_moved_whole():
    batch = moved(Two(torch.tensor(1), {"a": [torch.tensor(2), None], "b": (torch.tensor(3), "word")}), "meta")
    assert [batch.first.device.type, batch.rest["a"][0].device.type, batch.rest["b"][0].device.type] == ["meta"] * 3
    assert batch.rest["a"][1] is None
    assert batch.rest["b"][1] == "word"
