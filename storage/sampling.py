"""The order in which a stream visits its rows: pure functions of plain numbers.

The order of an epoch depends on the seed, the epoch and the number of rows alone; global batches are cut from it, and
each rank takes its part of every global batch. So loader workers change nothing, and neither do ranks while the global
batch keeps its size.
"""

from __future__ import annotations

import numpy as np


def epoch_order(seed: int, epoch: int, n: int, shuffle: bool = True) -> np.ndarray:
    """``int64 [n]``: a permutation of ``range(n)``, the same on every machine and under every numpy.

    It sorts the raw output of a bit generator: numpy promises that these bits never change, which it does not promise
    of ``Generator.permutation``.
    """
    if not shuffle:
        return np.arange(n)
    bits = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(n)
    return np.argsort(bits, kind="stable")


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
