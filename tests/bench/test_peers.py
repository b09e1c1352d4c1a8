"""The formats that ``bench peers`` compares give back what they were given, in the order that they were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from bench.bench_peers import summary
from bench.peers import runner
from bench.peers.ours import Ours

HERE = {name: runner.FORMATS[name] for name in ("memmap", "npy", "torch_save", "lmdb_pickle")} | {"ours": Ours}
"""The formats for which this project's own environment is enough."""


@pytest.mark.parametrize("shape", [(40, 8, 3, 3), (40, 5, 2)], ids=["maps", "scores"])
@pytest.mark.parametrize("name", sorted(HERE))
def test_a_format_delivers_the_rows_in_their_order(name, shape, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    source = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    folder = tmp_path / "rows"
    folder.mkdir()
    assert runner.write(HERE[name](), source, folder)["bytes_on_disk"] > source.nbytes
    order = np.random.default_rng(1).permutation(len(source))[:35]
    batches = list(HERE[name]().open(source, folder)(order))
    assert [len(batch) for batch in batches] == [32, 3]
    assert np.array_equal(np.concatenate(batches), source[order])
    costs = runner.read(HERE[name](), source, folder, order)
    assert costs.keys() == {"open", "cold", "warm"}


def test_a_format_that_gives_other_rows_is_refused(tmp_path):
    class Wrong(runner.Memmap):
        def open(self, source, folder):
            batches = super().open(source, folder)
            return lambda order: batches(np.sort(order))

    source = np.arange(80, dtype=np.float16).reshape(40, 2)
    with pytest.raises(SystemExit, match="differs"):
        runner.write(Wrong(), source, tmp_path)


def test_a_ratio_is_that_of_a_round():
    def run(cpu):
        once = {"cpu_seconds": cpu, "wall_seconds": 1.0, "bytes_read": 100}
        return {"open": once, "cold": once, "warm": once}

    found = summary([run(2.0), run(9.0), run(6.0)], [run(1.0), run(3.0), run(3.0)], 10, 50)
    assert found["warm"]["cpu_ms_a_row"] == 600
    assert found["cold"]["over_memmap_by_round"] == [2, 3, 2]
    assert found["cold"]["over_memmap"] == 2
    assert found["cold"]["bytes_read_over_values"] == 2
