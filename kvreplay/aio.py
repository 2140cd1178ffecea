"""``AsyncReplay``: the same protocol, records and guarantees as ``Replay``, awaited.

It drives the same flows; :mod:`kvreplay._runtime.awaiting` answers their steps.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, ParamSpec, TypeVar

from kvreplay._protocol import flow
from kvreplay._protocol.record import ReplayRecord, encode_response
from kvreplay._protocol.steps import Flow, Request, Settled, Verdict
from kvreplay._runtime.aio_sweeping import AsyncSweeper
from kvreplay._runtime.awaiting import AsyncDriver, in_thread
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import (
    Key,
    Outcome,
    ReplayNamespace,
    arguments_of,
    outcome_of,
    refuse_own_flight,
    replay_key,
)
from kvreplay._runtime.singleflight import Flight, flights
from kvreplay._runtime.walking import Walk, records, sweep
from kvreplay.clock import Clock, Duration, to_ms
from kvreplay.errors import KVReplayError
from kvreplay.events import ReplayEvent
from kvreplay.store import AtomicKVStore, KVTransaction, SweepResult

__all__ = ["AsyncReplay"]

P = ParamSpec("P")
T = TypeVar("T")

_LOOK_AGAIN: Final = 1.0  # seconds, until a follower looks whether its leader's loop was closed
_PAGE: Final = 100  # records that one hop to the executor brings back


class AsyncReplay:
    """:class:`~kvreplay.Replay` for event loops: the same arguments, names, answers and errors.

    Handlers and reconcilers may be coroutine functions, or plain ones, which run on the loop. The
    run of a key has a task of its own: cancelling a caller cancels neither the handler nor another
    caller. If the loop itself ends and cancels that task, the key is in doubt.

    Single-flight is shared with every other ``Replay`` and ``AsyncReplay`` of the process on the
    same store. A *blocking* call for a key that the same thread's loop is running would wait for
    ever: use this class on a loop.
    """

    def __init__(
        self,
        store: AtomicKVStore,
        namespace: str,
        *,
        ttl: Duration,
        lease: Duration | None = 30.0,
        tombstone_ttl: Duration = 0.0,
        wait_timeout: Duration = 10.0,
        on_in_doubt: str | Callable[[ReplayRecord], Verdict | Awaitable[Verdict]] = "raise",
        max_record_bytes: int = 1024 * 1024,
        renew: bool = False,
        clock: Clock | None = None,
        on_event: Callable[[ReplayEvent], object] | None = None,
    ) -> None:
        self._namespace = ReplayNamespace(
            store,
            namespace,
            ttl=ttl,
            lease=lease,
            tombstone_ttl=tombstone_ttl,
            wait_timeout=wait_timeout,
            on_in_doubt=on_in_doubt,
            max_record_bytes=max_record_bytes,
            renew=renew,
            clock=clock,
            on_event=on_event,
        )
        self._driver = AsyncDriver(self._namespace)
        self._walk = Walk(self._namespace)
        self._leaders: set[asyncio.Task[Settled]] = set()  # a loop keeps only weak references

    def __repr__(self) -> str:
        return f"<AsyncReplay {self._namespace.name!r} on {self._namespace.store!r}>"

    async def execute(
        self,
        key: Key,
        params: object,
        handler: Callable[[], Any],
        *,
        ttl: Duration | None = None,
    ) -> Outcome:
        """Run ``handler()`` once for this key and params; see :meth:`kvreplay.Replay.execute`."""
        return await self._execute(key, params, ttl, flow.execute, handler)

    async def execute_in_transaction(
        self,
        key: Key,
        params: object,
        handler: Callable[[KVTransaction], Any],
        *,
        ttl: Duration | None = None,
    ) -> Outcome:
        """Commit a handler's writes and its answer together, on one thread of the executor.

        ``handler`` is a plain function, since it holds the store's write lock. Otherwise as
        :meth:`kvreplay.Replay.execute_in_transaction`.
        """
        self._namespace.require_transactions("execute_in_transaction")
        return await self._execute(key, params, ttl, flow.execute_in_transaction, handler)

    async def lookup(self, key: Key, params: object) -> Outcome | None:
        """Return the stored answer or ``None``; see :meth:`kvreplay.Replay.lookup`."""
        request = self._namespace.request(key, params, None)
        self._namespace.refuse_running(request)
        steps = flow.lookup(request, self._namespace.policy)
        run = Run(self._namespace, request.key)
        try:
            settled = await self._driver.drive(steps, run)
        except Exception as error:
            run.emit_error(error)
            raise
        if settled is None:
            return None
        self._namespace.emit_settled(settled, request.key)
        return outcome_of(settled, replayed=True)

    def idempotent(
        self,
        *,
        key: Callable[P, Key],
        params: Callable[P, object] | None = None,
        ttl: Duration | None = None,
    ) -> Callable[[Callable[P, Awaitable[Any]]], Callable[P, Awaitable[Any]]]:
        """Decorate a coroutine function; see :meth:`kvreplay.Replay.idempotent`."""

        def decorate(function: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
            params_of = params or arguments_of(function)

            @functools.wraps(function)
            async def replayed(*args: P.args, **kwargs: P.kwargs) -> Any:
                outcome = await self.execute(
                    key(*args, **kwargs),
                    params_of(*args, **kwargs),
                    lambda: function(*args, **kwargs),
                    ttl=ttl,
                )
                return outcome.response

            return replayed

        return decorate

    async def resolve(self, key: Key, *, response: object, ttl: Duration | None = None) -> bool:
        """Record ``response`` for a key in doubt; see :meth:`kvreplay.Replay.resolve`."""
        return await self._settle(key, encode_response(response, "nothing was changed"), ttl)

    async def release(self, key: Key) -> bool:
        """Free a key in doubt; see :meth:`kvreplay.Replay.release`."""
        return await self._settle(key, None, None)

    async def records(self) -> AsyncIterator[ReplayRecord]:
        """Yield every record of the namespace; see :meth:`kvreplay.Replay.records`."""
        walk = records(self._namespace)
        while page := await in_thread(_page, walk):
            for each in page:
                if isinstance(each, Exception):
                    raise each
                yield each

    async def sweep(self, limit: int = 1000) -> SweepResult:
        """Remove at most ``limit`` needless records; see :meth:`kvreplay.Replay.sweep`."""
        result = await in_thread(sweep, self._namespace, self._walk, limit)
        self._namespace.emit("swept", None, result)
        return result

    def sweeping(
        self, every: Duration = 60.0, limit: int = 1000
    ) -> AbstractAsyncContextManager[AsyncSweeper]:
        """Sweep periodically, from a task of the block's; see :meth:`kvreplay.Replay.sweeping`."""
        return AsyncSweeper(self.sweep, to_ms(every, "every"), limit)

    async def _settle(self, key: Key, response: bytes | None, ttl: Duration | None) -> bool:
        namespace = self._namespace
        own = replay_key(key)
        ttl_ms = namespace.ttl if ttl is None else to_ms(ttl, "ttl")
        steps = flow.settle(own, response, ttl_ms, namespace.policy)
        return await self._driver.drive(steps, Run(namespace, own))

    async def _execute(
        self,
        key: Key,
        params: object,
        ttl: Duration | None,
        protocol: Callable[[Request, Any], Flow[Settled]],
        handler: Callable[..., Any],
    ) -> Outcome:
        if self._driver.reads_inline:
            seen = self._namespace.peek(key, params, ttl)
            if isinstance(seen, Outcome):
                return seen
            request = seen
        else:
            request = self._namespace.request(key, params, ttl)
        while True:
            own: Flight[object] = Flight(self._namespace.flight_key(request.key), request.params)
            try:
                flight = flights.board(own)
                if flight is own:
                    task = self._lead(own, request, protocol, handler)
            except BaseException as error:  # an interrupt too: nobody may wait for ever
                flights.land(own, error)
                raise
            if flight is own:
                settled = await asyncio.shield(task)
                return outcome_of(settled, replayed=settled.replayed)
            outcome = await self._follow(flight, request)
            if outcome is not None:
                return outcome
            request.absent_at = None  # that was before the other's run

    def _lead(
        self,
        flight: Flight[object],
        request: Request,
        protocol: Callable[[Request, Any], Flow[Settled]],
        handler: Callable[..., Any],
    ) -> asyncio.Task[Settled]:
        """Start the run in a task of its own, which no caller's cancellation reaches."""
        run = Run(self._namespace, request.key, flight)
        loop = asyncio.get_running_loop()

        def is_abandoned() -> bool:
            if loop.is_closed():
                run.end()
            return loop.is_closed()

        flight.is_abandoned = is_abandoned
        steps = protocol(request, self._namespace.policy)
        task = loop.create_task(self._driver.drive(steps, run, handler))
        self._leaders.add(task)
        # In a callback, since a task that is cancelled before its first step runs no line.
        task.add_done_callback(functools.partial(self._landed, run))
        return task

    def _landed(self, run: Run, task: asyncio.Task[Settled]) -> None:
        self._leaders.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        assert run.flight is not None  # a leader has one
        if error is None:
            self._namespace.emit_settled(task.result(), run.key)
            flights.land(run.flight, task.result())
        else:
            run.emit_error(error)
            flights.land(run.flight, error)

    async def _follow(self, flight: Flight[object], request: Request) -> Outcome | None:
        """Share the leader's end; ``None``: it has none to share, start over."""
        refuse_own_flight(flight)
        others = flight.params != request.params
        if not others:
            self._namespace.emit("waited", request.key)
        loop = asyncio.get_running_loop()
        while True:
            changed = loop.create_future()
            if not flights.wake_on_change(flight, _waker(changed), until_bound=others):
                return self._namespace.shared(flight, request)
            while not (await asyncio.wait((changed,), timeout=_LOOK_AGAIN))[0]:
                flights.give_up(flight)


def _waker(changed: asyncio.Future[None]) -> Callable[[], None]:
    """Return what resolves the future, from any thread."""

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
    except KVReplayError as error:  # raised on the loop, after the records before it
        page.append(error)
    return page
