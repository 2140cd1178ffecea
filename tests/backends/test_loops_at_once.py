"""Event loops that come and go on several threads, on one store."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pytest

from kvreplay.backends._support import values_now
from kvreplay.testing.threads import Running
from support.engines import Engine, these

THREADS = 6


@pytest.fixture(autouse=True)
def hurried() -> Iterator[None]:
    """Threads change over as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("name", these("postgresql", "etcd"))
def test_each_loop_has_its_connections(name: str, new_engine: Any) -> None:
    engine: Engine = new_engine(name)
    store = engine.open()

    def ask() -> None:
        for _ in range(15):
            assert asyncio.run(store.awaited.list("p", "s")) == []

    for each in [Running(ask) for _ in range(THREADS)]:
        each.result()


class Loop:
    """Stands for an event loop."""


def test_values_that_come_and_go_while_they_are_looked_at() -> None:
    dictionary: WeakKeyDictionary[Loop, int] = WeakKeyDictionary()
    kept = [Loop() for _ in range(100)]
    dictionary.update((loop, 0) for loop in kept)
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            loops = [Loop() for _ in range(20)]
            for loop in loops:
                dictionary[loop] = 1

    comers = [Running(come_and_go) for _ in range(2)]
    try:
        for _ in range(2000):
            assert values_now(dictionary).count(0) == len(kept)
    finally:
        over.set()
    for each in comers:
        each.result()
