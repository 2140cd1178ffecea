"""Copy a store that has no backup of its own, such as one on a server, into an SQLite store."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from typing import Any, Final

from kvreplay._inspection.entries import Address, entries_of
from kvreplay.config.registry import OpenTransactionalStore, open_store
from kvreplay.store import Entry, KVTransaction

__all__ = ["copy_to_sqlite"]

_BATCH: Final = 1000  # entries


def copy_to_sqlite(store: Any, path: str) -> None:
    """Copy every entry with its expiry into a new SQLite store at a path where nothing is.

    Others may write meanwhile: each entry is as it was at some moment during the call. The copy is
    durable once this returns. If this fails or is killed, nothing is at the path, but perhaps a
    sibling of it that ends in ``.tmp``.

    Raises:
        ConfigError: something is there.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{name}.", suffix=".tmp") as aside:
        draft = {"backend": "sqlite", "path": os.path.join(aside, "store")}
        with open_store({**draft, "durability": "process"}, transactional=True) as copy:
            _fill(copy, entries_of(store))
            copy.backup(path)  # type: ignore[attr-defined]  # an SQLite store has it


def _fill(copy: OpenTransactionalStore, entries: Iterator[tuple[Address, Entry]]) -> None:
    while batch := list(itertools.islice(entries, _BATCH)):
        with copy.transaction() as transaction:
            _put(transaction, batch)


def _put(transaction: KVTransaction, batch: list[tuple[Address, Entry]]) -> None:
    for address, entry in batch:
        transaction.check_and_put(
            *address, expected=None, value=entry.value, expires_at=entry.expires_at
        )
