"""A replay on a fresh store of each engine, with a clock that stands still."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from support.replaying import Async, AsyncOnTwin, FakeClock, Sync
from support.requesting import NAMESPACE


@pytest.fixture(params=[Sync, Async, AsyncOnTwin], ids=["sync", "async", "awaited"])
def face(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the awaited calls on all engines but one: the twin is the same for all."""
    items[:] = [item for item in items if not _is_a_twin_of_another_engine(item)]


def _is_a_twin_of_another_engine(item: pytest.Item) -> bool:
    chosen = item.callspec.params if hasattr(item, "callspec") else {}
    engines = {chosen.get(each, "memory") for each in ("engine", "transactional_engine")}
    return chosen.get("face") is AsyncOnTwin and engines != {"memory"}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def make_on(face: Any, clock: FakeClock, events: list[str]) -> Callable[..., Any]:
    """``make_on(store, **settings)`` makes a replay; its events' kinds are in ``events``."""

    def make_on(store: Any, **settings: Any) -> Any:
        settings = {
            "ttl": 60,
            "clock": clock,
            "wait_timeout": 30,
            "on_event": lambda event: events.append(event.kind),
            **settings,
        }
        return face(store, NAMESPACE, **settings)

    return make_on


@pytest.fixture
def make(make_on: Callable[..., Any], store: Any) -> Callable[..., Any]:
    return functools.partial(make_on, store)


@pytest.fixture
def replay(make: Callable[..., Any]) -> Any:
    return make()
