"""Single-flight: requests for the same key at the same time in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import InFlightError, ParamsMismatchError, StoreFullError
from kvreplay._protocol.record import decode
from kvreplay._runtime.singleflight import flights
from support.replaying import START, Async, Caller, FakeClock, Handler, OneByOne
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, entry
from support.waiting import until


def test_concurrent_requests_share_one_run(replay: Any, events: list[str]) -> None:
    handler = Handler({"n": [1]}, {"n": [2]}, held=True)
    callers = [Caller(replay.execute, KEY, PARAMS, handler) for _ in range(8)]
    assert handler.started.wait(30)
    handler.let_go()
    outcomes = [caller.result() for caller in callers]
    assert handler.runs == 1
    assert [outcome.response for outcome in outcomes] == [{"n": [1]}] * 8
    assert sorted(outcome.replayed for outcome in outcomes) == [False] + [True] * 7
    outcomes[0].response["n"].append("mine")
    assert [outcome.response for outcome in outcomes[1:]] == [{"n": [1]}] * 7
    assert events.count("completed") == 1


def test_other_params_are_stale_at_once_while_the_key_runs(replay: Any) -> None:
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    with pytest.raises(ParamsMismatchError):
        replay.execute(KEY, OTHER, Handler("never"))
    handler.let_go()
    assert leader.result().response == "r"


def test_two_replays_on_one_store_share_the_flight(make: Callable[..., Any]) -> None:
    one, other = make(lease=None), make(lease=None)
    handler = Handler("first", "second", held=True)
    callers = [Caller(each.execute, KEY, PARAMS, handler) for each in (one, other)]
    assert handler.started.wait(30)
    handler.let_go()
    assert [caller.result().response for caller in callers] == ["first", "first"]
    assert handler.runs == 1


class Declined(Exception):
    """An exception whose constructor takes something else than its args."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.reason = reason


def test_a_waiter_gets_a_fresh_copy_of_the_leaders_exception(replay: Any) -> None:
    handler = Handler(Declined(7, reason="no route"), held=True)
    callers = [Caller(replay.execute, KEY, PARAMS, handler) for _ in range(4)]
    assert handler.started.wait(30)
    handler.let_go()
    errors = []
    for caller in callers:
        with pytest.raises(Declined, match="7: no route") as error:
            caller.result()
        assert error.value.reason == "no route"
        errors.append(error.value)
    if handler.runs == 1:  # or a caller came late and ran it again, which the rule allows
        assert len({id(error) for error in errors}) == 4
        causes = {id(error.__cause__) for error in errors} - {id(None)}
        assert len(causes) == 1


def test_a_handler_that_asks_for_its_own_key_does_not_wait_for_itself(replay: Any) -> None:
    def handler() -> Any:
        return replay.execute(KEY, PARAMS, Handler("inner"))

    if isinstance(replay, Async):
        inner = replay.replay

        async def again() -> Any:
            return await inner.execute(KEY, PARAMS, Handler("inner"))

        with pytest.raises(InFlightError, match="very key"):
            asyncio.run(inner.execute(KEY, PARAMS, again))
    else:
        with pytest.raises(InFlightError, match="very key"):
            replay.execute(KEY, PARAMS, handler)
    assert replay.execute(KEY, PARAMS, Handler("afterwards")).response == "afterwards"


class RefusesItsFirstChange(OneByOne):
    """A store that holds the first change back until it is let go, and then has no room for it."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.asked = threading.Event()
        self.go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def check_and_put(self, *args: Any, **options: Any) -> Any:
        if self.asked.is_set():
            return self._store.check_and_put(*args, **options)
        self.asked.set()
        assert self.go.wait(30)
        raise StoreFullError("no room")


def test_who_starts_over_begins_then(face: Any, store: Any, clock: FakeClock) -> None:
    """And not when it first looked, which may be long ago."""
    refusing = RefusesItsFirstChange(store)
    replay = face(refusing, NAMESPACE, ttl=60, clock=clock)
    leader = Caller(replay.execute, KEY, PARAMS, Handler("never"))
    assert refusing.asked.wait(30)
    follower = Caller(replay.execute, KEY, OTHER, Handler("r"))
    (flight,) = flights.table.values()
    until(lambda: flight.wakers)
    clock.pass_seconds(40)
    refusing.go.set()
    with pytest.raises(StoreFullError):
        leader.result()
    assert follower.result().response == "r"
    assert decode(entry(store) or b"").created_at == START + 40_000


def test_threads_of_a_burst_make_one_effect(replay: Any) -> None:
    effects: list[int] = []
    barrier = threading.Barrier(32)

    def call() -> Any:
        barrier.wait()
        return replay.execute(KEY, PARAMS, lambda: effects.append(1) or len(effects))

    callers = [Caller(call) for _ in range(32)]
    assert {caller.result().response for caller in callers} == {1}
    assert effects == [1]
