"""Make the requests of an operation, with awaits: one event loop's connections.

They are used as those of ``session.py`` are. At most ``pool_size`` are in use at once, so that a
loop with thousands of tasks does not use up its descriptors.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Coroutine
from typing import Any, TypeVar

from kvreplay.backends.driving import drive_awaited
from kvreplay.backends.etcd.aio_links import AsyncLink, connected
from kvreplay.backends.etcd.cluster import Answer, Attempt, Cluster, NoAnswer, NotSent
from kvreplay.backends.etcd.operations import Operation
from kvreplay.backends.etcd.requests import Asked
from kvreplay.errors import StoreUnavailableError

__all__ = ["AsyncSession"]

T = TypeVar("T")


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
        self._pool_size = pool_size
        self._room = asyncio.Semaphore(pool_size)
        self._is_closed = False

    async def run(self, operation: Operation[T]) -> T:
        """Drive an operation."""
        return await drive_awaited(operation, self._execute)

    async def _execute(self, asked: Asked) -> dict[str, Any]:
        """Make one request."""
        asking = self._in_turn(asked)
        return await (_to_its_end(asking) if asked.changes else asking)

    async def _in_turn(self, asked: Asked) -> dict[str, Any]:
        """Make one request, once there is room for a connection."""
        begun, timeout = self.loop.time(), self._cluster.timeout
        try:
            async with asyncio.timeout(timeout):
                await self._room.acquire()
        except TimeoutError:
            raise StoreUnavailableError(
                f"other calls of this event loop have used all {self._pool_size} connections for"
                f" {timeout:.3g} s; nothing was done: try again later, or raise pool_size"
            ) from None
        try:
            conversation = self._cluster.ask(asked, self.loop.time() - begun)
            return await drive_awaited(conversation, self._attempt, (NotSent, NoAnswer))
        finally:
            self._room.release()

    async def _attempt(self, attempt: Attempt) -> Answer:
        until = self.loop.time() + attempt.answer_within
        link = self._idle_one(attempt.member)
        if link is None:
            member = self._cluster.members[attempt.member]
            within = min(attempt.connect_within, until - self.loop.time())
            link = await connected(member, self._context, within)
        self._used.add(link)
        try:
            answer = await link.ask(attempt, until)
        except BaseException as error:
            link.close()
            if isinstance(error, NoAnswer):  # the others may have gone silent too
                _close_all(self._idle[attempt.member])
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
            _close_all(idle)
        if self.loop.is_closed():
            for link in self._used:
                link.close()


def _close_all(idle: deque[AsyncLink]) -> None:
    while idle:
        idle.pop().close()


async def _to_its_end(change: Coroutine[Any, Any, T]) -> T:
    """Await a change; if this is cancelled, however often, first hear how the change ended.

    So what a caller has cancelled takes effect no more, unless its answer was lost.
    """
    going = asyncio.ensure_future(change)
    cancelled: asyncio.CancelledError | None = None
    while not going.done():
        try:
            await asyncio.wait((going,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return going.result()
    if not going.cancelled():
        going.exception()  # nobody else asks for it
    raise cancelled
