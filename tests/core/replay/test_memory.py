"""What a request leaves in memory: nothing that only a garbage collection would free."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    IndeterminateError,
    InvalidParamsError,
    ParamsMismatchError,
    Replay,
)
from kvreplay._protocol.keys import _remembered_name
from kvreplay._runtime.singleflight import flights
from kvreplay.backends.memory import MemoryStore
from support.replaying import Caller
from support.requesting import KEY, PARAMS
from support.waiting import until


class Payload:
    """What a handler holds when it fails."""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


ERRORS = [ValueError, TimeoutError, IndeterminateError, StopIteration, KeyboardInterrupt]
SETTINGS: list[dict[str, Any]] = [{}, {"lease": None}, {"renew": True}]


def failing(error: type[BaseException], payloads: list[Any]) -> Callable[..., Any]:
    def handler(*transaction: Any) -> Any:
        payload = Payload()
        payloads.append(weakref.ref(payload))
        raise error("no")

    return handler


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_failed_handler_is_freed_at_once(error: type[BaseException], settings: Any) -> None:
    payloads: list[Any] = []
    replay = Replay(MemoryStore(), "pay", ttl=60, **settings)
    handler = failing(error, payloads)
    for execute in (replay.execute, replay.execute_in_transaction):
        for number in range(2):
            try:
                execute(("s", f"{execute.__name__}-{number}"), PARAMS, handler)
            except BaseException as raised:
                assert payloads[-1]() is not None, "the traceback holds it"
                assert type(raised) is error or isinstance(raised, Exception)
    assert len(payloads) == 4
    assert [each() for each in payloads] == [None] * 4


@pytest.mark.parametrize("error", ERRORS[:4])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_failed_coroutine_is_freed_at_once(error: type[BaseException], settings: Any) -> None:
    payloads: list[Any] = []
    handler = failing(error, payloads)

    async def awaited() -> Any:
        return handler()

    async def calls() -> None:
        replay = AsyncReplay(MemoryStore(), "pay", ttl=60, **settings)
        for number, each in enumerate((handler, awaited)):
            try:
                await replay.execute(("s", str(number)), PARAMS, each)
            except Exception:
                assert payloads[-1]() is not None, "the traceback holds it"
        try:
            await replay.execute_in_transaction(("s", "3"), PARAMS, handler)
        except Exception:
            assert len(payloads) == 3
        # After the futures' callbacks, and once the executor's thread has another call to hold.
        await asyncio.to_thread(until, lambda: [each() for each in payloads] == [None] * 3)

    asyncio.run(calls())


def test_a_failed_run_that_was_shared_is_freed_too() -> None:
    payloads: list[Any] = []
    replay = Replay(MemoryStore(), "pay", ttl=60)
    started, go = threading.Event(), threading.Event()
    fails = failing(ValueError, payloads)

    def handler() -> Any:
        started.set()
        assert go.wait(30)
        return fails()

    def call() -> bool:
        try:
            replay.execute(KEY, PARAMS, handler)
        except ValueError:
            return True
        return False

    leader = Caller(call)
    assert started.wait(30)
    follower = Caller(call)
    until(lambda: [flight.wakers for flight in flights.table.values()] not in ([], [{}]))
    go.set()
    assert leader.result()
    assert follower.result()
    assert len(payloads) == 1
    assert payloads[0]() is None


def test_an_answer_leaves_no_garbage() -> None:
    async def calls() -> None:
        replay = AsyncReplay(MemoryStore(), "pay", ttl=60)
        for number in range(20):
            await replay.execute(("s", str(number)), PARAMS, lambda: "r")

    asyncio.run(calls())
    replay = Replay(MemoryStore(), "pay", ttl=60)
    gc.collect()
    for number in range(20):
        replay.execute(("s", str(number)), PARAMS, lambda: "r")
    assert gc.collect() == 0


HOSTILE: dict[str, Callable[[int], tuple[tuple[str, str], Any]]] = {
    "many keys": lambda n: (("s", "k"), {f"{n}-{each}": object() for each in range(10_000)}),
    "many keys inside": lambda n: (("s", "k"), [{f"{n}-{i}": 1 for i in range(9_999)}, object()]),
    "a long key": lambda n: (("s", "k"), {f"{n}" * 1_000_000: object()}),
    "a long key of bytes": lambda n: (("s", "k"), {b"%d" % n * 1_000_000: object()}),
    "a long key that is not ASCII": lambda n: (("s", "k"), {f"é{n}" * 500_000: object()}),
    "a large key of another type": lambda n: (("s", "k"), {(n, "x" * 1_000_000): 1}),
    "a long scope": lambda n: ((f"{n}" * 1_000_000, "k"), object()),
    "a long id": lambda n: (("s", f"{n}" * 1_000_000), object()),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
def test_refused_requests_leave_nothing(hostile: Callable[[int], Any]) -> None:
    replay = Replay(MemoryStore(), "pay", ttl=60)

    def refused(number: int) -> None:
        key, params = hostile(number)
        with pytest.raises(InvalidParamsError):
            replay.execute(key, params, lambda: "never")
        with pytest.raises(InvalidParamsError):
            replay.lookup(key, params)

    refused(9)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(8):
            refused(number)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 200_000


@pytest.mark.parametrize("scope", ["s" * 257, "s" * 1_000_000])
def test_a_long_scope_is_answered_and_not_kept(scope: str) -> None:
    replay = Replay(MemoryStore(), "pay", ttl=60)
    before = _remembered_name.cache_info().currsize
    assert not replay.execute((scope, "k"), PARAMS, lambda: "r").replayed
    assert replay.execute((scope, "k"), PARAMS, lambda: "never").replayed
    assert replay.lookup((scope, "k"), PARAMS) is not None
    assert _remembered_name.cache_info().currsize == before


def test_keys_of_any_number_and_length_are_compared() -> None:
    replay = Replay(MemoryStore(), "pay", ttl=60, max_record_bytes=2**24)
    for number, count in enumerate((1, 31, 32, 33, 1000)):
        for length in (1, 40, 2000):
            params = {f"{each:04}" * length: each for each in range(count)}
            backwards = dict(reversed(params.items()))
            key = ("s", f"{number}-{length}")
            assert not replay.execute(key, params, lambda: "r").replayed
            assert replay.execute(key, backwards, lambda: "never").replayed
            with pytest.raises(ParamsMismatchError):
                replay.execute(key, {**params, "more": 1}, lambda: "never")
