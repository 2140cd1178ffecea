"""A handler's exception reaches its own caller as it is, and each follower as a copy of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import traceback
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from kvreplay import AsyncReplay, Replay, ReplayError, StoreFullError
from kvreplay._runtime.singleflight import flights
from kvreplay.backends.memory import MemoryStore
from support.replaying import Async, Caller, OneByOne, Sync
from support.requesting import KEY, NAMESPACE, PARAMS
from support.waiting import until


@attrs.frozen
class Frozen(Exception):
    code: int


@attrs.frozen(kw_only=True)
class FrozenKeyword(Exception):
    code: int
    reason: str = "none"


@dataclasses.dataclass(frozen=True)
class FrozenDataclass(Exception):
    code: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SlottedDataclass(Exception):
    code: int


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class NewKeywordOnly(OSError):
    def __new__(cls, *args: Any, code: int) -> NewKeywordOnly:
        return super().__new__(cls, *args)

    def __init__(self, *args: Any, code: int) -> None:
        super().__init__(5, "no disk", "/path")
        self.code = code


class Decorates(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(f"<{text}>")


class Private(Exception):
    __slots__ = ("__code", "unset")

    def __init__(self, code: int) -> None:
        self.__code = code

    def __str__(self) -> str:
        return f"code {self.__code}"


ERRORS: list[Callable[[], Exception]] = [
    lambda: StopIteration("end"),
    lambda: StopAsyncIteration("end"),
    lambda: Frozen(7),
    lambda: FrozenKeyword(code=7, reason="why"),
    lambda: FrozenDataclass(7),
    lambda: FrozenDataclass(code=7),
    lambda: SlottedDataclass(code=7),
    lambda: KeywordOnly(code=7),
    lambda: NewKeywordOnly(code=7),
    lambda: Decorates("text"),
    lambda: Private(7),
    lambda: ImportError("no", name="module", path="/path"),
    lambda: ExceptionGroup("group", [ValueError(1), ExceptionGroup("inner", [FrozenDataclass(7)])]),
]
each_error = pytest.mark.parametrize("make_error", ERRORS, ids=lambda make: repr(make()))


def together(replay: Any, error: Exception, followers: int = 1) -> list[BaseException]:
    """Let one caller lead a run that raises this, and others follow; return what each is told."""
    started, go = threading.Event(), threading.Event()

    def handler() -> Any:
        started.set()
        assert go.wait(30)
        raise error

    handler.blocks = True  # type: ignore[attr-defined]
    told: list[BaseException] = []

    def call() -> None:
        try:
            replay.execute(KEY, PARAMS, handler)
        except BaseException as raised:
            told.append(raised)

    leader = Caller(call)
    assert started.wait(30)
    (flight,) = flights.table.values()
    others = [Caller(call) for _ in range(followers)]
    until(lambda: len(flight.wakers) == followers)
    go.set()
    for each in (leader, *others):
        each.end()
    assert len(told) == followers + 1
    return sorted(told, key=lambda each: each is not error)


@each_error
@pytest.mark.parametrize("lease", [30, None])
def test_a_handlers_exception_is_its_callers(
    make_error: Callable[[], Exception], lease: int | None
) -> None:
    error = make_error()
    first, second = together(Replay(MemoryStore(), NAMESPACE, ttl=60, lease=lease), error)
    assert first is error
    assert second is not error
    assert type(second) is type(error)
    assert (repr(second), str(second)) == (repr(error), str(error))
    assert "handler" in "".join(traceback.format_exception(second)), "where it was raised"


@each_error
def test_and_in_a_transaction(make_error: Callable[[], Exception]) -> None:
    store = MemoryStore()

    def handler(transaction: Any) -> Any:
        transaction.write("ledger", "", "key", b"undone")
        raise error

    error = make_error()
    with pytest.raises(type(error)) as raised:
        Replay(store, NAMESPACE, ttl=60).execute_in_transaction(KEY, PARAMS, handler)
    assert raised.value is error
    assert error.__cause__ is error.__context__ is None
    assert store.list("ledger", "") == []


@each_error
def test_and_on_an_event_loop(make_error: Callable[[], Exception]) -> None:
    def plain(*transaction: Any) -> Any:
        raise error

    async def awaited() -> Any:
        raise error

    replay = AsyncReplay(MemoryStore(), NAMESPACE, ttl=60)
    for execute, handler in (
        (replay.execute, awaited),
        (replay.execute, plain),
        (replay.execute_in_transaction, plain),
    ):
        error = make_error()
        ends = isinstance(error, StopIteration)  # which no coroutine can raise
        with pytest.raises(RuntimeError if ends else type(error)) as raised:
            asyncio.run(execute(KEY, PARAMS, handler))
        assert (raised.value.__cause__ if ends else raised.value) is error


def test_a_handlers_own_runtime_error_stays_one() -> None:
    error = RuntimeError("of a generator in the handler")
    error.__cause__ = StopIteration()
    first, second = together(Replay(MemoryStore(), NAMESPACE, ttl=60), error)
    assert first is error
    assert type(second) is RuntimeError


class KeepsClaims(OneByOne):
    """A store that has no room to release a claim."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def check_and_put(self, *args: Any, **options: Any) -> Any:
        if options["value"] is None:
            raise StoreFullError("no room")
        return self._store.check_and_put(*args, **options)


def test_what_cannot_take_a_note_is_told_as_it_is(
    face: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (FrozenDataclass(7), ValueError("no")):

        def handler(error: Exception = error) -> Any:
            raise error

        with pytest.raises(type(error)) as raised:
            face(KeepsClaims(), NAMESPACE, ttl=60).execute(KEY, PARAMS, handler)
        assert raised.value is error
    assert "could not release the claim" in error.__notes__[0]
    withdrawal, *doubts = [record.getMessage() for record in caplog.records]
    assert "could not release its claim" in withdrawal
    assert [text.count("has left its key in doubt") for text in doubts] == [1, 1]


@pytest.mark.parametrize("face", [Sync, Async])
def test_a_callers_note_is_nobody_elses(face: Any) -> None:
    error = ValueError("no route")
    error.add_note("of the handler")
    replay = face(MemoryStore(), NAMESPACE, ttl=60)
    told = together(replay, error, followers=2)
    assert told[0] is error
    for number, each in enumerate(told):
        each.add_note(f"tenant {number}")
    for number, each in enumerate(told):
        text = "".join(traceback.format_exception(each))
        assert text.count("of the handler") >= 1
        assert [n for n in range(3) if f"tenant {n}" in text] == [number]


def test_notes_inside_a_group_are_nobody_elses() -> None:
    error = ExceptionGroup("group", [ValueError("inner")])
    one, two = together(Replay(MemoryStore(), NAMESPACE, ttl=60), error)
    assert isinstance(two, ExceptionGroup)
    error.exceptions[0].add_note("tenant 0")
    assert "tenant 0" in "".join(traceback.format_exception(one))
    assert "tenant 0" not in "".join(traceback.format_exception(two))


class Uncopyable(Exception):
    """Its attributes cannot be read."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise RuntimeError("not yours")
        return super().__getattribute__(name)


def test_where_no_copy_can_be_made_a_follower_is_told_so() -> None:
    error = Uncopyable("no")
    one, two = together(Replay(MemoryStore(), NAMESPACE, ttl=60), error)
    assert one is error
    assert type(two) is ReplayError
    assert "raised a Uncopyable, of which no copy can be made" in str(two)
    assert two.__cause__ is not None
    assert two.__cause__.__cause__ is error
