"""What is wrong with an LMDB store: its entries against its indexes, and the other way round.

An entry and its places in the indexes change in one transaction, and a page is looked at in one
snapshot. So nothing looks wrong because of somebody who writes meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import attrs
import lmdb

from kvreplay.backends.lmdb import entries
from kvreplay.backends.lmdb.handle import Handle, Transaction
from kvreplay.store import Fault

__all__ = ["in_entries", "in_expiry", "of_expiry"]

Item = tuple[bytes, bytes]


@attrs.frozen
class Page:
    """What was found on a page.

    Attributes:
        next: where the next page starts; ``None``: there is none.
        expiring: how many of its entries have an expiry.
        snapshot: the last transaction that it shows.
    """

    faults: list[Fault]
    next: bytes | None
    expiring: int = 0
    snapshot: int = 0


def in_entries(handle: Handle, start: bytes, txn: Transaction) -> Page:
    """Look at a page of entries."""
    with txn.cursor(handle.entries) as cursor:
        items = _page(cursor, start)
        suspects, expiring = _suspects(handle, items, txn)
        faults = _faults(suspects, lambda item: _in_entry(handle, *item, txn))
        return Page(faults, _next(cursor, items), expiring, txn.id())


def _suspects(handle: Handle, items: list[Item], txn: Transaction) -> tuple[list[Item], int]:
    """Return the entries that are not plainly sound, and how many of all have an expiry."""
    get, created, expiry = txn.get, handle.files.created, handle.expiry
    last, expiring = entries.last_creation(handle, txn), 0
    suspects = []
    for item in items:
        key, stored = item
        stamp = entries.stamp_of(stored)
        expires = stamp != entries.NEVER
        expiring += expires
        if not (  # quick way, for _wrong(): bench_inspection
            len(stored) >= entries.HEAD
            and entries.creation_of(stored) <= last
            and get(entries.created_key(key, stored), None, created) == key.rpartition(b"\0")[2]
            and not (expires and get(entries.index_key(key, stamp), None, expiry) is None)
        ):
            suspects.append(item)
    return suspects, expiring


def in_expiry(handle: Handle, start: bytes, txn: Transaction) -> Page:
    """Look at a page of the expiry index."""
    with txn.cursor(handle.expiry) as cursor:
        items = _page(cursor, start)
        faults = _faults(items, lambda item: _in_item(handle, item[0], txn))
        return Page(faults, _next(cursor, items))


def of_expiry(handle: Handle, txn: Transaction) -> tuple[int, int]:
    """Return how many items the expiry index has, and the last transaction that this shows."""
    return txn.stat(handle.expiry)["entries"], txn.id()


def _faults(items: list[Item], look: Callable[[Item], Iterator[Fault]]) -> list[Fault]:
    return [fault for item in items for fault in look(item)]


def _in_entry(handle: Handle, key: bytes, stored: bytes, txn: Transaction) -> Iterator[Fault]:
    (address,) = entries.addresses_in([key])
    if address is not None:  # else another program has put it there, and nobody sees it
        for what in _wrong(handle, key, stored, txn):
            yield Fault(address, what)


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


def _in_item(handle: Handle, index: bytes, txn: Transaction) -> Iterator[Fault]:
    key, stamp = entries.entry_in(index)
    stored = txn.get(key, None, handle.entries)
    if stored is None or entries.stamp_of(stored) != stamp:
        (address,) = entries.addresses_in([key])
        yield Fault(address, "the expiry index has it at a time that is not its own")


def _page(cursor: lmdb.Cursor[bytes], start: bytes) -> list[Item]:
    found = cursor.set_range(start) if start else cursor.first()
    return list(islice(cursor, entries.PAGE)) if found else []


def _next(cursor: lmdb.Cursor[bytes], items: list[Item]) -> bytes | None:
    return cursor.key() if len(items) == entries.PAGE and cursor.next() else None
