"""No long silence, and no line too many."""

from __future__ import annotations

import io
import time

from hoi_distill.pipeline.console.watch import Watch, working


def until(said, within=30.0):
    """Wait for it, on a machine of any pace."""
    end = time.monotonic() + within
    while not said() and time.monotonic() < end:
        time.sleep(0.01)
    return said()


def test_a_silent_phase_is_named_and_one_that_speaks_is_not():
    lines: list[str] = []
    with Watch("reading", lines.append, first=0.1, every=1000.0) as watch:
        assert until(lambda: lines)
        assert lines[0].startswith("reading (")
        watch.first = 1000.0
        watch.phase("training")
        watch("step 1")
        watch.first = 0.1
        time.sleep(0.3)
        assert lines[1:] == ["step 1"]
        watch.phase("predicting")
        assert until(lambda: len(lines) == 3)
    assert lines[2].startswith("predicting (")
    time.sleep(0.2)
    assert len(lines) == 3


def test_what_cannot_be_said_ends_nothing():
    def refuse(line: str) -> None:
        refused.append(line)
        raise OSError("no space")

    refused: list[str] = []
    with Watch("reading", refuse, first=0.05, every=0.05):
        assert until(lambda: len(refused) >= 2)


def test_a_quick_one_says_nothing_and_ends_at_once():
    began, lines = time.monotonic(), []
    with Watch("reading", lines.append, first=1000.0):
        pass
    assert lines == []
    assert time.monotonic() - began < 30


def test_what_takes_long_is_said_again_and_again_and_what_is_quick_is_not() -> None:
    out = io.StringIO()
    with working("starting Ray", out, every=0.05):
        time.sleep(0.4)
    said = out.getvalue().splitlines()
    assert len(said) >= 3
    assert said[0].startswith("  starting Ray (0 s)")
    quick = io.StringIO()
    with working("starting Ray", quick):
        pass
    assert quick.getvalue() == ""
