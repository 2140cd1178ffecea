"""Requests inside turns: an event that LDK repeats is handled once, with the turn or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    ExpiredError,
    InFlightError,
    InvalidResponseError,
    ParamsMismatchError,
    Replay,
)
from kvreplay._runtime.singleflight import flights
from kvreplay.errors import StoreError
from kvreplay.ldk import TurnStore
from kvreplay.testing.entries import content
from kvreplay.testing.threads import Running, elsewhere
from support.waiting import PATIENCE, until

KEY = ("payment_claimed", "hash")
PARAMS = {"amount_msat": 1000}


@pytest.fixture
def store(transactional: Any) -> TurnStore:
    return TurnStore(transactional)


@pytest.fixture
def replay(store: TurnStore) -> Replay:
    return Replay(store, "events", ttl=60)


def write(store: Any, key: str, value: bytes = b"v") -> None:
    store.write("p", "s", key, value)


def keys(store: Any) -> list[str]:
    return sorted(store.list("p", "s"))


def test_an_event_is_handled_once_with_the_turn(store: TurnStore, replay: Replay) -> None:
    handled: list[str] = []

    def handler(txn: Any) -> str:
        handled.append("x")
        txn.write("ledger", "", "balance", b"1000")
        write(store, "by-ldk")
        return "claimed"

    with pytest.raises(ZeroDivisionError), store.turn():
        assert not replay.execute_in_transaction(KEY, PARAMS, handler).replayed
        raise ZeroDivisionError
    assert content(store) == {}, "undone with its turn"
    for replayed in (False, True, True):
        with store.turn():
            for again in (replayed, True):
                outcome = replay.execute_in_transaction(KEY, PARAMS, handler)
                assert (outcome.response, outcome.replayed) == ("claimed", again)
                assert replay.lookup(KEY, PARAMS) is not None
    assert len(handled) == 2
    assert store.read("ledger", "", "balance") == b"1000"
    assert keys(store) == ["by-ldk"]


def test_a_stale_event_leaves_the_turn_as_it_is(store: TurnStore) -> None:
    now, said = [1000], list[str]()

    class Clock:
        def now_ms(self) -> int:
            return now[0]

    replay = Replay(store, "events", ttl=1, clock=Clock())

    def never(txn: Any) -> None:
        raise AssertionError

    with store.turn():
        replay.execute_in_transaction(KEY, PARAMS, lambda txn: "claimed")
    with store.turn():
        write(store, "a")
        with pytest.raises(ParamsMismatchError):
            replay.execute_in_transaction(KEY, {"amount_msat": 1}, never)
        now[0] += 1000
        with pytest.raises(ExpiredError):
            replay.execute_in_transaction(KEY, PARAMS, never)
        write(store, "b")
        store.after_commit(lambda: said.append("said"))
    assert keys(store) == ["a", "b"]
    assert said == ["said"]
    assert store.list("events", KEY[0]) == [], "pruned with the turn"


def test_a_handler_that_raises_undoes_its_part(store: TurnStore, replay: Replay) -> None:
    def handler(end: Callable[[], object], txn: Any) -> object:
        txn.write("p", "s", "undone", b"v")
        write(store, "undone-too")
        store.after_commit(_never)
        return end()

    with store.turn():
        write(store, "kept")
        for end, error in ((lambda: 1 / 0, ZeroDivisionError), (object, InvalidResponseError)):
            with pytest.raises(error):
                replay.execute_in_transaction(KEY, PARAMS, partial(handler, end))
        assert keys(store) == ["kept"]
        assert replay.lookup(KEY, PARAMS) is None
    assert content(store) == {("p", "s", "kept"): b"v"}


def _never() -> None:
    raise AssertionError("it was undone")


def test_outside_of_a_turn_a_request_is_a_turn(store: TurnStore, replay: Replay) -> None:
    said: list[int] = []

    def say() -> None:
        said.append(elsewhere(lambda: len(content(store))))

    def handler(txn: Any) -> str:
        write(store, "manager")
        txn.write("p", "s", "own", b"v")
        store.after_commit(say)
        assert elsewhere(lambda: content(store)) == {}
        return "lnbc1"

    assert replay.execute_in_transaction(KEY, PARAMS, handler).response == "lnbc1"
    assert keys(store) == ["manager", "own"]
    assert said == [3], "the record too"
    assert replay.execute_in_transaction(KEY, PARAMS, handler).replayed
    assert said == [3]


def test_an_action_that_raises_after_a_request_loses_no_answer(
    store: TurnStore, replay: Replay
) -> None:
    def handler(txn: Any) -> str:
        store.after_commit(lambda: 1 / 0)
        return "lnbc1"

    with pytest.raises(ZeroDivisionError):
        replay.execute_in_transaction(KEY, PARAMS, handler)
    outcome = replay.execute_in_transaction(KEY, PARAMS, _never)
    assert (outcome.response, outcome.replayed) == ("lnbc1", True)


def test_a_claimed_request_may_take_turns(store: TurnStore, replay: Replay) -> None:
    def handler() -> str:
        with store.turn():
            write(store, "effect")
        return "answer"

    assert replay.execute(KEY, PARAMS, handler).response == "answer"
    assert keys(store) == ["effect"]


def test_a_claim_is_refused_inside_a_turn(store: TurnStore, replay: Replay) -> None:
    with store.turn():
        with pytest.raises(StoreError, match="execute_in_transaction"):
            replay.execute(KEY, PARAMS, _never)
        write(store, "kept")
    assert content(store) == {("p", "s", "kept"): b"v"}
    assert replay.execute(KEY, PARAMS, lambda: "answer").response == "answer"
    with store.turn():
        assert replay.execute(KEY, PARAMS, _never).replayed


async def _ask(areplay: AsyncReplay, store: TurnStore) -> None:
    def handler(txn: Any) -> str:
        write(store, "manager")
        return "lnbc1"

    outcome = await areplay.execute_in_transaction(KEY, PARAMS, handler)
    assert not outcome.replayed
    outcome = await areplay.execute(KEY, PARAMS, _never)
    assert outcome.replayed
    outcome = await areplay.execute(("other", "key"), PARAMS, lambda: "answer")
    assert not outcome.replayed


def test_an_event_loop_is_outside(store: TurnStore) -> None:
    asyncio.run(_ask(AsyncReplay(store, "events", ttl=60), store))
    assert keys(store) == ["manager"]


# Beside other threads.


class Events:
    """What a replay emits; one can wait for the first of a kind."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self._waited = threading.Event()

    def __call__(self, event: Any) -> None:
        self.kinds.append(event.kind)
        if event.kind == "waited":
            self._waited.set()

    def wait_for_a_follower(self) -> None:
        assert self._waited.wait(PATIENCE)


def test_an_answer_that_is_not_committed_is_shared_with_nobody(store: TurnStore) -> None:
    """Another thread asks while the handler runs inside a turn, which is then undone."""
    told = Events()
    replay = Replay(store, "events", ttl=60, wait_timeout=PATIENCE, on_event=told)
    asked: list[Running[Any]] = []

    def handler(txn: Any) -> str:
        ask = partial(replay.execute_in_transaction, KEY, PARAMS, lambda txn: "theirs")
        asked.append(Running(ask))
        told.wait_for_a_follower()
        return "never committed"

    with pytest.raises(ZeroDivisionError), store.turn():
        assert replay.execute_in_transaction(KEY, PARAMS, handler).response == "never committed"
        assert not asked[0].over
        raise ZeroDivisionError
    assert asked[0].result().response == "theirs"
    assert not asked[0].result().replayed


def test_an_answer_that_is_committed_is_everybodys(store: TurnStore) -> None:
    told = Events()
    replay = Replay(store, "events", ttl=60, wait_timeout=PATIENCE, on_event=told)
    asked: list[Running[Any]] = []

    def handler(txn: Any) -> str:
        ask = partial(replay.execute_in_transaction, KEY, PARAMS, lambda txn: "theirs")
        asked.append(Running(ask))
        told.wait_for_a_follower()
        return "ours"

    with store.turn():
        replay.execute_in_transaction(KEY, PARAMS, handler)
    assert asked[0].result().response == "ours"
    assert asked[0].result().replayed


def _theirs(txn: Any) -> str:
    return "theirs"


@pytest.mark.parametrize("lease", [30, None])
@pytest.mark.parametrize("method", ["execute_in_transaction", "lookup"])
def test_a_turn_waits_for_no_other_run(store: TurnStore, lease: float | None, method: str) -> None:
    """It holds the write lock, without which that run cannot end."""
    told = Events()
    replay = Replay(store, "events", ttl=60, wait_timeout=PATIENCE, lease=lease, on_event=told)
    runs, goes_on = threading.Event(), threading.Event()

    def handler() -> str:
        runs.set()
        assert goes_on.wait(PATIENCE)
        return "theirs"

    theirs = Running(partial(replay.execute, KEY, PARAMS, handler))
    assert runs.wait(PATIENCE)
    arguments = (KEY, PARAMS, _never)[: 2 if method == "lookup" else 3]
    with store.turn():
        with pytest.raises(InFlightError):
            getattr(replay, method)(*arguments)
        with pytest.raises(ParamsMismatchError):
            getattr(replay, method)(KEY, {"other": 1}, *arguments[2:])
        write(store, "kept")
    assert "waited" not in told.kinds
    goes_on.set()
    assert theirs.result().response == "theirs"
    with store.turn():
        assert getattr(replay, method)(*arguments).response == "theirs"
    assert keys(store) == ["kept"]


@pytest.mark.parametrize("params", [PARAMS, {"other": 1}])
def test_a_turn_goes_before_a_request_that_waits_for_it(store: TurnStore, params: object) -> None:
    told = Events()
    replay = Replay(store, "events", ttl=60, wait_timeout=PATIENCE, on_event=told)
    with store.turn():
        theirs = Running(partial(replay.execute_in_transaction, KEY, params, _theirs))
        until(lambda: len(flights))
        assert replay.execute_in_transaction(KEY, PARAMS, lambda txn: "ours").response == "ours"
        assert replay.execute_in_transaction(KEY, PARAMS, _never).replayed
    if params is PARAMS:
        assert theirs.result().response == "ours"
    else:
        with pytest.raises(ParamsMismatchError):
            theirs.result()
    assert "waited" not in told.kinds


def test_a_handler_that_asks_for_its_own_key_is_refused(store: TurnStore, replay: Replay) -> None:
    def handler(txn: Any) -> str:
        with pytest.raises(InFlightError):
            replay.execute_in_transaction(KEY, PARAMS, _never)
        assert replay.execute_in_transaction(("other", "key"), PARAMS, _theirs).response == "theirs"
        return "ours"

    with store.turn():
        assert replay.execute_in_transaction(KEY, PARAMS, handler).response == "ours"
