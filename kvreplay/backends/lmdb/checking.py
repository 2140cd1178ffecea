"""What is wrong with an LMDB store: its entries against its indexes, and the other way round.

An entry and its places in the indexes change in one transaction, and a page is looked at in one
snapshot. So nothing looks wrong because of somebody who writes meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import lmdb

from kvreplay.backends.lmdb import entries
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.store import Fault

__all__ = ["in_entries", "in_expiry"]

Found = tuple[list[Fault], bytes | None]
"""Faults, and where the next page starts; ``None``: there is none."""


def in_entries(handle: Handle, start: bytes, txn: Transaction) -> Found:
    """Return what is wrong with a page of entries."""
    faults = list[Fault]()
    with txn.cursor(handle.entries) as cursor:
        count = 0
        for key, stored in _page(cursor, start):
            count += 1
            (address,) = entries.addresses_in([key])
            if address is not None:  # else another program has put it there, and nobody sees it
                faults += (Fault(address, what) for what in _wrong(handle, key, stored, txn))
        return faults, _next(cursor, count)


def _wrong(handle: Handle, key: bytes, stored: bytes, txn: Transaction) -> Iterator[str]:
    if len(stored) < entries.HEAD:
        yield "the entry is too short: it cannot be read"
        return
    created = txn.get(entries.created_key(key, stored), None, handle.files.created)
    if created != key.rpartition(b"\0")[2]:
        yield "the index of creations lacks the entry: no page shows it"
    if entries.creation_of(stored) > entries.last_creation(handle, txn):
        yield "the number of its creation was not given yet: another entry will get it too"
    if entries.expiry_of(stored) is not None:
        index = entries.index_key(key, entries.stamp_of(stored))
        if txn.get(index, None, handle.expiry) is None:
            yield "the expiry index lacks the entry: no sweep removes it"


def in_expiry(handle: Handle, start: bytes, txn: Transaction) -> Found:
    """Return what is wrong with a page of the expiry index."""
    faults = list[Fault]()
    with txn.cursor(handle.expiry) as cursor:
        count = 0
        for index, _ in _page(cursor, start):
            count += 1
            key, stamp = entries.entry_in(index)
            stored = txn.get(key, None, handle.entries)
            if stored is None or entries.stamp_of(stored) != stamp:
                (address,) = entries.addresses_in([key])
                faults.append(
                    Fault(address, "the expiry index has it at a time that is not its own")
                )
        return faults, _next(cursor, count)


def _page(cursor: lmdb.Cursor[bytes], start: bytes) -> Iterator[tuple[bytes, bytes]]:
    found = cursor.set_range(start) if start else cursor.first()
    return islice(cursor, entries.PAGE) if found else iter(())


def _next(cursor: lmdb.Cursor[bytes], count: int) -> bytes | None:
    return cursor.key() if count == entries.PAGE and cursor.next() else None
