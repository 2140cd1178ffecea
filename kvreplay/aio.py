"""``AsyncReplay``: the same protocol, records and guarantees as ``Replay``, awaited.

It drives the same flows; ``_runtime/awaiting.py`` answers their steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, ParamSpec, TypeVar, overload

from kvreplay._protocol import flow
from kvreplay._protocol.codec import Codec
from kvreplay._protocol.record import ReplayRecord, State
from kvreplay._protocol.steps import Flow, NotStored, Request, Settled, Verdict
from kvreplay._runtime.aio_sweeping import AsyncSweeper
from kvreplay._runtime.any_replay import AnyReplay, Protocol
from kvreplay._runtime.awaiting import AsyncDriver
from kvreplay._runtime.decorating import Calling
from kvreplay._runtime.patience import FROM_SETTINGS, FromSettings, Patience
from kvreplay._runtime.requests import (
    Key,
    Outcome,
    check_handler,
    outcome_of,
    peek,
    replay_key,
    request_of,
)
from kvreplay._runtime.run import Run
from kvreplay._runtime.singleflight import Abandoned, Flight, flights
from kvreplay._runtime.walking import record, records
from kvreplay.clock import Duration, to_ms
from kvreplay.errors import InvalidParamsError, KVReplayError
from kvreplay.store import KVTransaction, SweepResult

__all__ = ["AsyncReplay"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_PLAIN_FUNCTION: Final = (
    "a transaction's handler is a plain function, which runs on a thread of its own while it holds"
    " the store's write lock; do what must be awaited before, or use execute"
)

_PAGE: Final = 100  # records that one call in a thread brings back


class AsyncReplay(AnyReplay[Verdict | Awaitable[Verdict]]):
    """:class:`~kvreplay.Replay` for event loops: the same arguments, names, answers and errors.

    Handlers and reconcilers may be coroutine functions, or plain ones, which run on the loop. The
    run of a key has a task of its own: cancelling a caller cancels neither the handler nor another
    caller. If the loop itself ends and cancels that task, the key is in doubt. With ``renew=True``
    a task beside each handler renews its lease.

    Single-flight is shared with every other ``Replay`` and ``AsyncReplay`` of the process on the
    same store. A *blocking* call on the loop's thread, for a key that this loop is running, would
    wait for ever: on a loop, use only this class.
    """

    def _set_up(self) -> None:
        super()._set_up()
        self._driver = AsyncDriver(self._settings)
        self._leaders: set[asyncio.Task[Settled]] = set()  # the loop keeps only weak references

    @overload
    async def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Awaitable[T | NotStored[T]]] | Callable[[], T | NotStored[T]],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[T],
    ) -> Outcome[T]: ...
    @overload
    async def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[Any],
    ) -> Outcome[object]: ...  # the handler returns something else
    @overload
    async def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]: ...
    async def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]:
        """Run ``handler()`` once for this key and params; see :meth:`kvreplay.Replay.execute`."""
        codec, limit = self._codec_of(returns), self._limit_of(wait_timeout)
        return await self._execute(key, params, ttl, limit, codec, flow.execute, handler)

    @overload
    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], T | NotStored[T]],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[T],
    ) -> Outcome[T]: ...
    @overload
    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[Any],
    ) -> Outcome[object]: ...  # the handler returns something else
    @overload
    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]: ...
    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]:
        """Commit a handler's writes and its answer together, on a thread of their own.

        ``handler`` is a plain function, since it holds the store's write lock. All else is as in
        :meth:`kvreplay.Replay.execute_in_transaction`.
        """
        self._settings.require_transactions("execute_in_transaction")
        codec, limit = self._codec_of(returns), self._limit_of(wait_timeout)
        return await self._execute(
            key, params, ttl, limit, codec, flow.execute_in_transaction, handler
        )

    @overload
    async def lookup(
        self, key: Key, params: object, *, operation: str | None = None, returns: type[T]
    ) -> Outcome[T] | None: ...
    @overload
    async def lookup(
        self, key: Key, params: object, *, operation: str | None = None, returns: object = None
    ) -> Outcome[Any] | None: ...
    async def lookup(
        self, key: Key, params: object, *, operation: str | None = None, returns: object = None
    ) -> Outcome[Any] | None:
        """Return the stored answer or ``None``; see :meth:`kvreplay.Replay.lookup`."""
        steps, run, request = self._looking_up(key, operation, params, returns)
        try:
            settled = await self._driver.drive(steps, run)
        except Exception as error:
            run.failed(error)
            raise
        return self._found(settled, run, request)

    async def record(self, key: Key, *, operation: str | None = None) -> ReplayRecord | None:
        """Return the key's record as it is stored; see :meth:`kvreplay.Replay.record`."""
        return await self._driver.look(record, self._settings, replay_key(key, operation))

    async def resolve(
        self,
        key: Key,
        *,
        response: object,
        ttl: Duration | None = None,
        operation: str | None = None,
        seen: ReplayRecord | None = None,
        returns: object = None,
    ) -> bool:
        """Record ``response`` for a key in doubt; see :meth:`kvreplay.Replay.resolve`."""
        return await self._driver.drive(
            *self._resolving(key, operation, response, ttl, seen, returns)
        )

    async def release(
        self, key: Key, *, operation: str | None = None, seen: ReplayRecord | None = None
    ) -> bool:
        """Free a key in doubt; see :meth:`kvreplay.Replay.release`."""
        return await self._driver.drive(*self._releasing(key, operation, seen))

    async def forget(
        self, key: Key, *, operation: str | None = None, seen: ReplayRecord | None = None
    ) -> bool:
        """Remove an answer before its time; see :meth:`kvreplay.Replay.forget`."""
        return await self._driver.drive(*self._forgetting(key, operation, seen))

    async def records(
        self, *, state: State | None = None, in_doubt: bool | None = None
    ) -> AsyncIterator[ReplayRecord]:
        """Yield the records of the namespace; see :meth:`kvreplay.Replay.records`."""
        walk = records(self._settings, state, in_doubt)
        while page := await self._driver.look(_page, walk):
            for each in page:
                if isinstance(each, Exception):
                    raise each
                yield each

    async def close(self, timeout: Duration | None = None) -> int:
        """Let no handler begin any more, and wait; see :meth:`kvreplay.Replay.close`.

        It waits for the handlers of all event loops that this object was used on.
        """
        limit = None if timeout is None else to_ms(timeout, "timeout")
        settings = self._settings
        return await self._driver.wait(
            settings.running.close, settings.name, limit, settings.monotonic
        )

    async def sweep(self, limit: int = 1000) -> SweepResult:
        """Remove at most ``limit`` records that nobody needs; see :meth:`kvreplay.Replay.sweep`."""
        began = self._settings.observer.began()
        return self._emit_swept(await self._driver.change(self._walk.sweep, limit), began)

    def sweeping(
        self, every: Duration = 60.0, limit: int = 1000
    ) -> AbstractAsyncContextManager[AsyncSweeper]:
        """Sweep from a task during an ``async with``; see :meth:`kvreplay.Replay.sweeping`."""
        return AsyncSweeper(self.sweep, to_ms(every, "every"), limit)

    @overload
    def idempotent(
        self,
        *,
        key: Callable[..., Key],
        params: Callable[..., object] | None = None,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        operation: str | None = None,
        returns: object = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], Any] | None = None,
        outcome: Literal[False] = False,
    ) -> Callable[
        [Callable[P, Awaitable[R | NotStored[R]]]], Callable[P, Coroutine[Any, Any, R]]
    ]: ...
    @overload
    def idempotent(
        self,
        *,
        key: Callable[..., Key],
        params: Callable[..., object] | None = None,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        operation: str | None = None,
        returns: object = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], Any] | None = None,
        outcome: Literal[True],
    ) -> Callable[
        [Callable[P, Awaitable[R | NotStored[R]]]], Callable[P, Coroutine[Any, Any, Outcome[R]]]
    ]: ...
    def idempotent(
        self,
        *,
        key: Callable[..., Key],
        params: Callable[..., object] | None = None,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        operation: str | None = None,
        returns: object = None,
        encode: Callable[[Any], object] | None = None,
        decode: Callable[[Any], Any] | None = None,
        outcome: bool = False,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate a coroutine function; see :meth:`kvreplay.Replay.idempotent`."""
        return self._decorator(
            key=key,
            params=params,
            ttl=ttl,
            wait_timeout=wait_timeout,
            operation=operation,
            returns=returns,
            encode=encode,
            decode=decode,
            outcome=outcome,
        )

    def _replaying(self, function: Callable[..., Any], calling: Calling) -> Callable[..., Any]:
        async def replayed(*args: Any, **kwargs: Any) -> Any:
            called = calling.of(*args, **kwargs)
            limit = self._limit_of(calling.wait_timeout)
            try:
                outcome = await self._execute(
                    *(called.key, called.params, calling.ttl, limit, calling.codec),
                    *(flow.execute, called.handler),
                )
            except InvalidParamsError:
                calling.explain(called.params)
                raise
            return outcome if calling.outcome else outcome.response

        return replayed

    async def _execute(
        self,
        key: Key,
        params: object,
        ttl: Duration | None,
        limit: int | None,
        codec: Codec[Any] | None,
        protocol: Protocol,
        handler: Callable[..., Any],
    ) -> Outcome[Any]:
        if self._driver.reads_inline:
            seen = peek(self._settings, key, params, ttl, codec)
            if isinstance(seen, Outcome):
                return seen
            request = seen
        else:
            request = request_of(self._settings, key, params, ttl, codec)
        self._check_answer(handler, request)
        check_handler(handler, awaited=protocol is flow.execute, instead=_PLAIN_FUNCTION)
        patience = Patience(limit, self._settings.monotonic)
        while True:
            own = self._flight_of(request)
            task = None
            try:
                flight = flights.board(own)
                if flight is own:
                    task = self._lead(own, request, patience, protocol, handler)
            except BaseException:  # even an interrupt: nobody may wait for ever
                flights.land(own, Abandoned())
                raise
            if task is not None:
                del own, flight  # they hold an error of the task, whose traceback holds this frame
                try:
                    settled = await asyncio.shield(task)
                finally:
                    del task  # it does too
                return outcome_of(self._settings, settled, request, replayed=settled.replayed)
            try:
                outcome = await self._follow(flight, request, patience)
            except Exception as error:
                self._tell(error, request)
                raise
            if outcome is not None:
                return outcome
            request.absent_at = None  # it was seen before the other's run

    def _lead(
        self,
        flight: Flight[object],
        request: Request,
        patience: Patience,
        protocol: Protocol,
        handler: Callable[..., Any],
    ) -> asyncio.Task[Settled]:
        """Start the run in a task of its own, so that cancelling a caller does not cancel it."""
        run = Run(self._settings, request.key, flight, patience, began=request.began)
        loop = asyncio.get_running_loop()

        steps = protocol(request, self._settings.policy)
        task = loop.create_task(self._run_of(steps, run, handler))

        def is_abandoned() -> bool:
            if loop.is_closed():
                run.end()
            # A task that has ended lands its flight, unless an interrupt came just then.
            return loop.is_closed() or task.done()

        flight.is_abandoned = is_abandoned
        self._leaders.add(task)
        # In a callback, since a task that is cancelled before its first step runs none of its code.
        task.add_done_callback(functools.partial(self._landed, run, request))
        return task

    async def _run_of(self, steps: Flow[Settled], run: Run, handler: Callable[..., Any]) -> Settled:
        if run.flight is not None and run.flight.landed:
            raise asyncio.CancelledError  # who started this was interrupted: nothing has run
        return await self._driver.drive(steps, run, handler)

    def _landed(self, run: Run, request: Request, task: asyncio.Task[Settled]) -> None:
        self._leaders.discard(task)
        flight, run.flight = run.flight, None
        assert flight is not None  # a leader has one
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            with contextlib.suppress(Exception):  # its caller gets it, if there is one still
                self._outcome(task.result(), run, request)
            flights.land(flight, task.result())
        elif isinstance(error, Exception):
            run.failed(error)
            flights.land(flight, self._shared(error))
        else:
            flights.land(flight, Abandoned())

    async def _follow(
        self, flight: Flight[object], request: Request, patience: Patience
    ) -> Outcome[Any] | None:
        """Share the leader's result; ``None``: there is nothing to share, start over."""
        until_bound = self._begin_to_follow(flight, request, patience)
        while await self._wait_for_change(flight, until_bound, patience):
            pass
        return self._share(flight, request, patience)

    async def _wait_for_change(
        self, flight: Flight[object], until_bound: bool, patience: Patience
    ) -> bool:
        """Wait until the flight has changed; False if there is nothing to wait for any more."""
        changed = asyncio.get_running_loop().create_future()
        wake = _waker(changed)

        async def follow() -> bool:
            while not changed.done():
                if not flights.wake_on_change(flight, wake, until_bound=until_bound):
                    return False
                await asyncio.wait((changed,), timeout=self._time_to_follow(patience))
                flights.give_up(flight)
            return True

        try:
            return await follow()  # a loop of its own: an interrupt in its jump back is inside
        finally:
            flight.wakers.pop(wake, None)


def _waker(changed: asyncio.Future[None]) -> Callable[[], None]:
    """Return a function that resolves the future, and that any thread may call."""

    def resolve() -> None:
        if not changed.done():
            changed.set_result(None)

    def wake() -> None:
        try:
            changed.get_loop().call_soon_threadsafe(resolve)
        except RuntimeError:
            pass  # the loop is closed, so nobody waits on it

    return wake


def _page(walk: Iterator[ReplayRecord]) -> list[ReplayRecord | KVReplayError]:
    page: list[ReplayRecord | KVReplayError] = []
    try:
        page.extend(itertools.islice(walk, _PAGE))
    except KVReplayError as error:  # the loop raises it, after the records before it
        page.append(error)
    return page
