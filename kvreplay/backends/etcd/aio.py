"""The same entries for event loops: what ``EtcdStore.awaited`` is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from kvreplay.backends._support import values_now
from kvreplay.backends.etcd.aio_session import AsyncSession
from kvreplay.backends.etcd.cluster import Cluster
from kvreplay.backends.etcd.layout import Address, Range
from kvreplay.backends.etcd.operations import Operation, Operations
from kvreplay.store import Entry, Page, PageWithValues, SweepResult, closed_error
from kvreplay.store.locks import ProcessMark, this_process

__all__ = ["AsyncEtcdStore"]

T = TypeVar("T")

_Sessions = WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncSession]


class AsyncEtcdStore:
    """An :class:`~kvreplay.AsyncPaginatedKVStore` and more: each method as that of ``EtcdStore``.

    Each event loop has connections of its own, at most ``pool_size``. They are made when the loop
    first asks, and closed with the blocking store, or by :meth:`close` on the loop. A call that is
    cancelled while it changes something first hears how that ended.
    """

    spans_machines = True

    def __init__(
        self,
        cluster: Cluster,
        context: ssl.SSLContext | None,
        pool_size: int,
        operations: Operations,
        identity: object,
        max_change_bytes: int,
    ) -> None:
        self.identity = identity
        self.max_change_bytes = max_change_bytes
        self._cluster = cluster
        self._context = context
        self._pool_size = pool_size
        self._operations = operations
        self._process: ProcessMark = this_process()
        self._sessions: _Sessions = WeakKeyDictionary()
        self._is_closed = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<AsyncEtcdStore {len(self._cluster.members)} members {state}>"

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
        await self._run(self._operations.write(primary_namespace, secondary_namespace, key, value))

    async def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`."""
        await self._run(self._operations.remove(primary_namespace, secondary_namespace, key))

    async def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys; see :meth:`kvreplay.KVStoreSync.list`."""
        return await self._run(self._operations.keys(primary_namespace, secondary_namespace))

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

    async def list_all_keys(self) -> AsyncIterator[Address]:
        """Yield every address; see :meth:`kvreplay.MigratableKVStore.list_all_keys`."""
        place: Range | None = self._operations.walk()
        while place is not None:
            addresses, place = await self._run(self._operations.some_keys(place))
            for each in addresses:
                yield each

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
        """Compare and put in one transaction; see :meth:`kvreplay.AtomicKVStore.check_and_put`."""
        return await self._run(
            self._operations.check_and_put(
                primary_namespace, secondary_namespace, key, expected, value, expires_at
            )
        )

    async def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries; see :meth:`kvreplay.ExpiringKVStore.sweep`."""
        return await self._run(self._operations.sweep(primary_namespace, now, limit))

    async def close(self) -> None:
        """Close the connections of the running loop; another call opens them again."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None and self._process[0]:
            session.close()

    def cut(self) -> None:
        """Refuse further calls, and close the connections of all loops: for the blocking store."""
        self._is_closed = True
        if not self._process[0]:
            return  # they are the parent's
        for session in values_now(self._sessions):
            if session.loop.is_running():
                session.loop.call_soon_threadsafe(session.close)
            else:
                session.close()

    def _opened(self) -> AsyncSession:
        """Return the running loop's session."""
        if self._is_closed:
            raise closed_error()
        if not self._process[0]:
            _inherited.append(self._sessions)
            self._sessions, self._process = WeakKeyDictionary(), this_process()
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            for other in values_now(self._sessions):
                if other.loop.is_closed():
                    other.close()
                    self._sessions.pop(other.loop, None)  # which it would keep for ever
            session = self._sessions[loop] = AsyncSession(
                self._cluster, self._context, self._pool_size
            )
        return session

    async def _run(self, operation: Operation[T]) -> T:
        return await self._opened().run(operation)


_inherited: Final[list[_Sessions]] = []
"""Those of a parent process, which a child must not end: they share its sockets."""
