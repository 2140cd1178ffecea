"""A replay on a fresh store of each engine, with a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.replaying import Async, FakeClock, Sync
from support.requesting import NAMESPACE


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def face(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def make(face: Any, store: Any, clock: FakeClock, events: list[str]) -> Callable[..., Any]:
    def make(**settings: Any) -> Any:
        settings = {
            "ttl": 60,
            "clock": clock,
            "wait_timeout": 30,
            "on_event": lambda event: events.append(event.kind),
            **settings,
        }
        return face(store, NAMESPACE, **settings)

    return make


@pytest.fixture
def replay(make: Callable[..., Any]) -> Any:
    return make()
