from __future__ import annotations

import pytest

from tests.fixtures.toy_cl_hoi import TaughtToy


@pytest.fixture(scope="session")
def world() -> TaughtToy:
    return TaughtToy(24, 0)
