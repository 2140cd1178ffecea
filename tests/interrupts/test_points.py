"""The harness itself: it reaches every point, and finds what is planted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from interrupts.points import Points, TimeLimit
from interrupts.programs import run_walk

pytestmark = pytest.mark.untraced


def interrupted_everywhere(call: Callable[[], Any], after: Callable[[], None]) -> list[str]:
    """Interrupt a call at each of its points; return the points."""
    points: list[str] = []
    while True:
        ended = Points(KeyboardInterrupt).run(call, len(points) + 1)
        after()
        if ended.point is None:
            assert ended.error is None
            assert ended.points == len(points) == Points(KeyboardInterrupt).run(call, 0).points
            return points
        assert isinstance(ended.error, KeyboardInterrupt)
        points.append(ended.point)


@pytest.mark.parametrize("safe", [True, False])
def test_a_leak_between_an_acquisition_and_its_try_is_found(safe: bool) -> None:
    lock = threading.Lock()
    leaks = []

    def leaky() -> None:
        lock.acquire()
        try:
            pass
        finally:
            lock.release()

    def sound() -> None:
        with lock:
            pass

    def after() -> None:
        if lock.locked():
            leaks.append(True)
            lock.release()

    points = interrupted_everywhere(sound if safe else leaky, after)
    assert len(points) >= 2
    assert bool(leaks) is not safe


def test_where_the_points_are() -> None:
    """On entry to a function, after a call of C, on a jump back; and after no operator."""

    def call() -> None:
        table: dict[int, int] = {}
        table[1] = 2
        table[1] += 1
        del table[1]
        assert 1 not in table

    def calls() -> None:
        call()
        "of C".upper()
        for _ in (1, 2):
            pass

    names = [
        each.partition(":")[0].rpartition(".")[2]
        for each in (interrupted_everywhere(calls, lambda: None))
    ]
    assert names == ["calls", "call", "calls", "calls", "calls"]


def test_an_exception_of_the_handler_may_be_of_any_class() -> None:
    ended = Points(TimeLimit).run(lambda: len("of C"), 1)
    assert isinstance(ended.error, TimeLimit)


PLANTED = """
from interrupts import walk, world
from kvreplay.backends.memory import MemoryStore
def leaky(self, primary, secondary, key, value):
    self._writer.acquire()
    try:
        self._begin_change()
        self._put((primary, secondary, key), (value, None, 1))
    finally:
        self._writer.release()
world.PATIENCE = 1.0
if PLANT:
    MemoryStore.write = leaky
walk.main(["memory", "KeyboardInterrupt", "1", "write"])
"""


@pytest.mark.parametrize("planted", [False, True])
def test_a_leak_planted_in_a_store_is_found(planted: bool) -> None:
    said = run_walk("-c", PLANTED.replace("PLANT:", f"{planted}:"))
    (figures,) = map(json.loads, said)
    assert figures["tried"] == figures["points"]
    assert bool(figures["damaged"]) is planted
