"""The order of an epoch is a permutation that workers and ranks do not change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoi_distill.storage.sampling import WINDOW_BLOCKS, batch_count, epoch_order, rank_batch

seeds, sizes = st.integers(0, 2**64), st.integers(0, 400)


def batches(order: np.ndarray, global_batch: int, rank: int, world: int, drop_last: bool = False) -> list[np.ndarray]:
    count = batch_count(len(order), global_batch, rank, drop_last)
    return [rank_batch(order, b, global_batch, rank, world) for b in range(count)]


@given(seeds, seeds, sizes)
def test_an_epoch_visits_every_row_once(seed, epoch, n):
    assert sorted(epoch_order(seed, epoch, n)) == list(range(n))


@given(seeds, st.integers(0, 10**6))
def test_seeds_and_epochs_give_different_orders(seed, epoch):
    order = epoch_order(seed, epoch, 100)
    assert np.array_equal(order, epoch_order(seed, epoch, 100))
    assert not np.array_equal(order, epoch_order(seed, epoch + 1, 100))
    assert not np.array_equal(order, epoch_order(seed + 1, epoch, 100))
    assert seed == epoch or not np.array_equal(order, epoch_order(epoch, seed, 100))


def test_the_order_never_changes_between_machines_and_numpy_versions():
    assert epoch_order(7, 3, 8).tolist() == [2, 4, 7, 3, 5, 1, 0, 6]
    digest = hashlib.sha256(epoch_order(0, 0, 100_000).astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "18eb6f74d3a8277d"


@settings(deadline=None)
@given(seeds, seeds, sizes, st.integers(1, 500))
def test_an_epoch_in_windows_visits_every_row_once(seed, epoch, n, window):
    assert sorted(epoch_order(seed, epoch, n, window=window)) == list(range(n))


@pytest.mark.parametrize("window", [0, 100, 1000])
def test_a_window_of_all_rows_is_the_order_without_one(window):
    assert np.array_equal(epoch_order(3, 5, 100, window=window), epoch_order(3, 5, 100))


@settings(deadline=None)
@given(seeds, st.integers(0, 10**6), st.sampled_from([32, 160, 640]))
def test_each_block_is_in_use_for_one_stretch_and_few_are_at_a_time(seed, epoch, window):
    """What a disk has to hold: the blocks between the first and the last of whose rows a place of the order lies."""
    n, size = 2000, window // WINDOW_BLOCKS
    place = np.argsort(epoch_order(seed, epoch, n, window=window))
    blocks = [place[start : start + size] for start in range(0, n, size)]
    assert max(np.ptp(block) for block in blocks) < 2 * window
    in_use = np.zeros(n, int)
    for block in blocks:
        in_use[block.min() : block.max() + 1] += 1
    assert in_use.max() <= 2 * WINDOW_BLOCKS
    assert in_use.mean() <= WINDOW_BLOCKS + 2


def test_a_window_mixes_places_of_the_data_set_and_epochs_differ():
    order = epoch_order(0, 0, 100_000, window=8000)
    batch = order[50_000:50_064] // 500
    assert len(set(batch.tolist())) > 10
    assert np.ptp(batch) > 100
    assert not np.array_equal(order, epoch_order(0, 1, 100_000, window=8000))
    digest = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "19e8193b050a0969"


def test_an_order_is_made_once_an_epoch_and_cannot_be_changed():
    order = epoch_order(7, 3, 8)
    assert epoch_order(7, 3, 8) is order
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1


def test_unshuffled_rows_come_in_their_own_order():
    assert epoch_order(1, 2, 5, shuffle=False).tolist() == [0, 1, 2, 3, 4]


@settings(deadline=None)
@given(seeds, sizes, st.integers(1, 6), st.integers(1, 12), st.booleans())
def test_ranks_share_out_the_same_global_batches(seed, n, world, per_rank, drop_last):
    """Together the ranks see, batch by batch, exactly what a single process with the same global batch sees."""
    order, size = epoch_order(seed, 0, n), world * per_rank
    alone = batches(order, size, 0, 1, drop_last)
    ranks = [batches(order, size, rank, world, drop_last) for rank in range(world)]
    for b, whole in enumerate(alone):
        parts = [rank[b] for rank in ranks if b < len(rank)]
        assert sorted(np.concatenate(parts)) == sorted(whole)
        assert all(len(part) for part in parts)
        assert len(whole) < size or all(len(part) == per_rank for part in parts)
    assert max(map(len, ranks)) == len(alone)
    seen = sum(map(len, alone))
    assert seen == (n - n % size if drop_last else n)
