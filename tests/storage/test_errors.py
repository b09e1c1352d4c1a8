"""The nearest allowed name to a misspelt one."""

from __future__ import annotations

import pytest

from hoi_distill.storage.errors import did_you_mean, nearest

ALLOWED = ("learning_rate", "label", "seed")


@pytest.mark.parametrize(("name", "expected"), [("learnin_rate", "learning_rate"), ("labels", "label"), ("xyz", None)])
def test_the_nearest_name_is_named_where_one_is_like_it(name, expected):
    assert nearest(name, ALLOWED) == expected
    assert did_you_mean(name, ALLOWED) == (f" (did you mean {expected}?)" if expected else "")


def test_any_iterable_of_names_will_do():
    assert nearest("seeds", {"seed": 1}) == nearest("seeds", iter(["seed"])) == "seed"
    assert nearest("seed", ()) is None
