"""``AsyncReplay``: the same protocol, records and guarantees as ``Replay``, awaited.

It drives the same flows; ``_runtime/awaiting.py`` answers their steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, ParamSpec, TypeVar, overload

from kvreplay._protocol import flow
from kvreplay._protocol.codec import Codec
from kvreplay._protocol.steps import Flow, NotStored, Request, Settled, Verdict
from kvreplay._runtime.aio_upkeep import AsyncUpkeep
from kvreplay._runtime.any_replay import Protocol
from kvreplay._runtime.decorating import Calling
from kvreplay._runtime.patience import FROM_SETTINGS, FromSettings, Patience
from kvreplay._runtime.requests import (
    NO_CONNECTION,
    PLAIN_FUNCTION,
    Key,
    Outcome,
    check_handler,
    outcome_of,
    peek,
    peek_awaited,
    request_of,
)
from kvreplay._runtime.run import Run
from kvreplay._runtime.singleflight import Abandoned, Flight, flights
from kvreplay.clock import Duration
from kvreplay.errors import InvalidParamsError
from kvreplay.store import AsyncKVTransaction, KVTransaction

__all__ = ["AsyncReplay"]

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class AsyncReplay(AsyncUpkeep[Verdict | Awaitable[Verdict]]):
    """:class:`~kvreplay.Replay` for event loops: the same arguments, names, answers and errors.

    Handlers and reconcilers may be coroutine functions, or plain ones, which run on the loop. The
    run of a key has a task of its own: cancelling a caller cancels neither the handler nor another
    caller. If the loop itself ends and cancels that task, the key is in doubt. With ``renew=True``
    a task beside each handler renews its lease.

    It awaits a store that is asynchronous, or that has an asynchronous twin as ``store.awaited``,
    and needs no thread for a request. The calls of other stores run in threads of its own, where
    they may block.

    Single-flight is shared with every other ``Replay`` and ``AsyncReplay`` of the process on the
    same store. A *blocking* call on the loop's thread, for a key that this loop is running, would
    wait for ever: on a loop, use only this class.
    """

    def _set_up(self) -> None:
        super()._set_up()
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
        handler: Callable[[KVTransaction], T | NotStored[T]]
        | Callable[[AsyncKVTransaction], Awaitable[T | NotStored[T]]],
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
        handler: Callable[[KVTransaction], Any] | Callable[[AsyncKVTransaction], Any],
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
        handler: Callable[[KVTransaction], Any] | Callable[[AsyncKVTransaction], Any],
        *,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]: ...
    @overload
    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[C], Awaitable[T | NotStored[T]]] | Callable[[C], T | NotStored[T]],
        *,
        connection: C,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[T],
    ) -> Outcome[T]: ...
    @overload
    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[C], Any],
        *,
        connection: C,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: type[Any],
    ) -> Outcome[object]: ...  # the handler returns something else
    @overload
    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[C], Any],
        *,
        connection: C,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]: ...
    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[Any], Any],
        *,
        connection: object = NO_CONNECTION,
        ttl: Duration | None = None,
        wait_timeout: Duration | FromSettings | None = FROM_SETTINGS,
        returns: object = None,
    ) -> Outcome[Any]:
        """Commit a handler's writes and its answer together.

        On a store that has blocking calls this has a thread of its own. ``handler`` is a plain
        function there, since it holds the store's write lock.

        On a store that has only awaited calls ``handler`` is given an
        :class:`~kvreplay.AsyncKVTransaction`. It may be a coroutine function, and holds the
        write lock for as long as it takes. All else is as in
        :meth:`kvreplay.Replay.execute_in_transaction`.

        With ``connection``, an asynchronous one, all is awaited in the caller's own task, and
        ``handler`` may be a coroutine function. If the caller is cancelled, the handler is too, and
        what it has changed is undone.
        """
        if connection is not NO_CONNECTION:
            return await self._execute_joined(
                *(connection, key, params, handler, ttl, wait_timeout, returns)
            )
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
                    *(called.key, called.params, calling.ttl, limit, calling.answers.codec),
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
        seen: Outcome[Any] | Request
        if self._settings.awaits:
            seen = await peek_awaited(self._settings, key, params, ttl, codec)
        elif self._driver.reads_inline:
            seen = peek(self._settings, key, params, ttl, codec)
        else:
            seen = request_of(self._settings, key, params, ttl, codec)
        if isinstance(seen, Outcome):
            return seen
        request = seen
        self._check_answer(handler, request)
        awaited = protocol is flow.execute or self._settings.is_only_awaited
        check_handler(handler, awaited=awaited, instead=PLAIN_FUNCTION)
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

    async def _execute_joined(
        self,
        connection: object,
        key: Key,
        params: object,
        handler: Callable[[Any], Any],
        ttl: Duration | None,
        wait_timeout: Duration | FromSettings | None,
        returns: object,
    ) -> Outcome[Any]:
        store = self._settings.joinable(awaits=True)
        check_handler(handler, awaited=True)
        run, request, steps = self._joining(key, params, handler, ttl, wait_timeout, returns)
        try:
            end = await self._driver.join(store, connection, steps, run, handler)
        except Exception as error:
            run.failed(error)
            raise
        return self._joined(end, run, request)

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
        for _ in range(2):  # an interrupt may end the first one as it begins
            task.add_done_callback(functools.partial(self._landed, run, request))
        return task

    async def _run_of(self, steps: Flow[Settled], run: Run, handler: Callable[..., Any]) -> Settled:
        if run.flight is not None and run.flight.landed:
            raise asyncio.CancelledError  # who started this was interrupted: nothing has run
        return await self._driver.drive(steps, run, handler)

    def _landed(self, run: Run, request: Request, task: asyncio.Task[Settled]) -> None:
        """Tell how a run ended, and land its flight; when that is done, do nothing."""
        self._leaders.discard(task)
        flight = run.flight
        if flight is None:
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        result: Settled | BaseException = Abandoned()
        try:
            if error is None:
                result = task.result()
                with contextlib.suppress(Exception):  # its caller gets it, if there is one still
                    self._outcome(result, run, request)
            elif isinstance(error, Exception):
                result = self._shared(error)
                run.failed(error)
        finally:
            try:
                flights.land(flight, result)
            except BaseException:  # an interrupt
                flights.land(flight, result)
                raise
            run.flight = None
            if isinstance(result, Exception):
                del result, error  # its traceback holds this frame

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
