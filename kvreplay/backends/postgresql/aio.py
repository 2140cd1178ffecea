"""The same entries for event loops: what ``PostgreSQLStore.awaited`` is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from kvreplay.backends._support import own_transaction_error, values_now
from kvreplay.backends.postgresql.aio_joining import joined
from kvreplay.backends.postgresql.aio_session import AsyncSession
from kvreplay.backends.postgresql.aio_transaction import AsyncTransaction
from kvreplay.backends.postgresql.clock import ServerClock
from kvreplay.backends.postgresql.opening import Place
from kvreplay.backends.postgresql.operations import Operation, Operations
from kvreplay.backends.postgresql.statements import WALK
from kvreplay.backends.postgresql.timeline import Timeline
from kvreplay.store import (
    AsyncJoinedTransaction,
    AsyncKVTransaction,
    Entry,
    Page,
    PageWithValues,
    SweepResult,
    closed_error,
)
from kvreplay.store.locks import ProcessMark, this_process

__all__ = ["AsyncPostgreSQLStore"]

T = TypeVar("T")

_Sessions = WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncSession]


class AsyncPostgreSQLStore:
    """An :class:`~kvreplay.AsyncTransactionalKVStore`: each method as that of ``PostgreSQLStore``.

    Each event loop has connections of its own, at most ``pool_size``. They are made when the loop
    first asks, and closed with the blocking store, or by :meth:`close` on the loop.
    """

    spans_machines = True

    def __init__(
        self,
        place: Place,
        clock: ServerClock,
        timeline: Timeline,
        identity: object,
        operations: Operations,
        joined_operations: Operations,
    ) -> None:
        self.clock = clock
        self.identity = identity
        self._place = place
        self._timeline = timeline
        self._operations = operations
        self._joined = joined_operations
        self._process: ProcessMark = this_process()
        self._sessions: _Sessions = WeakKeyDictionary()
        self._transacting: set[asyncio.Task[Any] | None] = set()  # tasks that hold a transaction
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<AsyncPostgreSQLStore schema={self._place.schema!r} {state}>"

    async def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        return await self._run(self._operations.read(primary_namespace, secondary_namespace, key))

    async def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """Return value and expiry; see :meth:`kvreplay.InspectableKVStore.read_entry`."""
        return await self._run(
            self._operations.read_entry(primary_namespace, secondary_namespace, key)
        )

    async def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        await self._change(
            self._operations.write(primary_namespace, secondary_namespace, key, value)
        )

    async def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`."""
        await self._change(
            self._operations.remove(primary_namespace, secondary_namespace, key, lazy)
        )

    async def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys, of one moment; see :meth:`kvreplay.KVStoreSync.list`."""
        return await self._run(self._operations.list(primary_namespace, secondary_namespace))

    async def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :meth:`kvreplay.PaginatedKVStore.list_paginated`."""
        return await self._run(
            self._operations.page(primary_namespace, secondary_namespace, page_token, limit)
        )

    async def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Return a page of keys and values; see :class:`kvreplay.PaginatedKVStore`."""
        return await self._run(
            self._operations.page_with_values(
                primary_namespace, secondary_namespace, page_token, limit
            )
        )

    async def list_all_keys(self) -> AsyncIterator[tuple[str, str, str]]:
        """Yield every address; see :meth:`kvreplay.MigratableKVStore.list_all_keys`."""
        last = ("", "", "")
        while True:
            keys = await self._run(self._operations.some_keys(last))
            for each in keys:
                yield each
            if len(keys) < WALK:
                return
            last = keys[-1]

    async def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        """Compare and put in one statement; see :meth:`kvreplay.AtomicKVStore.check_and_put`."""
        return await self._change(
            self._operations.check_and_put(
                primary_namespace, secondary_namespace, key, expected, value, expires_at
            )
        )

    async def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries; see :meth:`kvreplay.ExpiringKVStore.sweep`."""
        return await self._change(self._operations.sweep(primary_namespace, now, limit))

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncKVTransaction]:
        """All or nothing; see :meth:`kvreplay.TransactionalKVStore.transaction`.

        It belongs to the task that began it. A change of the store itself by that task is refused
        meanwhile; by another task it waits for the end, until ``lock_timeout``.
        """
        session, place = self._opened(), self._place
        self._refuse_own()
        lease = await session.lease(place.lock_timeout)
        transaction = AsyncTransaction(lease, self._operations, session)
        task = transaction.task
        try:
            self._transacting.add(task)
            await transaction.begin()
            yield transaction
            await transaction.commit()
        except BaseException:
            await transaction.roll_back()
            raise
        finally:
            transaction.task = None
            self._transacting.discard(task)
            session.keep(lease)
            await session.give_back()

    def join(
        self, connection: object, *, lock_timeout: float | None
    ) -> AbstractAsyncContextManager[AsyncJoinedTransaction]:
        """Join a caller's transaction; see :meth:`kvreplay.JoinableKVStore.join`.

        Args:
            connection: a ``psycopg.AsyncConnection``, or an ``AsyncConnection`` or ``AsyncSession``
                of SQLAlchemy on psycopg.
        """
        self._check_open()
        self._refuse_own()
        return joined(connection, lock_timeout, self._place, self.clock, self._joined)

    async def close(self) -> None:
        """Close the connections of the running loop; another call opens them again.

        Raises:
            StoreError: this task holds a transaction of the store; nothing is closed.
        """
        self._refuse_own()
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None and self._process[0]:
            await session.close()

    def cut(self) -> None:
        """Refuse further calls, and close the connections of all loops: for the blocking store."""
        self._is_closed = True
        if not self._process[0]:
            return  # they are the parent's
        for session in values_now(self._sessions):
            session.cut()
            with contextlib.suppress(RuntimeError):  # the loop is closed
                session.loop.call_soon_threadsafe(_close_soon, session)

    def _check_open(self) -> None:
        if self._is_closed:
            raise closed_error()

    def _opened(self) -> AsyncSession:
        """Return the running loop's session."""
        self._check_open()
        if not self._process[0]:
            _inherited.append(self._sessions)
            self._sessions, self._process = WeakKeyDictionary(), this_process()
            self._transacting = set()
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            for other in values_now(self._sessions):
                if other.loop.is_closed():
                    other.cut()
                    self._sessions.pop(other.loop, None)  # which it would keep for ever
            session = self._sessions[loop] = AsyncSession(self._place, self.clock, self._timeline)
        return session

    async def _run(self, operation: Operation[T]) -> T:
        return await self._opened().run(operation)

    async def _change(self, operation: Operation[T]) -> T:
        session = self._opened()
        self._refuse_own()
        return await session.run(operation)

    def _refuse_own(self) -> None:
        """Refuse what would wait for this very task's transaction."""
        held = self._transacting if self._process[0] else ()  # else they are the parent's
        if held and asyncio.current_task() in held:
            raise own_transaction_error("task")


_inherited: list[_Sessions] = []
"""Those of a parent process, which a child must not end: they share its sockets."""
_closing: set[asyncio.Task[None]] = set()  # a loop keeps only weak references


def _close_soon(session: AsyncSession) -> None:
    task = session.loop.create_task(session.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
