"""A stage with the stages that it reads, for images that have no tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from hoi_distill.stages.chained import Chained
from hoi_distill.stages.stage import Batch
from tests.fixtures.toy_stages import Scores, Signs


def test_what_a_column_is_computed_from_is_computed_first_and_nothing_else(monkeypatch):
    asked = []
    below = Signs(Signs.Config(columns=("a", "b")))
    above = Scores(Scores.Config(columns=("a", "b", "c")))
    answer = {"a": pa.array([-1.0, 2.0], pa.float32()), "b": pa.array([3.0, -4.0], pa.float32())}

    def compute(batch, columns, inputs):
        asked.append((list(columns), dict(inputs)))
        return {column: answer[column] for column in columns}

    monkeypatch.setattr(above, "compute", compute)
    chain = Chained(below, dict.fromkeys(below.inputs, above))
    assert chain.inputs == ()
    assert (chain.columns, chain.parameters()) == (below.columns, below.parameters())
    batch = Batch(np.zeros(2, "V16"), ["", ""], 2)
    expected = below.compute(batch, ("b",), dict.fromkeys(below.inputs, answer))
    assert chain.compute(batch, ("b",), {})["b"].to_pylist() == expected["b"].to_pylist()
    assert asked == [(["b"], {})]
