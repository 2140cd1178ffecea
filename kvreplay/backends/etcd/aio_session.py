"""Make the requests of an operation, with awaits: one event loop's connections.

They are used as those of ``session.py`` are. At most ``pool_size`` are in use at once, so that a
loop with thousands of tasks does not use up its descriptors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

import httpcore

from kvreplay.backends.etcd.cluster import Answer, Attempt, Cluster, NoAnswer, NotSent, TooMuch
from kvreplay.backends.etcd.links import FAILURES, Links, what_failed
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
        pool_size: how many connections there are at once, at most.
    """

    def __init__(self, cluster: Cluster, links: Links, pool_size: int) -> None:
        self.loop = asyncio.get_running_loop()
        self._cluster = cluster
        self._links = links
        self._idle = [deque[httpcore.AsyncHTTPConnection]() for _ in cluster.members]
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
            raise NotSent("other calls use all of the pool") from None
        try:
            return await self._attempt_now(attempt, until)
        finally:
            self._room.release()

    async def _attempt_now(self, attempt: Attempt, until: float) -> Answer:
        connection = await self._take(attempt.member)
        try:
            async with asyncio.timeout_at(until):
                request = self._links.request(attempt)
                answer = await _exchange(connection, request, attempt.asked.most)
        except BaseException as error:
            await connection.aclose()
            if isinstance(error, FAILURES):
                raise what_failed(error) from error
            raise
        await self._give_back(attempt.member, connection)
        return answer

    async def _take(self, member: int) -> httpcore.AsyncHTTPConnection:
        """Return one that was used last and is still good, or a new one."""
        idle = self._idle[member]
        while idle:
            connection = idle.pop()
            if not connection.has_expired():
                return connection
            await connection.aclose()
        return httpcore.AsyncHTTPConnection(self._links.origin(member), self._links.context)

    async def _give_back(self, member: int, connection: httpcore.AsyncHTTPConnection) -> None:
        idle = self._idle[member]
        if self._is_closed or not connection.is_idle():
            await connection.aclose()
        else:
            idle.append(connection)

    async def close(self) -> None:
        """Close the connections, on the session's own loop; those in use end with their calls."""
        self._is_closed = True
        for idle in self._idle:
            while idle:
                await idle.pop().aclose()


async def _exchange(
    connection: httpcore.AsyncHTTPConnection, request: httpcore.Request, most: int | None
) -> Answer:
    response = await connection.handle_async_request(request)
    parts, size = [], 0
    async for part in response.aiter_stream():
        parts.append(part)
        size += len(part)
        if most is not None and size > most:
            raise TooMuch("the answer is longer than was asked for; nothing was changed")
    await response.aclose()
    return response.status, b"".join(parts)


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
