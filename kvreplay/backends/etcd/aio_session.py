"""Make the requests of an operation, with awaits: one event loop's connections.

They are used as those of ``session.py`` are. At most ``pool_size`` are in use at once, so that a
loop with thousands of tasks does not use up its descriptors.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from kvreplay.backends.etcd.aio_links import AsyncLink, connected
from kvreplay.backends.etcd.cluster import Answer, Attempt, Cluster, NoAnswer, NotSent
from kvreplay.backends.etcd.operations import Operation
from kvreplay.backends.etcd.requests import Asked
from kvreplay.errors import StoreError

__all__ = ["AsyncSession"]

T = TypeVar("T")
Y = TypeVar("Y")
S = TypeVar("S")


async def drive(
    steps: Generator[Y, S, T], answer: Callable[[Y], Awaitable[S]], *thrown: type[Exception]
) -> T:
    """Answer what a generator yields until it returns or raises; see ``session.drive``."""
    resume: Callable[[Any], Y] = steps.send
    told: Any = None
    while True:
        try:
            asked = resume(told)
        except StopIteration as end:
            value: T = end.value
            return value
        try:
            resume, told = steps.send, await answer(asked)
        except thrown as error:
            resume, told = steps.throw, error


class AsyncSession:
    """An event loop's connections to one cluster; made on that loop.

    Args:
        context: how TLS is spoken; ``None``: it is not.
        pool_size: how many connections there are at once, at most.
    """

    def __init__(self, cluster: Cluster, context: ssl.SSLContext | None, pool_size: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._cluster = cluster
        self._context = context
        self._idle: list[deque[AsyncLink]] = [deque() for _ in cluster.members]
        self._used: set[AsyncLink] = set()
        self._room = asyncio.Semaphore(pool_size)
        self._is_closed = False

    async def run(self, operation: Operation[T]) -> T:
        """Drive an operation."""
        return await drive(operation, self._execute, StoreError)

    async def _execute(self, asked: Asked) -> dict[str, Any]:
        """Make one request."""
        asking = drive(self._cluster.ask(asked), self._attempt, NotSent, NoAnswer)
        return await (_to_its_end(asking) if asked.changes else asking)

    async def _attempt(self, attempt: Attempt) -> Answer:
        until = self.loop.time() + attempt.answer_within
        try:
            async with asyncio.timeout_at(until):
                await self._room.acquire()
        except TimeoutError:
            raise NotSent("other calls use all connections of the pool") from None
        try:
            return await self._attempt_now(attempt, until)
        finally:
            self._room.release()

    async def _attempt_now(self, attempt: Attempt, until: float) -> Answer:
        link = self._idle_one(attempt.member)
        if link is None:
            member = self._cluster.members[attempt.member]
            within = min(attempt.connect_within, until - self.loop.time())
            link = await connected(member, self._context, within)
        self._used.add(link)
        try:
            answer = await link.ask(attempt, until)
        except BaseException:
            link.close()
            raise
        finally:
            self._used.discard(link)
        if self._is_closed or not link.can_go_on():
            link.close()
        else:
            self._idle[attempt.member].append(link)
        return answer

    def _idle_one(self, member: int) -> AsyncLink | None:
        """Return the connection that was used last, if it is still good."""
        idle = self._idle[member]
        while idle:
            link = idle.pop()
            if link.is_good():
                return link
            link.close()
        return None

    def close(self) -> None:
        """Close the connections, on the session's own loop, or once that is closed.

        Those in use end with their calls, or with their loop.
        """
        self._is_closed = True
        for idle in self._idle:
            while idle:
                idle.pop().close()
        if self.loop.is_closed():
            for link in self._used:
                link.close()


async def _to_its_end(change: Coroutine[Any, Any, T]) -> T:
    """Await a change; if this is cancelled, first hear how the change ended.

    So what a caller has cancelled takes effect no more, unless its answer was lost.
    """
    going = asyncio.ensure_future(change)
    try:
        return await asyncio.shield(going)
    except asyncio.CancelledError:
        await asyncio.wait((going,))
        if not going.cancelled():
            going.exception()  # nobody else asks for it
        raise
