"""Asynchronous stores: a small one of its own, and any engine with an awaited twin."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import attrs

from kvreplay.errors import KeyNotFoundError, StoreError
from kvreplay.store import (
    Entry,
    ForkSafeLock,
    SweepResult,
    check_change,
    check_name,
    check_namespace,
    check_sweep,
    check_value,
    closed_error,
)

__all__ = ["Awaited", "AwaitedStore", "WithTwin"]

Address = tuple[str, str, str]
Entries = dict[Address, Entry]


class AwaitedStore:
    """A dictionary behind awaits, for any number of loops and tasks.

    Each call waits before and after what it does, so that others come in between, and a
    cancellation may come on either side. What it does is one step.
    """

    def __init__(self) -> None:
        self.entries: Entries = {}
        self._lock = ForkSafeLock()  # between the threads of several loops, for moments
        self._owner: asyncio.Task[Any] | None = None  # whose transaction is open
        self._closed = False

    async def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        return (await self.read_entry(primary_namespace, secondary_namespace, key)).value

    async def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        check_name(primary_namespace, secondary_namespace, key)
        await self._arrive()
        found = self.entries.get((primary_namespace, secondary_namespace, key))
        await self.pause()
        return _there(found)

    async def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        address = primary_namespace, secondary_namespace, key
        check_name(*address)
        check_value(value)
        await self._change(lambda: self.entries.update({address: Entry(value, None)}))

    async def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        address = primary_namespace, secondary_namespace, key
        check_name(*address)
        await self._change(lambda: self.entries.pop(address, None))

    async def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        check_namespace(primary_namespace, secondary_namespace)
        await self._arrive()
        return _keys(self.entries, primary_namespace, secondary_namespace)

    async def list_all_keys(self) -> AsyncIterator[Address]:
        await self._arrive()
        for address in list(self.entries):
            yield address
            await self._arrive()

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
        address = primary_namespace, secondary_namespace, key
        check_name(*address)
        check_change(expected, value, expires_at)
        return await self._change(lambda: _put(self.entries, address, expected, value, expires_at))

    async def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        check_sweep(primary_namespace, now, limit)

        def drop() -> SweepResult:
            due = [
                address
                for address, entry in self.entries.items()
                if address[0] == primary_namespace
                and entry.expires_at is not None
                and entry.expires_at <= now
            ]
            for address in due[:limit]:
                del self.entries[address]
            return SweepResult(len(due[:limit]), len(due[:limit]), more=len(due) > limit)

        return await self._change(drop)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[_Transaction]:
        task = asyncio.current_task()
        assert task is not None
        self._refuse_own_transaction()
        transaction = _Transaction(task)
        try:
            await self._change(lambda: self._begin(transaction))
            yield transaction
            await self.pause()  # a cancellation here undoes it,
            self.entries = transaction.entries
            await self.pause()  # and here it is committed
        finally:
            transaction.is_over = True
            if self._owner is task:
                self._owner = None

    def _begin(self, transaction: _Transaction) -> None:
        self._owner, transaction.entries = transaction.task, dict(self.entries)

    async def pause(self) -> None:
        """Let others come in between."""
        await asyncio.sleep(0)

    async def close(self) -> None:
        self._refuse_own_transaction()
        with contextlib.suppress(StoreError):  # another task has closed it meanwhile
            await self._turn()
        self._closed = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _arrive(self) -> None:
        self._check_open()
        await self.pause()
        self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()

    def _refuse_own_transaction(self) -> None:
        if self._owner is not None and self._owner is asyncio.current_task():
            raise StoreError("this task's transaction is open; nothing was changed")

    async def _turn(self) -> None:
        """Wait until no transaction of another task is open."""
        await self._arrive()
        while self._owner is not None:
            self._refuse_own_transaction()
            await asyncio.sleep(0.001)
            self._check_open()

    async def _change(self, change: Callable[[], Any]) -> Any:
        while True:
            await self._turn()
            with self._lock:
                if self._owner is None:
                    found = change()
                    break
        await self.pause()
        return found


@attrs.define
class _Transaction:
    """The calls in a transaction, on a copy of the entries."""

    task: asyncio.Task[Any]
    entries: Entries = attrs.field(factory=dict)
    is_over: bool = False

    def check(self) -> None:
        if self.is_over or asyncio.current_task() is not self.task:
            raise StoreError("the transaction is over, or another task's; nothing was changed")

    async def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        self.check()
        check_name(primary_namespace, secondary_namespace, key)
        return _there(self.entries.get((primary_namespace, secondary_namespace, key))).value

    async def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        self.check()
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        self.entries[primary_namespace, secondary_namespace, key] = Entry(value, None)

    async def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        self.check()
        check_name(primary_namespace, secondary_namespace, key)
        self.entries.pop((primary_namespace, secondary_namespace, key), None)

    async def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        self.check()
        check_namespace(primary_namespace, secondary_namespace)
        return _keys(self.entries, primary_namespace, secondary_namespace)

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
        self.check()
        address = primary_namespace, secondary_namespace, key
        check_name(*address)
        check_change(expected, value, expires_at)
        return _put(self.entries, address, expected, value, expires_at)


def _there(found: Entry | None) -> Entry:
    if found is None:
        raise KeyNotFoundError("no entry under that name")
    return found


def _keys(entries: Entries, primary: str, secondary: str) -> list[str]:
    return [key for p, s, key in list(entries) if (p, s) == (primary, secondary)]


def _put(
    entries: Entries,
    address: Address,
    expected: bytes | None,
    value: bytes | None,
    expires_at: int | None,
) -> bytes | None:
    entry = entries.get(address)
    found = None if entry is None else entry.value
    if found == expected:
        if value is None:
            entries.pop(address, None)
        else:
            entries[address] = Entry(value, expires_at)
    return found


class Awaited:
    """The calls of a blocking store, awaited, on the loop's own thread; it has no ``transaction``.

    As in :class:`AwaitedStore`, each call waits before and after what it does.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name not in ("read", "write", "remove", "list", "check_and_put", "sweep", "read_entry"):
            raise AttributeError(name)
        call = getattr(self.inner, name)

        async def awaited(*args: Any, **options: Any) -> Any:
            await asyncio.sleep(0)
            found = call(*args, **options)
            await asyncio.sleep(0)
            return found

        return awaited

    async def list_all_keys(self) -> AsyncIterator[Address]:
        for address in self.inner.list_all_keys():
            await asyncio.sleep(0)
            yield address


class WithTwin:
    """A blocking store that offers its awaited twin."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.awaited = Awaited(inner)
        self.identity = getattr(inner, "identity", None) or id(inner)

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.inner.close()
