"""Expiry, tombstones and sweeps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from kvreplay import ConfigError, ExpiredError, InDoubtError, StaleFlowError
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


# on_expired="rerun"


@pytest.mark.parametrize("lease", [30.0, None])
@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("tombstone_ttl", [0, 100])
def test_an_expired_answer_can_count_as_absent(
    make: Callable[..., Any],
    clock: FakeClock,
    lease: float | None,
    swept: bool,
    tombstone_ttl: float,
    events: list[str],
) -> None:
    replay = make(on_expired="rerun", lease=lease, tombstone_ttl=tombstone_ttl)
    handler = Handler("first", "second", "third")
    replay.execute(KEY, PARAMS, handler)
    clock.pass_seconds(59.999)
    assert replay.execute(KEY, PARAMS, handler).response == "first"
    clock.pass_seconds(0.001)
    if swept:
        replay.sweep()
    assert replay.lookup(KEY, PARAMS) is None
    second = replay.execute(KEY, OTHER, handler)
    assert (second.response, second.replayed) == ("second", False)
    assert second.expires_at == clock.now + 60_000
    assert replay.lookup(KEY, OTHER).response == "second"
    assert "expired" not in events
    assert handler.runs == 2


def test_a_tombstone_of_a_strict_replay_counts_as_absent_too(
    make: Callable[..., Any], clock: FakeClock
) -> None:
    strict, again = make(tombstone_ttl=100), make(tombstone_ttl=100, on_expired="rerun")
    strict.execute(KEY, PARAMS, Handler("first"))
    clock.pass_seconds(60)
    for _ in range(2):
        with pytest.raises(ExpiredError):
            strict.lookup(KEY, PARAMS)
    assert strict.record(KEY).state is State.TOMBSTONE
    assert again.lookup(KEY, PARAMS) is None
    assert again.execute(KEY, PARAMS, Handler("second")).response == "second"
    assert strict.execute(KEY, PARAMS, Handler("never")).response == "second"


def test_a_transaction_reruns_an_expired_answer(
    make_on: Callable[..., Any], transactional: Any, clock: FakeClock
) -> None:
    answers = ["second", "first"]
    for on_expired in ("rerun", "stale"):
        replay = make_on(transactional, on_expired=on_expired)
        if on_expired == "stale":
            with pytest.raises(ExpiredError):
                replay.execute_in_transaction(KEY, PARAMS, lambda transaction: "never")
            break
        for _ in range(2):
            replay.execute_in_transaction(KEY, PARAMS, lambda transaction: answers.pop())
            clock.pass_seconds(60)
    assert answers == []


def test_a_rerun_of_an_expired_answer_that_fails_leaves_a_free_key(
    make: Callable[..., Any], store: Any, clock: FakeClock
) -> None:
    replay = make(on_expired="rerun")
    replay.execute(KEY, PARAMS, Handler("first"))
    clock.pass_seconds(60)
    with pytest.raises(ValueError, match="no"):
        replay.execute(KEY, PARAMS, Handler(ValueError("no")))
    assert entry(store) is None


def test_a_doubt_is_never_too_old_to_be_told(make: Callable[..., Any], clock: FakeClock) -> None:
    replay = make(on_expired="rerun")
    abandon(replay)
    clock.pass_seconds(100 * 86_400)
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, Handler("never"))


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("seconds", [60, 159.999])
def test_a_tombstone_lasts_as_long_whether_or_not_a_sweep_came_first(
    make: Callable[..., Any], clock: FakeClock, swept: bool, seconds: float
) -> None:
    replay = make(tombstone_ttl=100)
    replay.execute(KEY, PARAMS, Handler("first"))
    clock.pass_seconds(seconds)
    if swept:
        replay.sweep()
    for params in (PARAMS, OTHER):
        with pytest.raises(ExpiredError):
            replay.execute(KEY, params, Handler("never"))


@pytest.mark.parametrize("on_expired", ["again", None, True, 1])
def test_what_to_do_with_what_has_expired_is_one_of_two(
    make: Callable[..., Any], on_expired: Any
) -> None:
    with pytest.raises(ConfigError, match="on_expired"):
        make(on_expired=on_expired)
