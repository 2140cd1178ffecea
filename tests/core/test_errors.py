"""The errors: what they carry, on every way that an exception goes, and what they never show."""

from __future__ import annotations

import copy
import pickle

import pytest

from kvreplay import (
    IndeterminateError,
    InDoubtError,
    InFlightError,
    InvalidResponseError,
    NotAppliedError,
    ReplayError,
    ResponseNotStorableError,
    StoredFailureError,
)
from kvreplay._runtime.singleflight import fresh

WAYS = [copy.copy, copy.deepcopy, fresh, lambda error: pickle.loads(pickle.dumps(error))]


@pytest.mark.parametrize("kind", [InDoubtError, IndeterminateError, ResponseNotStorableError])
@pytest.mark.parametrize("copied", WAYS)
def test_a_copy_of_doubt_tells_the_same(kind: type[InDoubtError], copied: object) -> None:
    error = kind("nobody knows", retry_after=2.5, response={"paid": 1})
    assert callable(copied)
    again = copied(error)
    assert type(again) is kind
    assert again is not error
    assert (str(again), again.retry_after, again.response) == ("nobody knows", 2.5, {"paid": 1})
    assert "paid" not in f"{again!r} {again}"


@pytest.mark.parametrize("copied", WAYS)
def test_a_copy_of_a_stored_failure_tells_the_same(copied: object) -> None:
    error = StoredFailureError("a failure", "shop.CardDeclined", ("limit", 5))
    error.add_note("a note")
    assert callable(copied)
    again = copied(error)
    assert type(again) is StoredFailureError
    assert (str(again), again.name, again.arguments) == (str(error), error.name, error.arguments)
    assert again.__notes__ == ["a note"]
    assert "limit" not in f"{again!r} {again}"


def test_doubt_alone_carries_nothing() -> None:
    error = IndeterminateError()
    assert (error.args, error.retry_after, error.response) == ((), None, None)


def test_in_flight_is_copied_too() -> None:
    again = pickle.loads(pickle.dumps(InFlightError("wait", 0.5)))
    assert (str(again), again.retry_after) == ("wait", 0.5)


def test_what_is_not_in_doubt_is_not_called_so() -> None:
    for error in (InvalidResponseError, NotAppliedError, InFlightError):
        assert issubclass(error, ReplayError)
        assert not issubclass(error, InDoubtError)
