"""Numbers are written in the unit that fits."""

from __future__ import annotations

import pytest

from hoi_distill.stages.quantities import duration, pace


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (577.4, "577/s"),
        (12345, "12,345/s"),
        (3.42, "3.4/s"),
        (1, "1.0/s"),
        (0.4, "2.5 s/cell"),
        (0.005, "3 min 20 s/cell"),
    ]
    + [(1 / 9000, "2 h 30 min/cell")],
)
def test_a_pace_below_one_a_second_is_the_time_of_one(rate: float, shown: str) -> None:
    assert pace(rate, "cell") == shown


def test_durations_are_in_the_unit_that_fits() -> None:
    assert [duration(seconds) for seconds in (4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 5 min"]
