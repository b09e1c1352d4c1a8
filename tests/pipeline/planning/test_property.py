"""Whatever happens to pictures, prompts, runs and shards: exactly the wanted cells are filled and none is computed twice."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.storage.check import check_table
from hoi_distill.storage.digests import digest_bytes
from hoi_distill.storage.records import Record
from tests.fixtures import toy_stages as toys
from tests.fixtures.toy_stages import COMPUTED, Album, flip_byte, paint, plan_of, run, score_of

NAMES, SHADES, PROMPTS = st.integers(0, 6), st.integers(0, 5), st.sampled_from("abcde")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("paint"), NAMES, SHADES),  # add a picture, change it, or change it back
        st.tuples(st.just("remove"), NAMES),
        st.tuples(st.just("ask"), PROMPTS),
        st.tuples(st.just("forget"), PROMPTS),
        st.tuples(st.just("corrupt"), st.integers(0, 50), st.integers(0, 10**6)),
        st.tuples(st.just("kill"), st.integers(0, 8)),
        st.tuples(st.just("run")),
    ),
    max_size=12,
)
SHARD_ROWS = 4
FOLDERS_IN = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Every commit waits for the disk; where there is a file system in memory, it is not the disk that is tested."""


class House:
    """The album and a model of what its cache holds: a set of (table, row id, column)."""

    def __init__(self, root: Path) -> None:
        self.album, self.prompts, self.stored = Album(root, 3, "ab"), ["a", "b"], set()

    def act(self, action: tuple) -> None:
        kind, *values = action
        getattr(self, kind)(*values)

    def paint(self, name: int, shade: int) -> None:
        paint(self.album.folder / f"{name:03d}.png", shade)

    def remove(self, name: int) -> None:
        if len(list(self.album.folder.iterdir())) > 1:
            (self.album.folder / f"{name:03d}.png").unlink(missing_ok=True)

    def ask(self, prompt: str) -> None:
        self.prompts = list(dict.fromkeys([*self.prompts, prompt]))
        self.album.ask(self.prompts)

    def forget(self, prompt: str) -> None:
        self.prompts = [p for p in self.prompts if p != prompt] or [prompt]
        self.album.ask(self.prompts)

    def corrupt(self, which: int, position: int) -> None:
        """Flip a byte of some shard; check finds it."""
        tables = self.album.workspace().cache.tables()
        shards = sorted(shard for table in tables for shard in (table.dir / "shards").iterdir())
        if not shards:
            return
        shard = shards[which % len(shards)]
        flip_byte(shard, position % shard.stat().st_size)
        found = [bad for table in tables for bad in check_table(table)]
        assert [bad.shard for bad in found] == [shard.name]
        for table in tables:
            for record in table.records():
                if record.header["payload"] == shard.name:
                    self.stored -= {(table.name, row, column) for row, column in values_of(record)}

    def wanted(self) -> set[tuple[str, bytes, str]]:
        rows = {digest_bytes(path.read_bytes()) for path in self.album.folder.iterdir()}
        return {(table, row, prompt) for table in ("scores", "signs") for row in rows for prompt in self.prompts}

    def kill(self, batches: int) -> None:
        toys.KILL_AFTER[:] = [batches]
        try:
            self.run()
        finally:
            toys.KILL_AFTER.clear()

    def run(self) -> None:
        """Compute what the model says is empty, no more, no cell twice; a kill loses one task at most."""
        workspace, before = self.album.workspace(), len(COMPUTED)
        empty = self.wanted() - self.stored
        try:
            run(workspace)
            killed = False
        except KeyboardInterrupt:
            killed = True
        fresh = COMPUTED[before:]
        assert len(set(fresh)) == len(fresh)
        assert set(fresh) <= empty
        filled = filled_cells(workspace)
        assert filled == (self.stored & self.wanted()) | (set(fresh) & filled)
        lost = set(fresh) - filled
        assert len(lost) <= (SHARD_ROWS * len(self.prompts) if killed else 0)
        self.stored |= set(fresh) - lost
        if not killed:
            assert filled == self.wanted()

    def check_values(self) -> None:
        workspace = self.album.workspace()
        for name, table_plan in plan_of(workspace).items():
            assert table_plan.table is not None
            for column, values in table_plan.table.read(table_plan.cells).items():
                means = [means_of(Path(workspace.sources["images"].uris[i])) for i in table_plan.rows]
                scores = np.array(means, np.float32) + score_of(column)
                expected = scores if name == "scores" else (scores > 500).astype(np.int8)
                assert values.to_pylist() == expected.tolist()


def values_of(record: Record) -> list[tuple[bytes, str]]:
    """The cells of a record's block that it holds a value of."""
    held = np.full((len(record.row_ids), len(record.columns)), bool(record.header["full"]))
    if record.filled is not None:
        held = np.unpackbits(record.filled, axis=1, count=len(record.columns)).astype(bool)
    return [(record.row_ids[row].tobytes(), record.columns[column]) for row, column in np.argwhere(held)]


def means_of(path: Path) -> np.float32:
    from PIL import Image

    return np.asarray(Image.open(path), np.float32).mean()


def filled_cells(workspace: Workspace) -> set[tuple[str, bytes, str]]:
    cells = set()
    for name, table_plan in plan_of(workspace).items():
        if table_plan.state is not None:
            ids = workspace.sources["images"].ids[table_plan.rows]
            cells |= {(name, ids[r].tobytes(), table_plan.columns[c]) for r, c in np.argwhere(table_plan.state.filled)}
    return cells


def live_through(actions: list[tuple]) -> None:
    toys.KILL_AFTER.clear()
    with tempfile.TemporaryDirectory(dir=FOLDERS_IN) as folder:
        house = House(Path(folder))
        for action in actions:
            house.act(action)
        house.run()
        house.run()  # and nothing is left to do
        house.check_values()


quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@settings(max_examples=25, deadline=None, suppress_health_check=quiet)
@given(actions=ACTIONS)
@example([("run",), ("paint", 0, 3), ("ask", "c"), ("run",), ("corrupt", 1, 0)])  # a shard of a block with gaps
def test_any_history_ends_with_the_wanted_cells_and_none_computed_twice(actions):
    live_through(actions)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=quiet)
@given(actions=ACTIONS)
def test_many_histories(actions):
    live_through(actions)
