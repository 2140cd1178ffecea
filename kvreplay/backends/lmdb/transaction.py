"""A store's calls inside a caller's transaction on LMDB."""

from __future__ import annotations

from functools import partial

from kvreplay.backends.lmdb import entries
from kvreplay.backends.lmdb.environment import Block, Environment
from kvreplay.errors import KeyNotFoundError
from kvreplay.store import KVTransaction, check_change, check_namespace, check_value

__all__ = ["calls_in"]


def calls_in(store: object, environment: Environment, block: Block) -> KVTransaction:
    """Return what a caller's block is given.

    Args:
        store: whose transaction it is. It is held, so that it is not closed by its deletion.
    """
    return _Transaction(store, environment, block)


class _Transaction:
    def __init__(self, store: object, environment: Environment, block: Block) -> None:
        self._store = store
        self._handle = environment.handle
        self._run = block.run

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        stored = self._run(lambda txn: txn.get(entry, None, self._handle.entries))
        if stored is None:
            raise KeyNotFoundError("no entry under that name")
        return stored[entries.HEAD :] or entries.empty_value(stored, self._handle)

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        check_value(value)
        self._run(partial(entries.put, self._handle, entry, value))

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        self._run(partial(entries.delete, self._handle, entry))

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        check_namespace(primary_namespace, secondary_namespace)
        prefix = entries.prefix_of(primary_namespace, secondary_namespace)
        keys = self._run(partial(entries.keys_from, self._handle, prefix, prefix, None))
        return entries.names_in(prefix, keys)

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
        entry = entries.entry_key(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        return self._run(
            partial(entries.check_and_put, self._handle, entry, expected, value, expires_at)
        )
