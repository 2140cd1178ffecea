"""One way to each end that a request can have: a replay, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from kvreplay import (
    ClaimLostError,
    CorruptRecordError,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    ParamsMismatchError,
    ResponseTypeError,
    StoreUnavailableError,
)
from support.joinable import JoinableStore
from support.replaying import Caller, FakeClock, Handler, never
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon

__all__ = ["DECISIONS", "Declined", "Way"]


class Way:
    """A place to make replays in: ``make`` takes the settings, ``store`` is a ``FaultyStore``."""

    def __init__(self, make: Callable[..., Any], store: Any, clock: FakeClock) -> None:
        self.make = make
        self.store = store
        self.clock = clock


class Declined(Exception):
    """A final failure."""


def _completed(way: Way) -> None:
    way.make().execute(KEY, PARAMS, Handler("r"))


def _failed(way: Way) -> None:
    with pytest.raises(Declined):
        way.make(store_errors=(Declined,)).execute(KEY, PARAMS, Handler(Declined("funds")))


def _joined(way: Way) -> None:
    joinable = JoinableStore(way.store)
    way.make(joinable).execute_in_transaction(
        KEY, PARAMS, lambda connection: "r", connection=joinable.connect().begin()
    )


def _replayed(way: Way) -> None:
    _completed(way)
    way.make().execute(KEY, PARAMS, never)


def _released(way: Way) -> None:
    with pytest.raises(ValueError, match="refused"):
        way.make().execute(KEY, PARAMS, Handler(ValueError("refused")))


def _params_mismatch(way: Way) -> None:
    _completed(way)
    with pytest.raises(ParamsMismatchError):
        way.make().execute(KEY, OTHER, never)


def _expired(way: Way) -> None:
    _completed(way)
    way.clock.pass_seconds(60)
    with pytest.raises(ExpiredError):
        way.make().execute(KEY, PARAMS, never)


def _in_flight(way: Way) -> None:
    held = Handler("r", held=True)
    running = Caller(way.make().execute, KEY, PARAMS, held)
    assert held.started.wait(10)
    try:
        with pytest.raises(InFlightError):
            way.make(wait_timeout=0).execute(KEY, PARAMS, never)
    finally:
        held.let_go()
        running.result()


def _in_doubt(way: Way) -> None:
    abandon(way.make())
    with pytest.raises(InDoubtError):
        way.make().execute(KEY, PARAMS, never)


def _doubt_begun(way: Way) -> None:
    with pytest.raises(IndeterminateError):
        way.make().execute(KEY, PARAMS, Handler(IndeterminateError("no answer")))


def _claim_lost(way: Way) -> None:
    def loses_its_claim() -> str:
        way.store.remove(NAMESPACE, *KEY)
        return "r"

    with pytest.raises(ClaimLostError):
        way.make().execute(KEY, PARAMS, loses_its_claim)


def _corrupt_record(way: Way) -> None:
    way.store.write(NAMESPACE, *KEY, b"not a record")
    with pytest.raises(CorruptRecordError):
        way.make().execute(KEY, PARAMS, never)


def _response_type(way: Way) -> None:
    def cannot(value: object) -> Any:
        raise TypeError

    _completed(way)
    with pytest.raises(ResponseTypeError):
        way.make(encode=lambda value: value, decode=cannot).execute(KEY, PARAMS, never)


def _store_error(way: Way) -> None:
    way.store.fail()
    with pytest.raises(StoreUnavailableError):
        way.make().execute(KEY, PARAMS, never)


DECISIONS: Final[Mapping[str, tuple[Callable[[Way], None], Mapping[str, int]]]] = {
    "completed": (_completed, {"completed": 1}),
    "failed": (_failed, {"failed": 1}),
    "joined": (_joined, {"joined": 1}),
    "replayed": (_replayed, {"completed": 1, "replayed": 1}),
    "released": (_released, {"released": 1}),
    "params_mismatch": (_params_mismatch, {"completed": 1, "params_mismatch": 1}),
    "expired": (_expired, {"completed": 1, "expired": 1}),
    "in_flight": (_in_flight, {"completed": 1, "in_flight": 1}),
    "in_doubt": (_in_doubt, {"doubt_begun": 1, "in_doubt": 1}),
    "doubt_begun": (_doubt_begun, {"doubt_begun": 1}),
    "claim_lost": (_claim_lost, {"claim_lost": 1}),
    "corrupt_record": (_corrupt_record, {"corrupt_record": 1}),
    "response_type": (_response_type, {"completed": 1, "response_type": 1}),
    "store_error": (_store_error, {"store_error": 1}),
}
"""For each end: what asks for it, and how all requests end that this makes."""
