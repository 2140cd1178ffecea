"""Counting while threads, signal handlers and forks come in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from interrupts.points import Points, TimeLimit
from kvreplay.events import ReplayEvent
from kvreplay.metrics._tally import Tally
from kvreplay.testing.threads import elsewhere
from support.forking import BareChild, Child

EVENT = ReplayEvent("replayed", "ns", 0, 1.0)


@attrs.frozen
class Many:
    """How many numbers there were."""

    many: int = 0

    def plus(self, numbers: list[float]) -> Many:
        return Many(self.many + len(numbers))


def begin(*_: object) -> Many:
    return Many()


def filled() -> Tally:
    """One event more, and it folds."""
    tally = Tally(begin, batch=100)
    for _ in range(99):
        tally(EVENT)
    return tally


def counted(tally: Tally, kind: str = "replayed") -> int:
    """What another thread sees: it cannot, if this one has left a lock taken."""
    found = elsewhere(lambda: list(tally.counted()))
    return sum(count.sums.many for _, count in found if count.kind == kind)  # type: ignore[attr-defined]


@pytest.mark.untraced
def test_an_interrupt_anywhere_loses_no_event_and_counts_none_twice() -> None:
    points = 0
    for count in (lambda tally: tally(EVENT), lambda tally: list(tally.counted())):
        at = 1
        while True:
            tally = filled()
            ended = Points(TimeLimit).run(lambda tally=tally, count=count: count(tally), at)
            assert counted(tally) in (99, 100)
            before = counted(tally)
            tally(EVENT)
            assert counted(tally) == before + 1
            if ended.point is None:
                break
            at += 1
        points += at
    assert points > 20


@pytest.mark.untraced
def test_a_signal_handler_counts_anywhere() -> None:
    """At each point at which one can come, it makes a request; it never waits for itself."""
    tally = filled()
    told = 0

    def on_signal(_: object) -> bool:
        nonlocal told
        for _ in range(130):  # enough to fold
            tally(ReplayEvent("expired", "ns", 0, 1.0))
        told += 130
        return False

    Points(TimeLimit, on_signal).run(lambda: list(tally.counted()), 0)
    assert told >= 20 * 130
    assert counted(tally) == 99
    assert counted(tally, "expired") == told


def test_what_a_fold_adds_meanwhile_waits_for_the_next() -> None:
    class Asking:
        """Makes a request of its own while it adds."""

        def __init__(self) -> None:
            self.many = 0

        def plus(self, numbers: list[float]) -> Asking:
            if self.many == 0:
                tally(EVENT)
            self.many += len(numbers)
            return self

    tally = Tally(lambda *_: Asking(), batch=1)
    tally(EVENT)
    assert counted(tally) == 2


@pytest.mark.parametrize("child_of", [Child, BareChild])
def test_a_forked_child_counts_its_own(child_of: Callable[..., Any]) -> None:
    tally = Tally(begin, batch=100)
    for _ in range(150):  # some are folded, and some are not
        tally(EVENT)

    def child() -> None:
        assert counted(tally) == 0
        for _ in range(101):
            tally(EVENT)
        assert counted(tally) == 101

    def child_that_counts_first() -> None:
        tally(EVENT)
        assert counted(tally) == 1

    with tally._lock:  # as another thread may hold it at the fork
        children = [child_of(child), child_of(child_that_counts_first)]
    for each in children:
        each.join()
    tally(EVENT)
    assert counted(tally) == 151
