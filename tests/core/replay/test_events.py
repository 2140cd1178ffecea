"""What the events of operators, sweeps and requests say, and what they never show."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import EVENT_KINDS, Applied, ConfigError, ReplayEvent, ReplayKey
from kvreplay._runtime.singleflight import flights
from kvreplay.testing import ManualClock
from support.ends import FINAL
from support.final_failures import Declined
from support.replaying import Caller, FakeClock, Handler, never
from support.requesting import KEY, PARAMS, abandon
from support.waiting import until

DIGEST = ReplayKey(*KEY).digest()


# What an operator does.


def test_an_operators_acts_are_told(make: Callable[..., Any]) -> None:
    seen: list[ReplayEvent] = []
    replay = make(on_event=seen.append)
    abandon(replay)
    replay.resolve(KEY, response="r")
    replay.forget(KEY)
    abandon(replay)
    replay.release(KEY)
    for refused in (replay.release, replay.forget):
        assert refused(KEY) is False
    assert [event.kind for event in seen] == [
        *("started", "doubt_begun", "resolved", "forgotten"),
        *("started", "doubt_begun", "released_by_operator"),
    ]
    assert {event.key for event in seen} == {DIGEST}
    seen.clear()
    abandon(make(on_event=None))
    make(on_event=seen.append, on_in_doubt=lambda record: Applied("r")).execute(KEY, PARAMS, never)
    replay.forget(KEY)
    abandon(make(on_event=None))
    make(on_event=seen.append, on_in_doubt="rerun").execute(KEY, PARAMS, Handler("r"))
    assert [event.kind for event in seen] == [
        *("reconciled", "replayed", "forgotten"),
        *("taken_over", "started", "completed"),
    ]


def test_a_sweep_is_told_if_it_removed_something(
    make: Callable[..., Any], clock: FakeClock
) -> None:
    seen: list[ReplayEvent] = []
    replay = make(on_event=seen.append)
    replay.execute(KEY, PARAMS, Handler("r"))
    replay.sweep()
    clock.pass_seconds(60)
    seen.clear()
    result = replay.sweep()
    replay.sweep()
    (event,) = seen
    assert (event.kind, event.key, event.swept) == ("swept", None, result)
    assert result.removed == 1


# What is in an event.


def test_a_duration_is_that_of_the_call_by_a_clock_that_only_goes_forward(
    make: Callable[..., Any],
) -> None:
    clock = ManualClock()
    seen: list[ReplayEvent] = []
    replay = make(on_event=seen.append, clock=clock)

    def handler() -> str:
        clock.advance(2)
        clock.set(0)
        return "r"

    replay.execute(KEY, PARAMS, handler)
    assert [(event.kind, event.duration, event.at) for event in seen] == [
        ("started", 0, 1_893_456_000_000),
        ("completed", 2, 0),
    ]
    seen.clear()
    clock.advance(5)
    replay.execute(KEY, PARAMS, never)
    replay.lookup(KEY, PARAMS)
    replay.forget(KEY)
    with contextlib.suppress(ValueError):
        replay.execute(KEY, PARAMS, lambda: clock.advance(3) or Handler(ValueError())())
    replay.execute(KEY, PARAMS, Handler("r"), ttl=1)
    clock.advance(1)
    replay.sweep()
    assert [(event.kind, event.duration) for event in seen] == [
        ("replayed", 0),
        ("replayed", 0),
        ("forgotten", 0),
        ("started", 0),
        ("released", 3),
        ("started", 0),
        ("completed", 0),
        ("swept", 0),
    ]


def test_a_follower_tells_how_long_it_has_waited(make: Callable[..., Any]) -> None:
    clock = ManualClock()
    seen: list[ReplayEvent] = []
    replay = make(on_event=seen.append, clock=clock)
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    clock.advance(1)
    follower = Caller(replay.execute, KEY, PARAMS, never)
    (flight,) = flights.table.values()
    until(lambda: flight.wakers)
    clock.advance(2)
    handler.let_go()
    leader.result()
    follower.result()
    assert {(event.kind, event.duration) for event in seen} == {
        ("started", 0),
        ("waited", 0),
        ("completed", 3),
        ("replayed", 2),
    }


def test_several_observers_are_told_each(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    one: list[ReplayEvent] = []
    other: list[ReplayEvent] = []

    def broken(event: ReplayEvent) -> None:
        raise RuntimeError("metrics are down")

    replay = make(on_event=(one.append, broken, other.append))
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"
    assert replay.execute(KEY, PARAMS, never).response == "r"
    assert [event.kind for event in one] == ["started", "completed", "replayed"]
    assert one == other
    assert caplog.text.count("on_event raised") == 3
    assert make(on_event=()).execute(KEY, PARAMS, never).replayed
    for wrong in (1, (one.append, None), "text"):
        with pytest.raises(ConfigError, match="on_event"):
            make(on_event=wrong)


def test_an_event_shows_a_digest_and_never_a_key(make: Callable[..., Any]) -> None:
    seen: list[ReplayEvent] = []
    replay = make(on_event=seen.append, **FINAL)
    key = ("secret-scope", "secret-id")
    with contextlib.suppress(Declined):
        replay.execute(key, "secret-params", Handler(Declined("secret-argument")))
    abandon(replay, key=("secret-scope", "2"))
    with contextlib.suppress(Exception):
        replay.execute(key, "secret-others", never)
    assert {event.key for event in seen} == {
        ReplayKey(*key).digest(),
        ReplayKey("secret-scope", "2").digest(),
    }
    assert "secret" not in " ".join(map(repr, seen))
    assert {event.kind for event in seen} <= set(EVENT_KINDS)
