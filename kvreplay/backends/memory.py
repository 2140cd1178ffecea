"""Entries in this process's memory: for tests, and for a node that accepts to forget.

Atomic against every thread of the process, transactional, expiring; gone with the process.
A forked child goes on with a copy of its own.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import ClassVar, Self

from kvreplay.errors import KeyNotFoundError, StoreError
from kvreplay.store import (
    ForkSafeLock,
    KVTransaction,
    SweepResult,
    ThreadBound,
    check_change,
    check_name,
    check_namespace,
    check_sweep,
    check_value,
)

__all__ = ["MemoryStore"]

Address = tuple[str, str, str]
Entry = tuple[bytes, int | None]  # value, expires_at


class MemoryStore:
    """A dictionary behind a lock that holds bytes.

    A change is visible to every thread when its call returns.
    """

    OPTIONS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}
    LOCATION: ClassVar[str] = "none"
    reads_are_local: ClassVar[bool] = True

    def __init__(self) -> None:
        self._namespaces: dict[tuple[str, str], dict[str, Entry]] = {}
        # Per primary namespace, sorted: (expires_at, secondary namespace, key), one an entry.
        self._expiry: dict[str, list[tuple[int, str, str]]] = {}
        self._writer = ForkSafeLock()  # one change at a time, for a whole transaction
        self._state = ForkSafeLock(brief=True)  # guards the two dictionaries, for moments
        self._closed = False

    def __repr__(self) -> str:
        return f"<MemoryStore {'closed' if self._closed else 'open'}>"

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        check_name(primary_namespace, secondary_namespace, key)
        self._check_open()
        with self._state:
            return _value(self._find((primary_namespace, secondary_namespace, key)))

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        with self._writing(), self._state:
            self._put((primary_namespace, secondary_namespace, key), (value, None))

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`."""
        check_name(primary_namespace, secondary_namespace, key)
        with self._writing(), self._state:
            self._delete((primary_namespace, secondary_namespace, key))

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys; see :meth:`kvreplay.KVStoreSync.list`."""
        check_namespace(primary_namespace, secondary_namespace)
        self._check_open()
        with self._state:
            return list(self._namespaces.get((primary_namespace, secondary_namespace), ()))

    def list_all_keys(self) -> Iterator[Address]:
        """Yield every address, from one consistent copy of each namespace's keys."""
        self._check_open()
        with self._state:
            namespaces = list(self._namespaces)
        return ((*each, key) for each in namespaces for key in self.list(*each))

    def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        """Compare and put; see :meth:`kvreplay.AtomicKVStore.check_and_put`."""
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        address = (primary_namespace, secondary_namespace, key)
        with self._writing(), self._state:
            entry = self._find(address)
            found = None if entry is None else entry[0]
            if found == expected:
                self._apply(address, None if value is None else (value, expires_at))
            return found

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries; see :meth:`kvreplay.ExpiringKVStore.sweep`."""
        check_sweep(primary_namespace, now, limit)
        with self._writing(), self._state:
            index = self._expiry.get(primary_namespace, [])
            due = bisect.bisect_right(index, now, key=lambda entry: entry[0])
            visited = index[: min(due, limit)]
            removed = 0
            for expires_at, secondary, key in visited:
                entry = self._find((primary_namespace, secondary, key))
                if entry is not None and entry[1] == expires_at:
                    self._drop((primary_namespace, secondary, key))
                    removed += 1
            del index[: len(visited)]
            if not index:
                self._expiry.pop(primary_namespace, None)
            return SweepResult(len(visited), removed, more=due > limit)

    def transaction(self) -> AbstractContextManager[KVTransaction]:
        """All or nothing; see :meth:`kvreplay.TransactionalKVStore.transaction`."""
        self._check_open()
        return ThreadBound(self._transaction())

    def close(self) -> None:
        """Forget everything; a second call does nothing."""
        self._refuse_own_transaction()
        with self._writer, self._state:
            self._closed = True
            self._namespaces = {}
            self._expiry = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[KVTransaction]:
        with self._writing():
            transaction = _Transaction(self)
            try:
                yield transaction
                with self._state:
                    for address, entry in transaction.changes.items():
                        self._apply(address, entry)
            finally:
                transaction.ended = True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._refuse_own_transaction()
        with self._writer:
            self._check_open()
            yield

    def _refuse_own_transaction(self) -> None:
        if self._writer.is_mine:
            raise StoreError(
                "this thread holds a transaction of this store: change it through the"
                " transaction; nothing was changed"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("this store is closed; nothing was done")

    def _find(self, address: Address) -> Entry | None:
        namespace = self._namespaces.get(address[:2])
        return None if namespace is None else namespace.get(address[2])

    def _apply(self, address: Address, entry: Entry | None) -> None:
        if entry is None:
            self._delete(address)
        else:
            self._put(address, entry)

    def _put(self, address: Address, entry: Entry) -> None:
        # In this order an interrupt leaves at most an index entry too many, which a sweep skips.
        old = self._find(address)
        if entry[1] is not None:
            bisect.insort(self._expiry.setdefault(address[0], []), (entry[1], *address[1:]))
        self._namespaces.setdefault(address[:2], {})[address[2]] = entry
        self._unindex(address, old)

    def _delete(self, address: Address) -> None:
        old = self._find(address)
        if old is not None:
            self._drop(address)
            self._unindex(address, old)

    def _drop(self, address: Address) -> None:
        keys = self._namespaces[address[:2]]
        del keys[address[2]]
        if not keys:
            del self._namespaces[address[:2]]

    def _unindex(self, address: Address, old: Entry | None) -> None:
        if old is not None and old[1] is not None:
            index = self._expiry[address[0]]
            del index[bisect.bisect_left(index, (old[1], *address[1:]))]
            if not index:
                del self._expiry[address[0]]


class _Transaction:
    """Changes kept aside until the block ends; the store's lock is held meanwhile."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._thread = threading.get_ident()
        self.changes: dict[Address, Entry | None] = {}
        self.ended = False

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        check_name(primary_namespace, secondary_namespace, key)
        return _value(self._find((primary_namespace, secondary_namespace, key)))

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        self._check_usable()
        self.changes[primary_namespace, secondary_namespace, key] = (value, None)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        self._check_usable()
        self.changes[primary_namespace, secondary_namespace, key] = None

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        check_namespace(primary_namespace, secondary_namespace)
        self._check_usable()
        namespace = (primary_namespace, secondary_namespace)
        keys = dict.fromkeys(self._store._namespaces.get(namespace, ()))
        for address, entry in self.changes.items():
            if address[:2] == namespace:
                if entry is None:
                    keys.pop(address[2], None)
                else:
                    keys[address[2]] = None
        return list(keys)

    def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        address = (primary_namespace, secondary_namespace, key)
        entry = self._find(address)
        found = None if entry is None else entry[0]
        if found == expected:
            self.changes[address] = None if value is None else (value, expires_at)
        return found

    def _find(self, address: Address) -> Entry | None:
        self._check_usable()
        if address in self.changes:
            return self.changes[address]
        return self._store._find(address)

    def _check_usable(self) -> None:
        if self.ended:
            raise StoreError("this transaction has ended; nothing was done")
        if self._thread != threading.get_ident():
            raise StoreError("a transaction belongs to the thread that began it; nothing was done")


def _value(entry: Entry | None) -> bytes:
    if entry is None:
        raise KeyNotFoundError("no entry under that name")
    return entry[0]
