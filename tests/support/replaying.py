"""One face for ``Replay`` and ``AsyncReplay``, so that each rule is written once for both."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kvreplay import AsyncReplay, Change, Outcome, Replay, ReplayRecord, SweepResult
from support.awaited_stores import WithTwin
from support.waiting import PATIENCE

START = 1_700_000_000_000


class FakeClock:
    """A clock that goes where a test puts it."""

    def __init__(self) -> None:
        self.now = START

    def now_ms(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += round(seconds * 1000)


class Sync:
    """``Replay`` as it is."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.replay = Replay(*args, **settings)
        self.lookup = self.replay.lookup
        self.resolve = self.replay.resolve
        self.release = self.replay.release
        self.record = self.replay.record
        self.is_in_doubt = self.replay.is_in_doubt
        self.forget = self.replay.forget
        self.sweep = self.replay.sweep
        self.close = self.replay.close
        self.execute_in_transaction = self.replay.execute_in_transaction

    def execute(self, *args: Any, **options: Any) -> Outcome:
        return self.replay.execute(*args, **options)

    def records(self, **options: Any) -> list[ReplayRecord]:
        return list(self.replay.records(**options))

    def decorated(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return self.replay.idempotent(**options)(function)


class Async:
    """``AsyncReplay``, each call in an event loop of its own on the calling thread."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        reconcile = settings.get("on_in_doubt")
        if callable(reconcile):
            settings["on_in_doubt"] = awaited(reconcile)
        self.replay = AsyncReplay(*args, **settings)

    def execute(self, key: Any, params: Any, handler: Any, **options: Any) -> Outcome:
        return asyncio.run(self.replay.execute(key, params, awaited(handler), **options))

    def execute_in_transaction(self, *args: Any, **options: Any) -> Outcome:
        return asyncio.run(self.replay.execute_in_transaction(*args, **options))

    def lookup(self, *args: Any, **options: Any) -> Outcome | None:
        return asyncio.run(self.replay.lookup(*args, **options))

    def resolve(self, *args: Any, **options: Any) -> bool:
        return asyncio.run(self.replay.resolve(*args, **options))

    def release(self, *args: Any, **options: Any) -> bool:
        return asyncio.run(self.replay.release(*args, **options))

    def record(self, *args: Any, **options: Any) -> ReplayRecord | None:
        return asyncio.run(self.replay.record(*args, **options))

    def is_in_doubt(self, record: Any) -> bool:
        return asyncio.run(self.replay.is_in_doubt(record))

    def forget(self, *args: Any, **options: Any) -> bool:
        return asyncio.run(self.replay.forget(*args, **options))

    def sweep(self, limit: int = 1000) -> SweepResult:
        return asyncio.run(self.replay.sweep(limit))

    def close(self, *args: Any, **options: Any) -> int:
        return asyncio.run(self.replay.close(*args, **options))

    def records(self, **options: Any) -> list[ReplayRecord]:
        async def collect() -> list[ReplayRecord]:
            return [record async for record in self.replay.records(**options)]

        return asyncio.run(collect())

    def decorated(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        decorated = self.replay.idempotent(**options)(awaited(function))
        return lambda *args, **kwargs: asyncio.run(decorated(*args, **kwargs))


class AsyncOnTwin(Async):
    """``AsyncReplay`` on a store that offers its awaited twin."""

    def __init__(self, store: Any, *args: Any, **settings: Any) -> None:
        own = hasattr(store, "awaited")
        super().__init__(store if own else WithTwin(store), *args, **settings)


def awaited(function: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function that does the same, on a thread if it may block."""

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if getattr(function, "blocks", False):
            return await asyncio.to_thread(function, *args, **kwargs)
        return function(*args, **kwargs)

    if inspect.isfunction(function):
        functools.update_wrapper(wrapper, function)  # with what it says that it returns
    wrapper.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return wrapper


class Handler:
    """Counts its runs; can be held at its start until it is let go."""

    def __init__(self, *responses: Any, held: bool = False) -> None:
        self.runs = 0
        self.blocks = held
        self.started = threading.Event()
        self._go = threading.Event()
        self._responses = responses
        if not held:
            self._go.set()

    def __call__(self) -> Any:
        self.runs += 1
        self.started.set()
        assert self._go.wait(PATIENCE)
        response = self._responses[min(self.runs, len(self._responses)) - 1]
        if isinstance(response, BaseException):
            raise response
        return response

    def let_go(self) -> None:
        self._go.set()


class Caller(threading.Thread):
    """One call on a thread of its own; ``result()`` is its outcome or raises its error."""

    def __init__(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        super().__init__(daemon=True)
        self._call = lambda: call(*args, **options)
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def end(self) -> None:
        """Wait for the end of the call, whatever it is."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the call never came back"

    def result(self) -> Any:
        self.end()
        if self._error is not None:
            raise self._error
        return self._value


class OneByOne:
    """For a store's proxy: its own ``check_and_put`` sees each change, however it comes."""

    check_and_put: Callable[..., Any]
    check_and_put_at_once = None

    def check_and_put_each(self, changes: Sequence[Change]) -> list[Any]:
        outcomes: list[Any] = []
        for each in changes:
            try:
                found = self.check_and_put(
                    each.primary_namespace,
                    each.secondary_namespace,
                    each.key,
                    expected=each.expected,
                    value=each.value,
                    expires_at=each.expires_at,
                )
            except Exception as error:
                outcomes.append(error)
            else:
                outcomes.append(found)
        return outcomes


class Interrupt(BaseException):
    """Not an ``Exception``, and not one that event loops treat apart."""


def never() -> Any:
    """A handler that must not run."""
    raise AssertionError("the handler ran a second time")


class Held:
    """A coroutine handler that waits until it is let go."""

    def __init__(self, response: Any = "r") -> None:
        self.runs = 0
        self.cancelled = False
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self._response = response

    async def __call__(self) -> Any:
        self.runs += 1
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self._response


def replay_on(store: Any, **settings: Any) -> AsyncReplay:
    return AsyncReplay(store, "ns", **{"ttl": 60, "wait_timeout": 30, **settings})
