"""Expiry, tombstones and sweeps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from kvreplay import ExpiredError, StaleFlowError
from kvreplay._protocol.record import State, decode
from support.replaying import FakeClock, Handler
from support.requesting import KEY, OTHER, PARAMS, abandon, entry


@pytest.mark.parametrize("params", [PARAMS, OTHER], ids=["same params", "other params"])
def test_an_expired_record_is_a_stale_flow_and_is_pruned(
    replay: Any, store: Any, clock: FakeClock, params: Any, events: list[str]
) -> None:
    handler = Handler("first", "second")
    replay.execute(KEY, PARAMS, handler)
    clock.pass_seconds(59.999)
    assert replay.execute(KEY, PARAMS, handler).replayed
    clock.pass_seconds(0.001)
    with pytest.raises(ExpiredError) as error:
        replay.execute(KEY, params, handler)
    assert isinstance(error.value, StaleFlowError)
    assert entry(store) is None
    assert handler.runs == 1
    assert events[-1] == "expired"
    assert replay.execute(KEY, params, handler).response == "second"


def test_ttl_zero_answers_once(replay: Any) -> None:
    handler = Handler("once")
    assert replay.execute(KEY, PARAMS, handler, ttl=0).response == "once"
    with pytest.raises(ExpiredError):
        replay.execute(KEY, PARAMS, handler)


def test_a_call_has_its_own_ttl(replay: Any, clock: FakeClock) -> None:
    replay.execute(KEY, PARAMS, Handler("r"), ttl=timedelta(minutes=10))
    clock.pass_seconds(599)
    assert replay.execute(KEY, PARAMS, Handler("r")).replayed


def test_a_tombstone_goes_on_answering_without_a_payload(
    make: Callable[..., Any], store: Any, clock: FakeClock
) -> None:
    replay = make(tombstone_ttl=100)
    handler = Handler("first", "second")
    replay.execute(KEY, PARAMS, handler)
    clock.pass_seconds(60)
    for params in (PARAMS, OTHER):
        with pytest.raises(ExpiredError):
            replay.execute(KEY, params, handler)
    tombstone = decode(entry(store) or b"")
    assert (tombstone.state, tombstone.params, tombstone.response) == (State.TOMBSTONE, b"", None)
    clock.pass_seconds(99.999)
    assert replay.sweep().removed == 0
    with pytest.raises(ExpiredError):
        replay.execute(KEY, PARAMS, handler)
    clock.pass_seconds(0.001)
    assert replay.execute(KEY, PARAMS, handler).response == "second"


def test_a_sweep_removes_what_nobody_needs(
    replay: Any, store: Any, clock: FakeClock, events: list[str]
) -> None:
    for number in range(5):
        replay.execute(("s", f"old{number}"), PARAMS, Handler(number))
    abandon(replay, ("s", "claimed"))
    clock.pass_seconds(30)
    replay.execute(("s", "young"), PARAMS, Handler("young"))
    clock.pass_seconds(30)
    first = replay.sweep(limit=3)
    assert (first.visited, first.removed, first.more) == (3, 3, True)
    second = replay.sweep(limit=3)
    assert (second.visited, second.removed, second.more) == (2, 2, False)
    assert {record.key.id for record in replay.records()} == {"claimed", "young"}
    assert events[-2:] == ["swept", "swept"]


def test_a_sweep_waits_for_the_tombstones(make: Callable[..., Any], clock: FakeClock) -> None:
    replay = make(tombstone_ttl=100)
    replay.execute(KEY, PARAMS, Handler("r"))
    clock.pass_seconds(159)
    assert replay.sweep().removed == 0
    clock.pass_seconds(1)
    assert replay.sweep().removed == 1
    assert replay.records() == []
