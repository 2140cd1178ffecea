"""A replay in memory whose store can fail, with a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.testing import FaultyStore
from support.decisions import Way
from support.replaying import Async, FakeClock, Sync
from support.requesting import NAMESPACE


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def store() -> Iterator[Any]:
    with FaultyStore(open_store("memory:")) as store:
        yield store


@pytest.fixture
def way_with(face: Any, store: Any) -> Callable[..., Way]:
    """``way_with(on_event)`` makes replays that tell their events to it."""

    def way_with(on_event: Any) -> Way:
        clock = FakeClock()
        common = {"ttl": 60, "clock": clock, "wait_timeout": 30, "on_event": on_event}

        def make(on: Any = store, **settings: Any) -> Any:
            return face(on, NAMESPACE, **{**common, **settings})

        return Way(make, store, clock)

    return way_with
