"""The in-process guard by itself: one leader a key, and a table that empties."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest

from kvreplay import InFlightError, KeyNotFoundError
from kvreplay.singleflight import SingleFlight, fresh


@pytest.fixture
def flights() -> SingleFlight[str]:
    return SingleFlight()


def test_the_first_leads_and_the_others_follow(flights: SingleFlight[str]) -> None:
    flight, leads = flights.board("key", b"params")
    same, follows = flights.board("key", b"other params")
    assert (leads, follows) == (True, False)
    assert same is flight
    other, leads_other = flights.board("another key", b"params")
    assert leads_other
    assert other is not flight
    assert len(flights) == 2


def test_a_landed_flight_leaves_the_table(flights: SingleFlight[str]) -> None:
    flight, _ = flights.board("key", b"")
    flights.land(flight, "outcome")
    assert len(flights) == 0
    assert flight.outcome == "outcome"
    _, leads = flights.board("key", b"")
    assert leads


def test_followers_are_woken_once_when_it_lands(flights: SingleFlight[str]) -> None:
    flight, _ = flights.board("key", b"")
    woken: list[int] = []
    for number in range(3):
        assert flights.wake_on_change(flight, lambda n=number: woken.append(n), until_bound=False)
    flights.land(flight, "outcome")
    assert woken == [0, 1, 2]
    assert not flights.wake_on_change(flight, lambda: woken.append(9), until_bound=False)
    assert woken == [0, 1, 2]


def test_binding_wakes_too_and_only_once(flights: SingleFlight[str]) -> None:
    flight, _ = flights.board("key", b"")
    woken: list[str] = []
    assert flights.wake_on_change(flight, lambda: woken.append("bound"), until_bound=True)
    flights.bind(flight)
    flights.bind(flight)
    assert woken == ["bound"]
    assert not flights.wake_on_change(flight, lambda: woken.append("late"), until_bound=True)
    assert flights.wake_on_change(flight, lambda: woken.append("landed"), until_bound=False)
    flights.land(flight, "outcome")
    assert woken == ["bound", "landed"]


def test_who_is_aboard(flights: SingleFlight[str]) -> None:
    flight, _ = flights.board("key", b"")
    other, _ = flights.board("other", b"")
    assert not flights.is_aboard(flight)
    with flights.aboard(flight):
        assert flights.is_aboard(flight)
        with flights.aboard(other):
            assert flights.is_aboard(flight)
        assert not flights.is_aboard(other)
        elsewhere: list[bool] = []
        thread = threading.Thread(target=lambda: elsewhere.append(flights.is_aboard(flight)))
        thread.start()
        thread.join()
        assert elsewhere == [False]
    assert not flights.is_aboard(flight)


def test_a_child_starts_with_an_empty_table() -> None:
    from kvreplay.singleflight import flights as of_this_process

    flight, _ = of_this_process.board("key", b"")
    try:
        child = os.fork()
        if not child:
            ok = len(of_this_process) == 0
            _, leads = of_this_process.board("key", b"")
            of_this_process.land(flight, "the parent's, which must not end the child's own")
            os._exit(0 if ok and leads and len(of_this_process) == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(of_this_process) == 1
    finally:
        of_this_process.land(flight, "done")
    assert len(of_this_process) == 0


class Awkward(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__("text")
        self.code, self.reason = code, reason


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", 1),
        Awkward(7, reason="because"),
        InFlightError("text", 2.5),
        KeyNotFoundError("text"),
        OSError(5, "Input/output error"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    ],
)
def test_a_fresh_exception_is_equal_and_its_own(error: Any) -> None:
    try:
        raise error
    except Exception:
        clone = fresh(error)
    assert clone is not error
    assert type(clone) is type(error)
    assert str(clone) == str(error)
    assert vars(clone) == vars(error)
    assert clone.args == error.args
    assert clone.__traceback__ is None
