from __future__ import annotations

import pytest

from tests.fixtures.toy_cl_hoi import LabelledToy


@pytest.fixture(scope="session")
def world() -> LabelledToy:
    return LabelledToy(24, 0)
