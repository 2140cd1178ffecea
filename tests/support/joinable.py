"""A store whose entries change in transactions of callers' own: a small database over any store.

It is what the rules of a joined run are tested on, blocking and awaited: rows of a ledger and
entries commit together, an entry that one transaction has changed keeps the others waiting, and a
block is a savepoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs

from kvreplay import ConfigError, InFlightError, KeyNotFoundError
from kvreplay.store import AsyncJoinedTransaction, JoinedTransaction

__all__ = ["Connection", "JoinableStore"]

Address = tuple[str, str, str]


@attrs.define
class _Level:
    """What was changed since a savepoint."""

    entries: dict[Address, tuple[bytes | None, int | None]] = attrs.field(factory=dict)
    rows: list[Any] = attrs.field(factory=list)


class Connection:
    """What a caller has: one transaction at a time, in which it inserts rows."""

    def __init__(self, store: JoinableStore) -> None:
        self.store = store
        self.levels: list[_Level] = []

    def begin(self) -> Connection:
        assert not self.levels
        self.levels = [_Level()]
        return self

    def insert(self, row: Any) -> None:
        self.levels[-1].rows.append(row)

    def commit(self) -> None:
        levels, self.levels = self.levels, []
        for level in levels:
            self.store.rows += level.rows
            for address, (value, expires_at) in level.entries.items():
                self.store.put(address, value, expires_at)
        self.store.unlock(self)

    def rollback(self) -> None:
        self.levels = []
        self.store.unlock(self)


class JoinableStore:
    """A JoinableKVStore, and an AsyncJoinableKVStore as ``awaited``, over an atomic store."""

    sees_commits = True

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.rows: list[Any] = []
        self.locked: dict[Address, Connection] = {}
        self.changed = threading.Condition()
        self.awaited = Awaited(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def connect(self) -> Connection:
        return Connection(self)

    def transaction(self) -> Any:
        return self.inner.transaction()

    @contextlib.contextmanager
    def join(self, connection: Any, *, lock_timeout: float | None) -> Iterator[JoinedTransaction]:
        if not isinstance(connection, Connection) or not connection.levels:
            raise ConfigError("the connection has no transaction open; nothing ran")
        connection.levels.append(_Level())
        depth = len(connection.levels)
        try:
            yield Joined(self, connection, lock_timeout)
        except BaseException:
            del connection.levels[depth - 1 :]
            raise
        assert len(connection.levels) == depth
        above = connection.levels.pop()
        connection.levels[-1].entries |= above.entries
        connection.levels[-1].rows += above.rows

    def put(self, address: Address, value: bytes | None, expires_at: int | None) -> None:
        found = self.found(address)
        put = self.inner.check_and_put
        assert put(*address, expected=found, value=value, expires_at=expires_at) == found

    def found(self, address: Address) -> bytes | None:
        try:
            value: bytes = self.inner.read(*address)
        except KeyNotFoundError:
            return None
        return value

    def lock(self, address: Address, connection: Connection, timeout: float | None) -> None:
        with self.changed:
            if not self.changed.wait_for(
                lambda: self.locked.get(address, connection) is connection, timeout
            ):
                raise InFlightError("another transaction has changed the entry", 1.0)
            self.locked[address] = connection

    def unlock(self, connection: Connection) -> None:
        with self.changed:
            for address, owner in list(self.locked.items()):
                if owner is connection:
                    del self.locked[address]
            self.changed.notify_all()


class Joined:
    """A caller's transaction, during a block."""

    def __init__(
        self, store: JoinableStore, connection: Connection, lock_timeout: float | None
    ) -> None:
        self.sees_commits = store.sees_commits
        self._store = store
        self._connection = connection
        self._until = None if lock_timeout is None else time.monotonic() + lock_timeout

    def _found(self, address: Address) -> bytes | None:
        for level in reversed(self._connection.levels):
            if address in level.entries:
                return level.entries[address][0]
        return self._store.found(address)

    def read(self, *address: str) -> bytes:
        found = self._found(address)  # type: ignore[arg-type]
        if found is None:
            raise KeyNotFoundError("no entry under that name")
        return found

    def check_and_put(
        self,
        *address: str,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        left = None if self._until is None else max(self._until - time.monotonic(), 0)
        self._store.lock(address, self._connection, left)  # type: ignore[arg-type]
        if not self._connection.levels:
            return None  # the handler has ended the transaction
        found = self._found(address)  # type: ignore[arg-type]
        if found == expected:
            entries = self._connection.levels[-1].entries
            entries[address] = value, expires_at  # type: ignore[index]
        return found

    def undo(self) -> None:
        self._connection.levels[-1] = _Level()


class Awaited:
    """The same, awaited."""

    def __init__(self, store: JoinableStore) -> None:
        self._store = store

    async def read(self, *address: str) -> bytes:
        value: bytes = self._store.read(*address)
        return value

    async def write(self, *args: Any) -> None:
        self._store.write(*args)

    async def remove(self, *args: Any, **options: Any) -> None:
        self._store.remove(*args, **options)

    async def list(self, *namespace: str) -> Any:
        return self._store.list(*namespace)

    async def list_all_keys(self) -> AsyncIterator[Address]:
        for each in self._store.list_all_keys():
            yield each

    async def check_and_put(self, *address: str, **change: Any) -> Any:
        return self._store.check_and_put(*address, **change)

    async def sweep(self, *args: Any) -> Any:
        return self._store.sweep(*args)

    def transaction(self) -> Any:
        raise AssertionError("not needed")

    @contextlib.asynccontextmanager
    async def join(
        self, connection: Any, *, lock_timeout: float | None
    ) -> AsyncIterator[AsyncJoinedTransaction]:
        with self._store.join(connection, lock_timeout=lock_timeout) as joined:
            yield AwaitedJoined(joined)  # type: ignore[misc]


class AwaitedJoined:
    def __init__(self, joined: Any) -> None:
        self._joined = joined
        self.sees_commits = joined.sees_commits

    async def read(self, *address: str) -> bytes:
        value: bytes = self._joined.read(*address)
        return value

    async def check_and_put(self, *address: str, **change: Any) -> Any:
        return await asyncio.to_thread(self._joined.check_and_put, *address, **change)

    async def undo(self) -> None:
        self._joined.undo()
