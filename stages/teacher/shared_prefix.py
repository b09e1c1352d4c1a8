"""Many questions that begin alike go through a causal model as a tree: each shared beginning once.

The image is the trunk, whose keys and values are in a cache. A branch is what questions about one pair share, its leaves are what
each question has for itself. Branches and leaves lie one after another in a single sequence; a mask lets every token attend
to its own past only (trunk, branch, leaf), and positions begin anew in each branch and each leaf. So nothing is copied for a
branch, and a leaf's last hidden state is that of the whole question by itself, but for rounding.

Shapes: T new tokens, S tokens of the trunk, Q leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Branch:
    """Questions that share their beginning.

    Attributes:
        shared: token ids of what they share, after the trunk; may be empty.
        leaves: token ids of what follows, of each question. None is empty.
    """

    shared: Sequence[int]
    leaves: Sequence[Sequence[int]]

    @classmethod
    def of(cls, questions: Sequence[Sequence[int]]) -> Branch:
        """That of whole questions, token ids after the trunk: it shares as much as they have in common, but for a last token."""
        first, *others = questions
        alike = min(map(len, questions)) - 1
        for other in others:
            alike = min(
                alike, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, other, strict=False)))
            )
        return cls(first[:alike], [question[alike:] for question in questions])

    @property
    def tokens(self) -> int:
        """How many tokens the branch and its leaves have."""
        return len(self.shared) + sum(map(len, self.leaves))


def in_chunks(branches: Sequence[Branch], budget: int) -> Iterator[list[Branch]]:
    """The branches in their order, in chunks of at most ``budget`` tokens; a larger branch is cut between its leaves, and what
    they share repeated. A leaf by itself may be larger."""
    chunk: list[Branch] = []
    for branch in branches:
        leaves: list[Sequence[int]] = []
        for leaf in branch.leaves:
            used = sum(each.tokens for each in chunk) + len(branch.shared) + sum(map(len, leaves))
            if used + len(leaf) > budget and (chunk or leaves):
                yield [*chunk, Branch(branch.shared, leaves)] if leaves else chunk
                chunk, leaves = [], []
            leaves.append(leaf)
        chunk.append(Branch(branch.shared, leaves))
    if chunk:
        yield chunk


@dataclass(frozen=True)
class Packed:
    """Branches in one sequence.

    Attributes:
        ids: int64 ``[T]`` token ids.
        depth: int64 ``[T]``, how many tokens of its own branch and leaf stand before each.
        branch: int64 ``[T]``, the branch of each.
        leaf: int64 ``[T]``, the leaf of each, counted over all branches; -1 for what a branch's leaves share.
        ends: int64 ``[Q]``, the place of each leaf's last token.
    """

    ids: np.ndarray
    depth: np.ndarray
    branch: np.ndarray
    leaf: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, branches: Sequence[Branch]) -> Packed:
        """Put branches one after another."""
        rows: list[tuple[int, int, int, int]] = []
        ends: list[int] = []
        for number, branch in enumerate(branches):
            rows += [(token, depth, number, -1) for depth, token in enumerate(branch.shared)]
            for leaf in branch.leaves:
                below = enumerate(leaf, len(branch.shared))
                rows += [(token, depth, number, len(ends)) for depth, token in below]
                ends.append(len(rows) - 1)
        ids, depth, whose, leaf_of = np.array(rows, np.int64).reshape(-1, 4).T
        return cls(ids, depth, whose, leaf_of, np.array(ends, np.int64))

    def sees(self) -> np.ndarray:
        """bool ``[T, T]``: whether a token (row) attends to another (column)."""
        own = (self.leaf[None] == -1) | (self.leaf[:, None] == self.leaf[None])
        sees: np.ndarray = own & (self.branch[:, None] == self.branch[None])
        return np.tril(sees)


def packed_states(decoder: Any, trunk: Any, offset: int, packed: Packed, device: str) -> torch.Tensor:
    """The hidden state after each token.

    Args:
        decoder: a causal transformer of transformers, without its head, whose layers attend to everything before.
        trunk: its cache of the S tokens of the trunk, of one row, or an empty one; as it was when this returns.
        offset: the position of the first token after the trunk (of M-RoPE the same on all three axes).
        packed: the questions.
        device: where the decoder is.

    Returns:
        float ``[T, D]``.
    """
    import torch

    before = trunk.get_seq_length()
    dtype = next(decoder.parameters()).dtype
    sees = torch.from_numpy(packed.sees()).to(device)
    mask = torch.zeros(1, 1, len(packed.ids), before + len(packed.ids), dtype=dtype, device=device)
    mask[0, 0, :, before:].masked_fill_(~sees, torch.finfo(dtype).min)
    states: torch.Tensor = decoder(
        input_ids=torch.from_numpy(packed.ids)[None].to(device),
        attention_mask=mask,
        position_ids=torch.from_numpy(packed.depth + offset)[None].to(device),
        past_key_values=trunk,
        use_cache=True,
    ).last_hidden_state[0]
    trunk.crop(before - trunk.get_seq_length())
    return states
