"""After each test no request is on its way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvreplay._runtime.singleflight import flights


@pytest.fixture(autouse=True)
def no_flight_left() -> Iterator[None]:
    yield
    assert len(flights) == 0
