"""``close()``: no handler begins any more, those that run are waited for, answers are replayed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from kvreplay import (
    NOT_APPLIED,
    ConfigError,
    ExpiredError,
    InDoubtError,
    ParamsMismatchError,
    Replay,
    ReplayClosedError,
    ReplayKey,
)
from kvreplay._runtime.running import Running
from kvreplay._runtime.singleflight import flights
from kvreplay.backends.memory import MemoryStore
from support.final_failures import Declined
from support.replaying import Caller, FakeClock, Handler, Held, never, replay_on
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon, entry
from support.waiting import PATIENCE, until

NEXT = ("s", "next")


def is_closing(replay: Any) -> bool:
    """Whether a call of close() waits."""
    return bool(replay.replay._settings.running._bells)


@pytest.mark.parametrize("settings", [{}, {"lease": None}, {"on_in_doubt": "rerun"}])
def test_no_handler_begins_any_more(
    make: Callable[..., Any], store: Any, settings: Any, events: list[str]
) -> None:
    replay = make(**settings)
    replay.execute(KEY, PARAMS, Handler("r"))
    if "on_in_doubt" in settings:
        abandon(replay, NEXT)
    before = entry(store, NEXT)
    assert replay.close() == 0
    events.clear()
    with pytest.raises(ReplayClosedError, match="nothing ran"):
        replay.execute(NEXT, PARAMS, never)
    assert entry(store, NEXT) == before
    assert events == ["released"]
    assert replay.lookup(KEY, PARAMS).response == "r"
    assert make(**settings).execute(NEXT, PARAMS, Handler("elsewhere")).response == "elsewhere"
    assert replay.execute(NEXT, PARAMS, never).response == "elsewhere"


def test_whatever_is_stored_is_still_answered(
    make_on: Callable[..., Any], store: Any, clock: FakeClock
) -> None:
    class Distant:
        """A store whose reads a loop leaves to a thread."""

        reads_are_local = False

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

    for own in (store, Distant()):
        replay = make_on(own, store_errors=(Declined,), params_key=b"k" * 16)
        tuples = {"a": (1, [2.5, None, True]), "b": b"x" * 300}
        with contextlib.suppress(Declined):
            replay.execute(("s", "declined"), PARAMS, Handler(Declined("funds")))
        replay.execute(("s", "answered"), tuples, Handler("r"), ttl=1000)
        replay.execute(KEY, PARAMS, Handler("old"), ttl=0)
        abandon(make_on(own, params_key=b"k" * 16), ("s", "doubt"))
        replay.close()
        with pytest.raises(Declined, match="funds"):
            replay.execute(("s", "declined"), PARAMS, never)
        assert replay.execute(("s", "answered"), tuples, never).response == "r"
        with pytest.raises(ParamsMismatchError):
            replay.execute(("s", "answered"), OTHER, never)
        with pytest.raises(ExpiredError):
            replay.execute(KEY, PARAMS, never)
        with pytest.raises(InDoubtError):
            replay.execute(("s", "doubt"), PARAMS, never)
        assert replay.resolve(("s", "doubt"), response="found")
        assert replay.execute(("s", "doubt"), PARAMS, never).response == "found"
        assert replay.forget(("s", "doubt"))
        assert replay.forget(("s", "declined"))


def test_it_waits_for_the_handlers_that_run(replay: Any, store: Any) -> None:
    handlers = [Handler(number, held=True) for number in range(3)]
    callers = [
        Caller(replay.execute, ("s", str(number)), PARAMS, handler)
        for number, handler in enumerate(handlers)
    ]
    for handler in handlers:
        assert handler.started.wait(PATIENCE)
    closing = Caller(replay.close)
    until(lambda: is_closing(replay))
    with pytest.raises(ReplayClosedError):
        replay.execute(NEXT, PARAMS, never)
    for handler, caller in zip(handlers[:2], callers[:2], strict=True):
        handler.let_go()
        caller.result()
        assert closing.is_alive()
    follower = Caller(replay.execute, ("s", "2"), PARAMS, never)
    (flight,) = flights.table.values()
    until(lambda: flight.wakers)
    handlers[2].let_go()
    assert closing.result() == 0
    assert [caller.result().response for caller in callers] == [0, 1, 2]
    assert follower.result().replayed
    assert all(entry(store, ("s", str(number))) for number in range(3))


@pytest.mark.parametrize("timeout", [0, "0s", timedelta(0), "1ms", 0.001])
def test_what_is_left_is_counted_and_logged_by_its_digest(
    replay: Any, timeout: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler("r", held=True)
    caller = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(PATIENCE)
    assert replay.close(timeout) == 1
    assert replay.close(timeout=timeout) == 1
    (first, _) = caplog.messages
    assert ReplayKey(*KEY).digest() in first
    assert KEY[0] not in first
    assert KEY[1] not in first
    handler.let_go()
    assert caller.result().response == "r"  # it was not disturbed
    assert replay.close() == 0
    assert replay.execute(KEY, PARAMS, never).response == "r"


@pytest.mark.parametrize("timeout", [-1, "soon", True, b"1s"])
def test_a_wrong_timeout_closes_nothing(replay: Any, timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        replay.close(timeout)
    assert replay.execute(KEY, PARAMS, Handler("r")).response == "r"


def test_a_handler_that_fails_is_over_too(replay: Any) -> None:
    for error in (ValueError(), TimeoutError(), KeyboardInterrupt()):
        with contextlib.suppress(ValueError, InDoubtError, KeyboardInterrupt):
            replay.execute(("s", type(error).__name__), PARAMS, Handler(error))
    assert replay.close(0) == 0


def test_another_replay_on_the_store_stays_open(make: Callable[..., Any]) -> None:
    one, other = make(), make()
    handler = Handler("r", held=True)
    caller = Caller(other.execute, KEY, PARAMS, handler)
    assert handler.started.wait(PATIENCE)
    assert one.close() == 0
    handler.let_go()
    assert caller.result().response == "r"
    assert other.execute(NEXT, PARAMS, Handler("r")).response == "r"


def test_who_followed_a_leader_that_was_closed_runs_by_itself(make: Callable[..., Any]) -> None:
    asked, go = threading.Event(), threading.Event()

    def reconcile(record: Any) -> Any:
        asked.set()
        assert go.wait(PATIENCE)
        return NOT_APPLIED

    reconcile.blocks = True  # type: ignore[attr-defined]
    closed, is_open = make(on_in_doubt=reconcile), make(on_in_doubt=lambda record: NOT_APPLIED)
    abandon(is_open)
    closed.close()
    leader = Caller(closed.execute, KEY, PARAMS, never)
    assert asked.wait(PATIENCE)
    follower = Caller(is_open.execute, KEY, PARAMS, Handler("r"))
    (flight,) = flights.table.values()
    until(lambda: flight.wakers)
    go.set()
    with pytest.raises(ReplayClosedError):
        leader.result()
    assert follower.result().response == "r"


def test_a_transaction_is_waited_for_until_it_has_committed(
    make_on: Callable[..., Any], transactional: Any
) -> None:
    committing, go = threading.Event(), threading.Event()

    class SlowToCommit:
        def __getattr__(self, name: str) -> Any:
            return getattr(transactional, name)

        @contextlib.contextmanager
        def transaction(self) -> Iterator[Any]:
            with transactional.transaction() as transaction:
                yield transaction
                committing.set()
                assert go.wait(PATIENCE)

    replay = make_on(SlowToCommit())
    caller = Caller(replay.execute_in_transaction, KEY, PARAMS, lambda transaction: "r")
    assert committing.wait(PATIENCE)
    assert replay.close(0) == 1
    closing = Caller(replay.close)
    until(lambda: is_closing(replay))
    go.set()
    assert closing.result() == 0
    assert entry(transactional) is not None
    assert caller.result().response == "r"

    def write(transaction: Any) -> None:
        raise AssertionError("it began after close()")

    with pytest.raises(ReplayClosedError):
        replay.execute_in_transaction(NEXT, PARAMS, write)
    assert entry(transactional, NEXT) is None


@pytest.mark.parametrize("by_signal", [False, True], ids=["its own", "a signal handler's"])
def test_a_handler_is_not_waited_for_on_its_own_thread(
    store: Any, by_signal: bool, caplog: pytest.LogCaptureFixture
) -> None:
    replay = Replay(store, NAMESPACE, ttl=60)
    other = Handler("other", held=True)
    caller = Caller(replay.execute, NEXT, PARAMS, other)
    assert other.started.wait(PATIENCE)
    left: list[int] = []

    def let_go() -> None:
        until(lambda: replay._settings.running._bells)
        other.let_go()

    def close(*_: object) -> None:
        left.append(replay.close(10))

    def handler() -> str:
        if by_signal:
            before = signal.signal(signal.SIGUSR1, close)
            signal.raise_signal(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, before)
        else:
            close()
        return "r"

    helper, began = Caller(let_go), time.monotonic()
    assert replay.execute(KEY, PARAMS, handler).response == "r"
    assert time.monotonic() - began < 10
    helper.result()
    assert caller.result().response == "other"  # that one was waited for
    assert left == [1]
    assert ReplayKey(*KEY).digest() in caplog.text
    assert ReplayKey(*NEXT).digest() not in caplog.text


def test_a_forked_child_waits_for_none_of_its_parents_handlers(
    make: Callable[..., Any], fork: Any
) -> None:
    replay = make()
    handler = Handler("r", held=True)
    caller = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(PATIENCE)

    def in_child() -> None:
        assert replay.execute(("s", "child"), PARAMS, Handler("of the child")).replayed is False
        assert replay.close() == 0
        with pytest.raises(ReplayClosedError):
            replay.execute(NEXT, PARAMS, never)

    fork(in_child).join()
    assert replay.close(0) == 1
    handler.let_go()
    assert caller.result().response == "r"


def test_a_child_of_a_handler_does_not_end_its_parents_run(
    make: Callable[..., Any], fork: Any
) -> None:
    replay = make()

    def handler() -> Any:
        fork(lambda: replay.replay._settings.running.close("ns", 0, time.monotonic)).join()
        assert replay.replay._settings.running.close("ns", 0, time.monotonic) == 1
        return "r"

    assert replay.execute(KEY, PARAMS, handler).response == "r"


def test_all_loops_are_waited_for(store: Any) -> None:
    """And the loop that closes goes on meanwhile."""
    replay = replay_on(store)
    handlers = [Handler(number, held=True) for number in range(2)]

    def loop(number: int) -> Any:
        async def run() -> Any:
            async def handler() -> Any:
                return await asyncio.to_thread(handlers[number])

            return await replay.execute(("s", str(number)), PARAMS, handler)

        return asyncio.run(run())

    callers = [Caller(loop, number) for number in range(2)]
    for handler in handlers:
        assert handler.started.wait(PATIENCE)

    async def close() -> int:
        own = Held("own")
        task = asyncio.create_task(replay.execute(KEY, PARAMS, own))
        await own.started.wait()
        assert await replay.close(0) == 3
        closing = asyncio.create_task(replay.close())
        own.go.set()
        assert (await task).response == "own"
        assert not closing.done()
        handlers[0].let_go()
        handlers[1].let_go()
        return await closing

    assert asyncio.run(close()) == 0
    assert [caller.result().response for caller in callers] == [0, 1]


def test_a_cancelled_loop_leaves_nothing_to_wait_for(store: Any) -> None:
    replay = replay_on(store)

    async def leave() -> None:
        own = Held()
        task = asyncio.create_task(replay.execute(KEY, PARAMS, own))
        await own.started.wait()
        task.cancel()
        assert await replay.close(0) == 1  # the caller is gone, its handler is not

    asyncio.run(leave())
    assert asyncio.run(replay.close()) == 0


def test_a_handler_that_begins_just_then_is_waited_for_or_refused() -> None:
    class ClosedJustThen(Running):
        left = None

        def check_open(self) -> None:
            if self.left is None:
                self.left = self.close(NAMESPACE, 0, time.monotonic)
            super().check_open()

    running = ClosedJustThen()
    with pytest.raises(ReplayClosedError):
        running.begin(object(), ReplayKey(*KEY))
    assert running.left == 1  # it was seen
    assert running.close(NAMESPACE, 0, time.monotonic) == 0


def test_closing_lets_no_handler_slip_through() -> None:
    for _ in range(20):
        replay, ran = replay_on(MemoryStore()), []
        barrier = threading.Barrier(5)

        def call(number: int, replay: Any = replay, ran: Any = ran, barrier: Any = barrier) -> None:
            async def handler() -> Any:
                ran.append(number)

            barrier.wait()
            with contextlib.suppress(ReplayClosedError):
                asyncio.run(replay.execute(("s", str(number)), PARAMS, handler))

        callers = [Caller(call, number) for number in range(4)]
        barrier.wait()
        assert asyncio.run(replay.close()) == 0
        after = list(ran)
        for caller in callers:
            caller.result()
        assert ran == after
