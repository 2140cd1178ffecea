"""psycopg's pool, for threads that signals interrupt, processes that fork, and loops that end.

It counts what it has lent. An interrupt in the middle of its own code can leave a connection with
nobody, and a call that waits can be given one after it has gone. So a pool in which a call was
broken off is not used again: at the next call another takes its place, and it closes its
connections as they come back. A few may then be open beside those of the new one.

Its queues and conditions are Python's own, written in Python: an interrupt can leave one locked for
ever. Interrupts come to the main thread alone, so there the pool's code runs in a thread beside it.
That is seldom: most calls take a connection that was kept.

A finalizer that runs in the middle of the pool's code could wait for a lock that its own thread
holds. So a call inside of such a call is refused.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any, Final, Generic, TypeVar

from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed, PoolTimeout

from kvreplay.backends._support import nested_call_error
from kvreplay.backends.postgresql.links import AsyncLink, Link
from kvreplay.store import ForkSafeLock

__all__ = ["OwnAsyncPool", "OwnPool", "Pool"]

T = TypeVar("T")

_replacing = ForkSafeLock()
_AGAIN: Final = 0.05  # seconds, until tasks that go on are cancelled once more


class OwnPool(ConnectionPool[Link]):
    """A pool that a forked child does not end: it would wait for threads that it does not have."""

    _pid: int = 0

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Begin to connect."""
        self._pid = os.getpid()
        super().open(wait, timeout)

    def __del__(self) -> None:
        if self._pid == os.getpid():
            super().__del__()


class OwnAsyncPool(AsyncConnectionPool[AsyncLink]):
    """A pool whose tasks end with their event loop.

    psycopg's take a cancellation, while they connect, for a failure to do so, and go on; and before
    Python 3.12 ``asyncio.wait_for`` may lose one. The loop would wait for them for ever. So a task
    that only waits for its own cancellation is there beside them, and then they are cancelled until
    they have ended.
    """

    def attend(self) -> None:
        """Begin, on the running loop."""
        loop = asyncio.get_running_loop()
        self._attending = loop.create_task(_ends_with(loop), name=f"{self.name}-attending")
        self._attending.add_done_callback(lambda _: self._end_all(loop))

    def _end_all(self, loop: asyncio.AbstractEventLoop) -> None:
        own = f"{self.name}-"
        left = [task for task in asyncio.all_tasks(loop) if task.get_name().startswith(own)]
        for task in left:
            task.cancel()
        if left:
            loop.call_later(_AGAIN, self._end_all, loop)

    async def close(self, timeout: float = 5.0) -> None:
        """Close it, and what attends to it."""
        await super().close(timeout)
        self._attending.cancel()

    @classmethod
    async def worker(cls, q: Any) -> None:
        """Do what is in the queue."""
        try:
            await super().worker(_Queue(q))  # type: ignore[arg-type]  # it only gets
        except BaseException as error:  # who keeps it shall not keep what it was connecting
            traceback.clear_frames(error.__traceback__)
            raise


async def _ends_with(loop: asyncio.AbstractEventLoop) -> None:
    await loop.create_future()


class _Queue:
    def __init__(self, queue: Any) -> None:
        self._queue = queue

    async def get(self) -> Any:
        try:
            return await self._queue.get()
        except RuntimeError as error:  # the loop was closed, and this is left to the collector
            if isinstance(error.__context__, GeneratorExit):
                raise error.__context__ from None
            raise


class _Apart(Generic[T]):
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._runs = allocate_lock()  # C's own: an interrupt leaves it as it is
        self._runs.acquire()

    def run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error = error
        finally:
            self._runs.release()

    def result(self) -> T:
        """Wait for what comes of it. If an interrupt ends the wait, the call goes on."""
        self._runs.acquire()
        error, self._error = self._error, None  # its traceback holds this object
        if error is None:
            return self._result.pop()
        try:
            raise error
        finally:
            del error


def apart(call: Callable[..., T], *given: Any) -> T:
    """Call it where no interrupt comes: in the main thread's place, in a thread beside it."""
    if threading.current_thread() is not threading.main_thread():
        return call(*given)
    beside = _Apart(partial(call, *given))
    try:
        start_new_thread(beside.run, ())
    except RuntimeError:  # none can begin any more: the interpreter ends
        beside.run()
    return beside.result()


class Pool:
    """The pool that is in use.

    Args:
        make: makes one that is open.
    """

    def __init__(self, make: Callable[[], OwnPool]) -> None:
        self._make = make
        self._is_closed = False
        self._inside: set[int] = set()  # threads that are in the pool's own code
        self._current = apart(make)
        self._broken: OwnPool | None = None  # a call in it was broken off

    def get(self, limit: float, lend: Callable[[Link], T]) -> T:
        """Take a connection, and wait for one as long as this (seconds); return what it is lent as.

        Raises:
            PoolTimeout, PoolClosed: there is none.
            StoreUnavailableError: this thread is in another call of the pool.
        """
        while True:
            pool = self._usable()
            try:
                lent: T = apart(self._call, pool, _lent, pool, limit, lend)
                return lent
            except PoolClosed:
                if pool is self._current:  # else it has been replaced meanwhile
                    raise

    def put(self, find: Callable[[], Link | None]) -> bool:
        """Give back the connection that is found; say whether there was one."""
        pool = self._usable()
        was_found: bool = apart(self._call, pool, _given_back, pool, find)
        return was_found

    @property
    def is_busy(self) -> bool:
        """Whether this thread is in the pool's own code."""
        return get_ident() in self._inside

    def close(self) -> None:
        """Close it, and the connections that are in it."""
        if self.is_busy:
            raise nested_call_error()
        self._is_closed = True
        apart(self._call, self._current, self._current.close)

    def _call(self, pool: OwnPool, call: Callable[..., T], *given: Any) -> T:
        me = get_ident()
        try:
            self._inside.add(me)
            return call(*given)
        except (PoolTimeout, PoolClosed):
            raise
        except BaseException:
            self._broken = pool  # and no more: on the stack there may be no room for a call
            raise
        finally:
            self._inside.discard(me)

    def _usable(self) -> OwnPool:
        if self.is_busy:
            raise nested_call_error()
        pool = self._current
        if pool is not self._broken or self._is_closed:
            return pool
        with _replacing:
            if self._current is pool:
                self._current = apart(self._make)
        apart(pool.close, 1.0)
        return self._current


def _lent(pool: OwnPool, limit: float, lend: Callable[[Link], T]) -> T:
    return lend(pool.getconn(limit))


def _given_back(pool: OwnPool, find: Callable[[], Link | None]) -> bool:
    link = find()
    if link is None:
        return False
    try:
        pool.putconn(link)
    except ValueError:  # it is of a former pool
        link.close()
    return True
