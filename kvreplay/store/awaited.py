"""The store contract, awaited: for engines whose driver is asynchronous by nature.

Each protocol has the names, arguments, promises and errors of its blocking twin in
:mod:`kvreplay.store.contract`. A call that is cancelled may have taken effect or not. When it has
come back, it takes effect no more.

A blocking store may offer such a twin of itself as its attribute ``awaited``. It shows the same
entries, and belongs to the store: to close the store closes it too. ``AsyncReplay`` then uses the
twin, and needs no thread for a request. It also takes a store that is only asynchronous.

A class that overrides calls of such a store overrides ``awaited`` too. A wrapper that passes on
what it lacks, by ``__getattr__``, has no twin for ``AsyncReplay``: its own calls would be left out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from kvreplay.store.contract import Entry, JoinedState, Page, PageWithValues, SweepResult

__all__ = [
    "AsyncAtomicKVStore",
    "AsyncExpiringKVStore",
    "AsyncInspectableKVStore",
    "AsyncJoinableKVStore",
    "AsyncJoinedTransaction",
    "AsyncKVStore",
    "AsyncKVTransaction",
    "AsyncMigratableKVStore",
    "AsyncPaginatedKVStore",
    "AsyncTransactionalKVStore",
]


@runtime_checkable
class AsyncKVStore(Protocol):
    """As :class:`~kvreplay.KVStoreSync`. LDK's asynchronous twin is called ``KVStore``.

    Unlike there, two changes of one key take effect in the order of their calls only if the first
    was awaited before the second was made.
    """

    async def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """As :meth:`kvreplay.KVStoreSync.read`."""
        ...

    async def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """As :meth:`kvreplay.KVStoreSync.write`."""

    async def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """As :meth:`kvreplay.KVStoreSync.remove`."""

    async def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """As :meth:`kvreplay.KVStoreSync.list`."""
        ...


@runtime_checkable
class AsyncMigratableKVStore(AsyncKVStore, Protocol):
    """As :class:`~kvreplay.MigratableKVStore`."""

    def list_all_keys(self) -> AsyncIterator[tuple[str, str, str]]:
        """As :meth:`kvreplay.MigratableKVStore.list_all_keys`, for ``async for``."""
        ...


@runtime_checkable
class AsyncAtomicKVStore(AsyncMigratableKVStore, Protocol):
    """As :class:`~kvreplay.AtomicKVStore`: what ``AsyncReplay`` needs."""

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
        """As :meth:`kvreplay.AtomicKVStore.check_and_put`."""


@runtime_checkable
class AsyncExpiringKVStore(AsyncAtomicKVStore, Protocol):
    """As :class:`~kvreplay.ExpiringKVStore`."""

    async def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """As :meth:`kvreplay.ExpiringKVStore.sweep`."""
        ...


@runtime_checkable
class AsyncInspectableKVStore(AsyncExpiringKVStore, Protocol):
    """As :class:`~kvreplay.InspectableKVStore`."""

    async def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """As :meth:`kvreplay.InspectableKVStore.read_entry`."""
        ...


@runtime_checkable
class AsyncPaginatedKVStore(AsyncMigratableKVStore, Protocol):
    """As :class:`~kvreplay.PaginatedKVStore`."""

    async def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """As :meth:`kvreplay.PaginatedKVStore.list_paginated`."""
        ...

    async def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """As :meth:`kvreplay.PaginatedKVStore.list_paginated_with_values`."""
        ...


class AsyncKVTransaction(Protocol):
    """As :class:`~kvreplay.KVTransaction`."""

    async def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """As :meth:`kvreplay.KVTransaction.read`."""
        ...

    async def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """As :meth:`kvreplay.KVTransaction.write`."""

    async def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """As :meth:`kvreplay.KVTransaction.remove`."""

    async def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """As :meth:`kvreplay.KVTransaction.list`."""
        ...

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
        """As :meth:`kvreplay.KVTransaction.check_and_put`."""


@runtime_checkable
class AsyncTransactionalKVStore(AsyncExpiringKVStore, Protocol):
    """As :class:`~kvreplay.TransactionalKVStore`, for ``async with``."""

    def transaction(self) -> AbstractAsyncContextManager[AsyncKVTransaction]:
        """As :meth:`kvreplay.TransactionalKVStore.transaction`; it belongs to one task."""
        ...


class AsyncJoinedTransaction(AsyncKVTransaction, JoinedState, Protocol):
    """As :class:`~kvreplay.store.JoinedTransaction`."""

    async def undo(self) -> None:
        """As :meth:`kvreplay.store.JoinedTransaction.undo`."""


@runtime_checkable
class AsyncJoinableKVStore(AsyncTransactionalKVStore, Protocol):
    """As :class:`~kvreplay.JoinableKVStore`, on an asynchronous connection."""

    def join(
        self, connection: object, *, lock_timeout: float | None
    ) -> AbstractAsyncContextManager[AsyncJoinedTransaction]:
        """As :meth:`kvreplay.JoinableKVStore.join`."""
        ...
