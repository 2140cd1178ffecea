"""The calls of a transaction, for both kinds of transactions and of drivers."""

from __future__ import annotations

from typing import TypeVar

from kvreplay.backends.postgresql.operations import Operation, Operations

__all__ = ["AsyncCalls", "Calls"]

T = TypeVar("T")


class Calls:
    """A :class:`~kvreplay.KVTransaction`."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def _run(self, operation: Operation[T]) -> T:
        raise NotImplementedError  # each kind says its statements in its own way

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value, with this transaction's changes."""
        return self._run(self._operations.read(primary_namespace, secondary_namespace, key))

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace, if the transaction commits."""
        self._run(self._operations.write(primary_namespace, secondary_namespace, key, value))

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present, if the transaction commits."""
        self._run(self._operations.remove(primary_namespace, secondary_namespace, key, False))

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys, with this transaction's changes."""
        return self._run(self._operations.list(primary_namespace, secondary_namespace))

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
        """Compare and put, if the transaction commits."""
        return self._run(
            self._operations.check_and_put(
                primary_namespace, secondary_namespace, key, expected, value, expires_at
            )
        )


class AsyncCalls:
    """An :class:`~kvreplay.AsyncKVTransaction`."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def _run(self, operation: Operation[T]) -> T:
        raise NotImplementedError  # each kind says its statements in its own way

    async def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value, with this transaction's changes."""
        return await self._run(self._operations.read(primary_namespace, secondary_namespace, key))

    async def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace, if the transaction commits."""
        await self._run(self._operations.write(primary_namespace, secondary_namespace, key, value))

    async def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present, if the transaction commits."""
        await self._run(self._operations.remove(primary_namespace, secondary_namespace, key, False))

    async def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys, with this transaction's changes."""
        return await self._run(self._operations.list(primary_namespace, secondary_namespace))

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
        """Compare and put, if the transaction commits."""
        return await self._run(
            self._operations.check_and_put(
                primary_namespace, secondary_namespace, key, expected, value, expires_at
            )
        )
