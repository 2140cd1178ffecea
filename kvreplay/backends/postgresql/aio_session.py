"""Say the statements of an operation to the server, with awaits. ``session.py`` has the same."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from kvreplay.backends.driving import drive_awaited
from kvreplay.backends.postgresql.clock import ServerClock, ticks
from kvreplay.backends.postgresql.errors import (
    failure,
    is_conflict,
    no_connection,
    unconfirmed,
)
from kvreplay.backends.postgresql.kept import Kept, Lease
from kvreplay.backends.postgresql.links import AsyncLink
from kvreplay.backends.postgresql.opening import Place, greeted
from kvreplay.backends.postgresql.operations import Operation, Rows
from kvreplay.backends.postgresql.pooling import OwnAsyncPool
from kvreplay.backends.postgresql.session import POOL, Refusal, asked_with
from kvreplay.backends.postgresql.statements import Asked
from kvreplay.backends.postgresql.timeline import Timeline
from kvreplay.store import closed_error

__all__ = ["AsyncSession", "say"]

T = TypeVar("T")


class AsyncSession:
    """An event loop's connections to one store; made on that loop."""

    def __init__(self, place: Place, clock: ServerClock, timeline: Timeline) -> None:
        self.place = place
        self.clock = clock
        self.timeline = timeline
        self.loop = asyncio.get_running_loop()
        self._kept: Kept[AsyncLink] = Kept(timeline)
        self._links: WeakSet[AsyncLink] = WeakSet()
        self._refused = Refusal(place.lock_timeout + place.reply_timeout)
        self._is_closed = False
        # Those who wait while all connections are lent: the next one goes to the first of them.
        self._waiting: deque[asyncio.Future[Lease[AsyncLink] | None]] = deque()
        self._pool = OwnAsyncPool(
            place.conninfo,
            connection_class=AsyncLink,
            kwargs={"autocommit": True, "failed": self._refused.note},
            max_size=place.pool_size,
            configure=self._configure,
            reconnect_failed=self._go_on,
            **{**POOL, "min_size": 0},  # a loop may end while one is being made for nobody
        )
        self._pool.attend()
        self._opening: asyncio.Task[None] | None = self.loop.create_task(self._pool.open())

    async def _configure(self, link: AsyncLink) -> None:
        """Look whether a new connection leads to the store, before anybody uses it."""
        try:
            link.answer_within = self.place.reply_timeout
            asked_at = ticks()
            async with link.cursor() as cursor:
                await cursor.execute(*self.place.greeting(link))
                row = await cursor.fetchone()
            greeted(link, row, self.place, self.timeline)
            self.clock.told(row[-1], asked_at)  # type: ignore[index]  # greeted() has looked
            self._links.add(link)
            self._refused.forget()
        except BaseException as error:
            link.pgconn.finish()  # after an interrupt the pool does not
            if isinstance(error, Exception):
                self._refused.note(error)
            raise

    async def _go_on(self, _: object) -> None:
        """Let the pool go on trying to connect, if somebody waits for that."""
        if self._kept.waiting:
            await self._pool.check()  # there are none in it

    async def lease(self, limit: float) -> Lease[AsyncLink]:
        """Take a connection, and wait for one as long as this (seconds)."""
        until = time.monotonic() + limit
        while True:
            lease: Lease[AsyncLink] = Lease()
            if self._kept.take(lease):
                return lease
            found = await self._next(until - time.monotonic(), limit)
            if found is not None:
                return found

    async def _next(self, left: float, limit: float) -> Lease[AsyncLink] | None:
        """Return one of the pool, or the next that comes back; ``None``: look again."""
        if self._opening is not None:
            await asyncio.shield(self._opening)
            self._opening = None
        await self.give_back()
        if self._kept.lent + len(self._kept.waiting) < self.place.pool_size:
            return await self._from_pool(left, limit)
        if left <= 0:
            raise no_connection(limit, None)
        back: asyncio.Future[Lease[AsyncLink] | None] = self.loop.create_future()
        self._waiting.append(back)
        too_late = self.loop.call_later(left, _tell, back, None)
        try:
            return await back
        except BaseException:  # this call was cancelled
            if back.done() and not back.cancelled():
                self._pass_on(back.result())
            raise
        finally:
            too_late.cancel()

    async def _from_pool(self, left: float, limit: float) -> Lease[AsyncLink] | None:
        waiting = object()
        try:
            self._kept.waiting.add(waiting)
            lease = await self._apart(self._lent(max(left, 0.0)))
            return lease if self._kept.is_good(lease) else None
        except PoolTimeout:
            why = self._refused.why
            raise no_connection(limit, why) from why
        except PoolClosed:
            raise closed_error() from None
        finally:
            self._kept.waiting.discard(waiting)

    async def _lent(self, limit: float) -> Lease[AsyncLink]:
        lease: Lease[AsyncLink] = Lease()
        self._kept.lend(lease, await self._pool.getconn(limit))
        return lease  # if nobody waits for it any more, its connection is lost, and given back

    async def _apart(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call of the pool where there is room on the stack: in a task of its own.

        Where there is none, asyncio loses the wake-up of the pool's tasks, and its loop would wait
        for them for ever.
        """
        return await self.loop.create_task(call)

    def keep(self, lease: Lease[AsyncLink]) -> None:
        """Take a connection back: for whoever waits longest, or for the next call."""
        if self._is_closed:
            lease.link.pgconn.finish()
        if lease.is_over or not self._waiting or not self._kept.is_good(lease):
            self._kept.keep(lease)
        else:
            self._pass_on(lease)

    def _pass_on(self, lease: Lease[AsyncLink] | None) -> None:
        while self._waiting:
            if _tell(self._waiting.popleft(), lease):
                return
        if lease is not None:
            self._kept.keep(lease)

    async def give_back(self) -> None:
        """Give the pool the connections that nobody has any more."""
        while (link := self._kept.lost()) is not None:
            await self._apart(self._pool.putconn(link))
            self._pass_on(None)  # the pool has one for somebody who waits

    async def run(self, operation: Operation[T]) -> T:
        """Drive an operation, each statement of which is a transaction of its own."""
        return await drive_awaited(operation, self.execute)

    async def execute(self, asked: Asked) -> Rows:
        """Make one statement, again if the server undid it in favour of another."""
        place, statement = self.place, asked[0]
        until = time.monotonic() + place.lock_timeout
        while True:
            lease = await self.lease(max(0.0, until - time.monotonic()))
            try:
                left = max(0.0, until - time.monotonic())
                return await say(lease, asked, left, "0", place, self.clock)
            except psycopg.Error as error:
                lost = lease.link.closed
                again = is_conflict(error) or (lost and not statement.changes)
                if not again or time.monotonic() >= until:
                    raise failure(error, changing=statement.changes, lost=lost) from error
            finally:
                self.keep(lease)
                await self.give_back()

    async def close(self) -> None:
        """Close all connections, on the session's own loop."""
        self.cut()
        if self._opening is not None:
            await asyncio.wait((self._opening,))
        await self._pool.close()

    def cut(self) -> None:
        """End what nobody uses, from any thread; the other connections end with their calls."""
        self._is_closed = True
        while self._kept.let_go():
            pass
        if self.loop.is_closed():  # nobody uses any
            for link in list(self._links):
                link.pgconn.finish()


def _tell(back: asyncio.Future[Lease[AsyncLink] | None], lease: Lease[AsyncLink] | None) -> bool:
    """Give a call that waits what it gets; say whether it still waits."""
    if back.done():
        return False
    back.set_result(lease)
    return True


async def say(
    lease: Lease[AsyncLink],
    asked: Asked,
    wait: float | None,
    after: str,
    place: Place,
    clock: ServerClock,
) -> Rows:
    """Make one statement on a connection, and return its rows."""
    link, (statement, given) = lease.link, asked
    link.answer_within, link.unconfirmed = place.reply_timeout, False
    asked_at = ticks()
    if statement.changes:
        link.answer_within += wait or 0.0
        given = asked_with(asked, wait, after, link, place)
    await lease.cursor.execute(statement.text, given)
    rows: Rows = await lease.cursor.fetchall()
    if link.unconfirmed:
        raise unconfirmed()
    if statement.changes and rows:  # a trigger may keep a row away
        clock.told(rows[0][-1], asked_at)
    return rows
