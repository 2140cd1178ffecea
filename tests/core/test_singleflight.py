"""The in-process guard by itself: one leader a key, and a table that empties."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from kvreplay import InFlightError, KeyNotFoundError
from kvreplay._runtime.singleflight import Abandoned, Flight, SingleFlight, fresh
from support.forking import Child


def board(flights: Any, key: str) -> Any:
    """Lead a flight."""
    own: Flight[Any] = Flight(key, b"")
    assert flights.board(own) is own
    return own


@pytest.fixture
def flights() -> SingleFlight[str]:
    return SingleFlight()


def test_the_first_leads_and_the_others_follow(flights: SingleFlight[str]) -> None:
    flight = board(flights, "key")
    assert flight.result is None
    other = Flight("key", b"other params")
    assert flights.board(other) is flight
    board(flights, "another key")
    assert len(flights) == 2


def test_a_landed_flight_leaves_the_table(flights: SingleFlight[str]) -> None:
    flight = board(flights, "key")
    flights.land(flight, "outcome")
    assert len(flights) == 0
    assert flight.result == "outcome"
    board(flights, "key")


def test_only_a_flight_of_the_table_is_taken_from_it(flights: SingleFlight[str]) -> None:
    flight = board(flights, "key")
    flights.land(Flight("key", b""), "another's, which never led")
    assert len(flights) == 1
    flights.land(flight, "first")
    flights.land(flight, "second")
    assert flight.result == "first"


def test_a_bound_flight_is_known(flights: SingleFlight[str]) -> None:
    flight = board(flights, "key")
    assert flights.bound("key") is None
    flights.bind(flight)
    assert flights.bound("key") is flight
    flights.land(flight, "done")
    assert flights.bound("key") is None


def test_a_flight_whose_leader_is_gone_is_landed_by_the_next(flights: SingleFlight[str]) -> None:
    flight = board(flights, "key")
    woken: list[int] = []
    assert flights.wake_on_change(flight, lambda: woken.append(1), until_bound=False)
    assert not flights.give_up(flight)
    flight.is_abandoned = lambda: True
    board(flights, "key")
    assert isinstance(flight.result, Abandoned)
    assert woken == [1]


def test_followers_are_woken_once_when_it_lands(flights: SingleFlight[str]) -> None:
    flight = board(flights, "key")
    woken: list[int] = []
    for number in range(3):
        assert flights.wake_on_change(flight, lambda n=number: woken.append(n), until_bound=False)
    flights.land(flight, "outcome")
    assert woken == [0, 1, 2]
    assert not flights.wake_on_change(flight, lambda: woken.append(9), until_bound=False)
    flight.is_abandoned = lambda: True
    assert flights.give_up(flight)  # as each of a thousand followers may find it
    assert flight.result == "outcome"
    assert woken == [0, 1, 2]


def test_binding_wakes_too_and_only_once(flights: SingleFlight[str]) -> None:
    flight = board(flights, "key")
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
    flight = board(flights, "key")
    other = board(flights, "other")
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
    from kvreplay._runtime.singleflight import flights as of_this_process

    flight = board(of_this_process, "key")

    def child() -> None:
        assert len(of_this_process) == 0
        own = Flight("key", b"")
        assert of_this_process.board(own) is own
        of_this_process.land(flight, "the parent's, which must not end the child's own")
        assert len(of_this_process) == 1

    try:
        Child(child).join()
        assert len(of_this_process) == 1
    finally:
        of_this_process.land(flight, "done")
    assert len(of_this_process) == 0


def test_a_child_does_not_wait_for_what_its_parent_held(fork: Any) -> None:
    from kvreplay._runtime.singleflight import flights as of_this_process

    def child() -> None:
        assert of_this_process._lock.acquire(blocking=False)

    with of_this_process._lock:
        fork(child).join()
    fork(child).join()


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
