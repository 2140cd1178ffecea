"""Each request ends with exactly one event."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import (
    ConfigError,
    IndeterminateError,
    InFlightError,
    InvalidParamsError,
    NotStored,
    StoreFullError,
)
from kvreplay._runtime.singleflight import flights
from kvreplay.events import ANSWERS
from kvreplay.testing import FaultyStore, ManualClock
from support.ends import ANSWER, FINAL, RUNS, Stage, elsewhere
from support.final_failures import Declined
from support.replaying import START, Caller, FakeClock, Handler, never
from support.requesting import KEY, NAMESPACE, PARAMS
from support.waiting import until


@pytest.mark.parametrize("scene", RUNS)
def test_a_request_ends_with_exactly_one_event(
    make_on: Callable[..., Any], store: Any, clock: FakeClock, events: list[str], scene: str
) -> None:
    stage = Stage(make_on, FaultyStore(store), clock)
    ask: Any = RUNS[scene](stage)
    events.clear()
    with contextlib.suppress(Exception):
        ask()
    told = list(events)
    stage.store.heal()
    stage.after()
    assert [each for each in told if each in ANSWERS] == [scene.partition(":")[0]]
    assert told.count("started") <= 1
    assert told.count("waited") <= 1


def test_all_ends_are_tried() -> None:
    assert {scene.partition(":")[0] for scene in RUNS} == set(ANSWERS)


TRANSACTIONS: dict[str, tuple[str, Any, dict[str, Any], Any]] = {
    "completed": ("completed", "r", {}, None),
    "failed": ("failed", Declined(), FINAL, None),
    "an exception": ("released", ValueError(), {}, None),
    "not kept": ("released", NotStored("r"), {}, None),
    "no msgpack": ("released", object(), {}, None),
    "not kept and no msgpack": ("released", NotStored(object()), {}, None),
    "no commit": ("store_error", "r", {}, "commit"),
    "no transaction": ("store_error", "r", {}, "transaction"),
    "no failure": ("store_error", Declined(), FINAL, "check_and_put"),
}


@pytest.mark.parametrize("scene", TRANSACTIONS)
def test_a_transaction_ends_with_exactly_one_event(
    make_on: Callable[..., Any], transactional: Any, events: list[str], scene: str
) -> None:
    kind, response, settings, fault = TRANSACTIONS[scene]
    faulty = FaultyStore(transactional)
    replay = make_on(faulty, **settings)
    if fault is not None:
        faulty.fail(StoreFullError("no room"), on=fault)
    handler = Handler(response)
    with contextlib.suppress(Exception):
        replay.execute_in_transaction(KEY, PARAMS, lambda transaction: handler())
    assert [each for each in events if each in ANSWERS] == [kind]
    assert faulty.faults_left == 0


@pytest.mark.parametrize(
    ("response", "settings", "leader", "follower"),
    [
        ("r", {}, "completed", "replayed"),
        (NotStored("r"), {}, "released", "replayed"),
        (Declined(), FINAL, "failed", "replayed"),
        (ValueError(), {}, "released", "released"),
        (IndeterminateError(), {}, "doubt_begun", "in_doubt"),
        (TimeoutError(), {}, "doubt_begun", "in_doubt"),
        (object(), {}, "doubt_begun", "in_doubt"),
    ],
    ids=lambda each: type(each).__name__ if not isinstance(each, str | dict) else None,
)
def test_a_follower_ends_with_exactly_one_event(
    make: Callable[..., Any],
    response: Any,
    settings: Any,
    leader: str,
    follower: str,
    events: list[str],
) -> None:
    replay = make(**settings)
    handler = Handler(response, held=True)
    callers = [Caller(replay.execute, KEY, PARAMS, handler)]
    assert handler.started.wait(30)
    callers.append(Caller(replay.execute, KEY, PARAMS, never))
    (flight,) = flights.table.values()
    until(lambda: flight.wakers)
    handler.let_go()
    for caller in callers:
        with contextlib.suppress(Exception):
            caller.result()
    assert events[:2] == ["started", "waited"]
    assert sorted(events[2:]) == sorted([leader, follower])


def test_who_waits_tells_so_once(make: Callable[..., Any], store: Any, events: list[str]) -> None:
    """However often it looks, and whether it waits here or for another process."""
    handler = Handler("r", held=True)
    leader = Caller(make(on_event=None).execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    replay = make()
    with contextlib.suppress(Exception):
        replay.execute(KEY, PARAMS, never, wait_timeout="30ms")
    assert events == ["waited", "in_flight"]
    handler.let_go()
    leader.result()
    store.write(NAMESPACE, *KEY, elsewhere())
    events.clear()
    with contextlib.suppress(Exception):
        replay.execute(KEY, PARAMS, never, wait_timeout="30ms")
    assert events == ["waited", "in_flight"]
    events.clear()
    with contextlib.suppress(Exception):
        replay.execute(KEY, PARAMS, never, wait_timeout=0)
    assert events == ["in_flight"]


def test_who_waits_here_and_then_for_another_process_tells_so_once(
    make: Callable[..., Any], store: Any, events: list[str]
) -> None:
    clock = ManualClock(START)
    store.write(NAMESPACE, *KEY, elsewhere())
    hurried = make(on_event=None, clock=clock, wait_timeout=1)
    leader = Caller(hurried.execute, KEY, PARAMS, never)
    until(lambda: [flight for flight in flights.table.values() if flight.bound])
    follower = Caller(make().execute, KEY, PARAMS, never)
    (flight,) = flights.table.values()
    until(lambda: flight.wakers)
    clock.advance(2)
    with pytest.raises(InFlightError):
        leader.result()
    until(lambda: [each for each in flights.table.values() if each is not flight and each.bound])
    store.write(NAMESPACE, *KEY, ANSWER)
    assert follower.result().response == "r"
    assert events == ["waited", "replayed"]


def test_what_was_refused_for_its_arguments_or_settings_is_no_request(
    make: Callable[..., Any], events: list[str]
) -> None:
    replay = make()
    make(params_key=b"k" * 16).execute(("s", "digest"), PARAMS, Handler("r"))
    events.clear()
    for key, params, handler, options in (
        ("no key", PARAMS, never, {}),
        (KEY, object(), never, {}),
        (KEY, PARAMS, "no handler", {}),
        (KEY, PARAMS, never, {"ttl": -1}),
        (KEY, PARAMS, never, {"returns": Caller}),
        (("s", "digest"), PARAMS, never, {}),
    ):
        with pytest.raises((InvalidParamsError, ConfigError, TypeError)):
            replay.execute(key, params, handler, **options)
    assert replay.lookup(KEY, PARAMS) is None
    assert events == []
