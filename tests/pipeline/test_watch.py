"""No long silence, and no line too many."""

from __future__ import annotations

import time

from pipeline.watch import Watch


def test_a_silent_phase_is_named_and_one_that_speaks_is_not():
    lines: list[str] = []
    with Watch("reading", lines.append, first=0.1, every=10.0) as watch:
        time.sleep(0.5)
        assert [line.startswith("reading (") for line in lines] == [True]
        watch.phase("training")
        watch("step 1")
        time.sleep(0.5)
        assert lines[1:] == ["step 1"]
        watch.phase("predicting")
        time.sleep(0.5)
    assert lines[2].startswith("predicting (")
    time.sleep(0.2)
    assert len(lines) == 3


def test_a_quick_one_says_nothing_and_ends_at_once():
    began, lines = time.monotonic(), []
    with Watch("reading", lines.append):
        pass
    assert lines == []
    assert time.monotonic() - began < 1
