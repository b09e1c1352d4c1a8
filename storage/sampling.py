"""The order in which a stream visits its rows: pure functions of plain numbers.

The order of an epoch depends on the seed, the epoch and the number of rows alone; global batches are cut from it, and
each rank takes its part of every global batch. So loader workers change nothing, and neither do ranks while the global
batch keeps its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Epoch:
    """One epoch, as one rank reads it.

    Attributes:
        seed: of the order.
        number: the epoch's.
        rank: the process's.
        world: how many processes there are.
        start_batch: how many batches of this epoch were already seen (resume).
        shuffle: whether the order is random.
        drop_last: whether a last batch that is not full is left out.
    """

    seed: int
    number: int
    rank: int = 0
    world: int = 1
    start_batch: int = 0
    shuffle: bool = True
    drop_last: bool = False


@dataclass(frozen=True)
class RankBatches:
    """What one rank reads of an epoch, as lists of rows.

    Attributes:
        order: ``int64 [n]``, the epoch's rows.
        batch_size: of this rank; ``batch_size * world`` is the global batch.
        epoch: the epoch.
    """

    order: np.ndarray
    batch_size: int
    epoch: Epoch

    @classmethod
    def of(cls, rows: np.ndarray, batch_size: int, epoch: Epoch) -> RankBatches:
        """The batches of these rows, ``int64 [n]``, in the epoch's order."""
        order = rows[epoch_order(epoch.seed, epoch.number, len(rows), epoch.shuffle)]
        return cls(order, batch_size, epoch)

    def __len__(self) -> int:
        global_batch = self.batch_size * self.epoch.world
        count = batch_count(len(self.order), global_batch, self.epoch.rank, self.epoch.drop_last)
        return max(count - self.epoch.start_batch, 0)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, global_batch = self.epoch, self.batch_size * self.epoch.world
        for batch in range(epoch.start_batch, epoch.start_batch + len(self)):
            yield rank_batch(self.order, batch, global_batch, epoch.rank, epoch.world).tolist()


WINDOW_BLOCKS = 16
"""Blocks of rows in a window: rows of so many places of the data set stand together in a batch."""


@lru_cache(maxsize=4)  # a step at the end of an epoch reads two orders, of labelled and of other rows
def epoch_order(seed: int, epoch: int, n: int, shuffle: bool = True, window: int = 0) -> np.ndarray:
    """A permutation of ``range(n)``, the same on every machine and under every numpy.

    It sorts the raw output of a bit generator: numpy promises that these bits never change, which it does not promise
    of ``Generator.permutation``. The orders asked for last are kept, so every step of an epoch may ask.

    With a window, blocks of neighbouring rows are laid out in random order, and each row then moves back by a random number of
    places below ``window``. So at any time about ``window`` rows are in use, and each block is for one stretch of the epoch. This
    is less random: rows of one block never stand much more than a window apart, and a batch mixes rows of about
    ``WINDOW_BLOCKS`` places of the data set.

    Args:
        seed: of the order.
        epoch: which one.
        n: how many rows.
        shuffle: whether the order is random.
        window: rows of a window; 0, or n and more: all rows are one.

    Returns:
        ``int64 [n]``, read-only.
    """
    if shuffle:
        bits = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(n)
        order = _in_windows(bits, window) if 0 < window < n else np.argsort(bits, kind="stable")
    else:
        order = np.arange(n)
    order.flags.writeable = False
    return order


def _in_windows(bits: np.ndarray, window: int) -> np.ndarray:
    """The order of n rows within a moving window, from n random numbers ``uint64``."""
    n, size = len(bits), max(window // WINDOW_BLOCKS, 1)
    starts = np.arange(0, n, size)
    blocks = np.argsort(bits[starts], kind="stable")
    laid_out = (starts[blocks, None] + np.arange(size)).reshape(-1)
    laid_out = laid_out[laid_out < n] if n % size else laid_out
    # Of the low half of each number: the high one has ordered the blocks. In units of 2 ** -32 places.
    moved = (np.arange(n, dtype=np.uint64) << np.uint64(32)) + (bits & np.uint64(0xFFFFFFFF)) * np.uint64(window)
    return laid_out[np.argsort(moved, kind="stable")]


def batch_count(n: int, global_batch: int, rank: int = 0, drop_last: bool = False) -> int:
    """How many batches a rank gets of ``n`` rows.

    Without ``drop_last`` the last one may be smaller, and ranks that would get nothing of it have one batch fewer:
    ranks that synchronise every step want ``drop_last``.
    """
    full, rest = divmod(n, global_batch)
    return full + (not drop_last and rest > rank)


def rank_batch(order: np.ndarray, batch: int, global_batch: int, rank: int = 0, world: int = 1) -> np.ndarray:
    """What ``rank`` of ``world`` takes of global batch ``batch``: every ``world``-th row of it, a view of ``order``."""
    return order[batch * global_batch : (batch + 1) * global_batch][rank::world]
