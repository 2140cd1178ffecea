"""Entries in this process's memory: for tests, and for a node that may forget.

Atomic against every thread of the process, transactional, expiring; gone with the process.
A forked child goes on with a copy of its own.

What is always true:

* A change of one entry is made under ``_writer``, which is held for moments. Hardly anything but
  operators is used under it: after them CPython gives the interpreter to no other thread, so a
  crowd does not queue for this lock.
* What takes longer, a sweep or a transaction, has the ``_turn``. While it goes on, ``_alone`` is
  set, and no other change is made. That is set under ``_writer``, so no change is half made then.
* A transaction commits when its changes become ``_pending``. After that its own thread puts them
  in place. If that thread is interrupted, or a fork leaves it behind, the next change does so.
* Readers take no lock. They look at ``_pending`` first, so they see all of a transaction or none.
* The entries are sound after each step of a change. At most, the expiry index has an item too
  many, which a sweep skips.
* An entry that expires is in the index: in its sorted part, or among what the next sweep sorts in.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import ClassVar, Final, TypeVar

from kvreplay.backends._support import (
    OwnTransaction,
    check_create,
    nested_call_error,
    own_transaction_error,
)
from kvreplay.errors import (
    KeyNotFoundError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from kvreplay.store import (
    Closing,
    Entry,
    ForkSafeLock,
    KVTransaction,
    Page,
    PageWithValues,
    SweepResult,
    ThreadBound,
    check_change,
    check_name,
    check_namespace,
    check_page,
    check_sweep,
    check_value,
    closed_error,
    page_token,
    place_of,
)
from kvreplay.store.locks import ProcessMark, this_process

__all__ = ["MemoryStore"]

T = TypeVar("T")
Address = tuple[str, str, str]
Keyed = list[tuple[str, "Stored"]]
Stored = tuple[bytes, int | None, int]  # value, expires_at, the number of its creation
Item = tuple[int, str, str]  # of the expiry index: expires_at, secondary namespace, key

_ANY: Final = object()  # whatever is there
_BUSY: Final = object()  # a sweep or a transaction goes on
_MANY: Final = 16  # times as many items are sorted anew sooner than that each is put in its place


class MemoryStore(Closing):
    """A dictionary that holds bytes.

    A change is visible to every thread when its call returns.

    Args:
        create: a store in memory is always a new one, so ``False`` refuses it.

    Raises:
        StoreNotFoundError: ``create`` is false.
    """

    OPTIONS: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"create": "boolean"}
    LOCATION: ClassVar[str] = "none"
    reads_are_local: ClassVar[bool] = True

    def __init__(self, *, create: bool = True) -> None:
        check_create(create)
        if not create:
            raise StoreNotFoundError(
                "a store in memory begins empty whenever it is opened, so with create=False there"
                " is none: leave create out, or choose a backend that keeps its entries"
            )
        self._namespaces: dict[tuple[str, str], dict[str, Stored]] = {}
        # The expiry index, per primary namespace.
        self._expiry: dict[str, list[Item]] = {}  # sorted
        self._unsorted: dict[str, dict[Item, None]] = {}
        self._pending: dict[Address, Stored | None] = {}
        self._created = 0  # the latest number; one may be lost, and none is given twice
        self._writer = ForkSafeLock()
        self._turn = ForkSafeLock()
        self._alone: ProcessMark | None = None  # of the process in which a longer change goes on
        self._transaction: _Transaction | None = None  # the one that is open

    def __repr__(self) -> str:
        return f"<MemoryStore {'closed' if self._closed else 'open'}>"

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        """Return the value; see :meth:`kvreplay.KVStoreSync.read`."""
        check_name(primary_namespace, secondary_namespace, key)
        self._check_open()
        return _found(self._committed((primary_namespace, secondary_namespace, key)))[0]

    def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """Return value and expiry; see :meth:`kvreplay.InspectableKVStore.read_entry`."""
        check_name(primary_namespace, secondary_namespace, key)
        self._check_open()
        found = _found(self._committed((primary_namespace, secondary_namespace, key)))
        return Entry(found[0], found[1])

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        self._change((primary_namespace, secondary_namespace, key), _ANY, value, None)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`."""
        check_name(primary_namespace, secondary_namespace, key)
        self._change((primary_namespace, secondary_namespace, key), _ANY, None, None)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        """Return the namespace's keys; see :meth:`kvreplay.KVStoreSync.list`."""
        check_namespace(primary_namespace, secondary_namespace)
        self._check_open()
        namespace = (primary_namespace, secondary_namespace)
        while True:
            pending = self._pending
            keys = dict.fromkeys(self._namespaces.get(namespace, ()))
            if pending is self._pending:  # else some may be in place, and some not
                return _with_changes(keys, namespace, pending)

    def list_paginated(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> Page:
        """Return a page of keys; see :meth:`kvreplay.PaginatedKVStore.list_paginated`.

        It copies the list of the namespace's entries, whatever the limit.
        """
        entries, token = self._page(primary_namespace, secondary_namespace, page_token, limit)
        return Page([key for key, _ in entries], token)

    def list_paginated_with_values(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        page_token: str | None = None,
        *,
        limit: int = 50,
    ) -> PageWithValues:
        """Return a page of keys and values; see :class:`kvreplay.PaginatedKVStore`."""
        entries, token = self._page(primary_namespace, secondary_namespace, page_token, limit)
        return PageWithValues([(key, entry[0]) for key, entry in entries], token)

    def list_all_keys(self) -> Iterator[Address]:
        """Yield every address, from one consistent copy of each namespace's keys."""
        self._check_open()
        namespaces = {*(address[:2] for address in self._pending), *self._namespaces}
        return ((*each, key) for each in namespaces for key in self.list(*each))

    def scan(self, primary_namespace: str | None = None) -> Iterator[tuple[Address, Entry]]:
        """Yield every entry; see :meth:`kvreplay.store.ScannableKVStore.scan`.

        It copies the list of a namespace's keys.
        """
        if primary_namespace is not None:
            check_namespace(primary_namespace, "")
        return self._scan(self.list_all_keys(), primary_namespace)

    def _scan(
        self, addresses: Iterator[Address], primary: str | None
    ) -> Iterator[tuple[Address, Entry]]:
        for address in addresses:
            if primary in (None, address[0]):
                found = self._committed(address)
                if found is not None:
                    yield address, Entry(found[0], found[1])
                else:
                    self._check_open()  # else it was removed since its namespace was listed

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
        return self._change(
            (primary_namespace, secondary_namespace, key), expected, value, expires_at
        )

    def check_and_put_at_once(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        """Compare and put, or refuse; see :meth:`kvreplay.PromptKVStore.check_and_put_at_once`."""
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        address = (primary_namespace, secondary_namespace, key)
        found = self._put_now(address, expected, value, expires_at)
        if found is _BUSY:
            self._refuse_nested()
            raise StoreUnavailableError(
                "another thread is in a sweep or a transaction of this store: nothing was changed;"
                " wait for it by check_and_put"
            )
        return _found_value(found)

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove due entries; see :meth:`kvreplay.ExpiringKVStore.sweep`."""
        check_sweep(primary_namespace, now, limit)
        return self._by_itself(partial(self._sweep, primary_namespace, now, limit))

    def _sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        self._begin_change()
        self._sort(primary_namespace)
        index = self._expiry.get(primary_namespace, [])
        due = bisect.bisect_right(index, now, key=lambda entry: entry[0])
        visited = index[: min(due, limit)]
        removed = self._drop_due(primary_namespace, visited)
        del index[: len(visited)]
        if not index:
            self._expiry.pop(primary_namespace, None)
        return SweepResult(len(visited), removed, more=due > limit)

    def _drop_due(self, primary_namespace: str, visited: Iterable[Item]) -> int:
        """Drop those that are still due; say how many. (A loop under a lock is a function.)"""
        removed = 0
        for expires_at, secondary, key in visited:
            entry = self._find((primary_namespace, secondary, key))
            if entry is not None and entry[1] == expires_at:
                self._drop((primary_namespace, secondary, key))
                removed += 1
        return removed

    def transaction(self) -> AbstractContextManager[KVTransaction]:
        """All or nothing; see :meth:`kvreplay.TransactionalKVStore.transaction`."""
        self._check_open()
        return ThreadBound(self._block())

    def close(self) -> None:
        """Forget everything; a second call does nothing."""
        self._by_itself(self._forget)

    def _forget(self) -> None:
        self._closed = True
        self._pending = {}
        self._namespaces = {}
        self._expiry = {}
        self._unsorted = {}

    def _block(self) -> Generator[KVTransaction, None, None]:
        self._refuse_nested()
        this = this_process()
        with self._turn.own():
            try:
                with self._writer.own():
                    self._alone = this
                self._begin_change()
                transaction = self._transaction = _Transaction(self)
                try:
                    yield transaction
                    if transaction.is_inherited:
                        raise StoreError(
                            "a forked child cannot commit its parent's transaction: the child"
                            " changed nothing"
                        )
                    self._pending = transaction.changes
                    self._put_in_place()
                finally:
                    transaction.ended = True
                    self._transaction = None
            finally:
                if self._alone is this:  # not so if a forked child ends its parent's block
                    self._alone = None

    def _by_itself(self, change: Callable[[], T]) -> T:
        """Make a change that takes longer, while no other one is made."""
        self._refuse_nested()
        this = this_process()
        with self._turn.own():
            try:
                with self._writer.own():
                    self._alone = this
                return change()
            finally:
                self._alone = None

    def _refuse_nested(self) -> None:
        """Raise for a thread that is in another change: it would come between its steps."""
        if self._turn.is_mine:
            raise nested_call_error() if self._transaction is None else own_transaction_error()

    def _begin_change(self) -> None:
        """Refuse a closed store, and put in place what a transaction has left pending."""
        self._transaction = None  # of a parent that has forked inside it
        self._check_open()
        if self._pending:
            self._put_in_place()

    def _put_in_place(self) -> None:
        for address, entry in self._pending.items():
            self._apply(address, entry)
        self._pending = {}  # a new object, by which list() notices

    def _committed(self, address: Address) -> Stored | None:
        pending = self._pending
        return pending[address] if address in pending else self._find(address)

    def _page(
        self, primary_namespace: str, secondary_namespace: str, token: str | None, limit: int
    ) -> tuple[Keyed, str | None]:
        check_page(primary_namespace, secondary_namespace, limit)
        place = place_of(primary_namespace, secondary_namespace, token)
        self._check_open()
        entries = self._by_creation((primary_namespace, secondary_namespace))
        end = len(entries)
        if place is not None:
            end = bisect.bisect_left(entries, place[0], key=lambda entry: entry[1][2])
        start = max(end - limit, 0)
        page = entries[start:end][::-1]
        following = None
        if start:
            key, entry = page[-1]
            following = page_token(primary_namespace, secondary_namespace, (entry[2], key))
        return page, following

    def _by_creation(self, namespace: tuple[str, str]) -> Keyed:
        """Return the committed entries of a namespace, the one that was created first comes first.

        A dictionary keeps that order by itself: an update moves no key.
        """
        while True:
            pending = self._pending
            entries = list(self._namespaces.get(namespace, {}).items())
            if pending is self._pending:  # else some may be in place, and some not
                break
        changes = {
            address[2]: each for address, each in pending.items() if address[:2] == namespace
        }
        if changes:
            kept = [entry for entry in entries if entry[0] not in changes]
            new = [(key, entry) for key, entry in changes.items() if entry is not None]
            entries = sorted(kept + new, key=lambda entry: entry[1][2])
        return entries

    # Changes of one entry.

    def _change(
        self, address: Address, expected: object, value: bytes | None, expires_at: int | None
    ) -> bytes | None:
        """Put ``value`` if ``expected`` is there; return what was found."""
        found = self._put_now(address, expected, value, expires_at)
        if found is _BUSY:
            self._refuse_nested()
            with self._turn.own():
                found = self._put_now(address, expected, value, expires_at)
        return _found_value(found)

    def _put_now(
        self, address: Address, expected: object, value: bytes | None, expires_at: int | None
    ) -> object:
        """Do as :meth:`_change`, or return ``_BUSY``, and change nothing."""
        primary, secondary, key = address
        namespace = primary, secondary
        writer = self._writer.own()
        if writer._is_owned():
            raise nested_call_error()
        with writer:  # quick way, by operators, for _find(), _put() and _delete(): bench_durable
            if (alone := self._alone) is not None and alone[0]:
                return _BUSY
            if self._closed:
                raise closed_error()
            if self._pending:
                self._put_in_place()
            namespaces = self._namespaces
            # Not by get(), which is a call, after which another thread may run.
            keys = namespaces[namespace] if namespace in namespaces else None  # noqa: SIM401
            old = None if keys is None or key not in keys else keys[key]
            found = None if old is None else old[0]
            if expected is not _ANY and found != expected:
                return found
            if value is None:
                if keys is not None and old is not None:
                    del keys[key]
                    if not keys:
                        del namespaces[namespace]
            else:
                if expires_at is not None and (old is None or old[1] != expires_at):
                    if primary not in self._unsorted:
                        self._unsorted[primary] = {}
                    self._unsorted[primary][expires_at, secondary, key] = None
                if keys is None:
                    keys = namespaces[namespace] = {}
                if old is None:
                    self._created += 1
                    keys[key] = value, expires_at, self._created
                else:
                    keys[key] = value, expires_at, old[2]
            if old is not None and old[1] is not None and (value is None or old[1] != expires_at):
                self._unindex(address, old[1])
            return found

    # The steps of a longer change, during which no other one is made.

    def _entry(self, old: Stored | None, value: bytes, expires_at: int | None) -> Stored:
        """Return what is to be stored: an update keeps the number of the entry's creation."""
        if old is not None:
            return value, expires_at, old[2]
        self._created += 1
        return value, expires_at, self._created

    def _find(self, address: Address) -> Stored | None:
        namespace = self._namespaces.get(address[:2])
        return None if namespace is None else namespace.get(address[2])

    def _apply(self, address: Address, entry: Stored | None) -> None:
        if entry is None:
            self._delete(address)
        else:
            self._put(address, entry)

    def _put(self, address: Address, entry: Stored) -> None:
        old = self._find(address)
        if entry[1] is not None:
            self._unsorted.setdefault(address[0], {})[entry[1], address[1], address[2]] = None
        if old is not None and old[2] != entry[2]:
            # A transaction has removed it, and made it anew: it goes to the end.
            self._drop(address)
        self._namespaces.setdefault(address[:2], {})[address[2]] = entry
        if old is not None and old[1] is not None and old[1] != entry[1]:
            self._unindex(address, old[1])

    def _delete(self, address: Address) -> None:
        old = self._find(address)
        if old is not None:
            self._drop(address)
            if old[1] is not None:
                self._unindex(address, old[1])

    def _drop(self, address: Address) -> None:
        keys = self._namespaces[address[:2]]
        del keys[address[2]]
        if not keys:
            del self._namespaces[address[:2]]

    def _unindex(self, address: Address, expires_at: int) -> None:
        primary, item = address[0], (expires_at, address[1], address[2])
        unsorted, index = self._unsorted.get(primary, {}), self._expiry.get(primary, [])
        if item in unsorted:
            del unsorted[item]
            if not unsorted:
                del self._unsorted[primary]
        elif (at := bisect.bisect_left(index, item)) < len(index) and index[at] == item:
            del index[at]
            if not index:
                del self._expiry[primary]

    def _sort(self, primary: str) -> None:
        """Bring what is new into the sorted part of the index."""
        unsorted = self._unsorted.get(primary, {})
        index = self._expiry.get(primary, [])
        if not unsorted:
            return
        if len(unsorted) * _MANY < len(index):
            for item in list(unsorted):
                bisect.insort(index, item)
        else:
            self._expiry[primary] = sorted([*index, *unsorted])
        del self._unsorted[primary]


class _Transaction(OwnTransaction):
    """Changes kept aside until the block ends; the store makes no other change meanwhile."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store
        self.changes: dict[Address, Stored | None] = {}

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        check_name(primary_namespace, secondary_namespace, key)
        return _found(self._find((primary_namespace, secondary_namespace, key)))[0]

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        self.check_usable()
        address = (primary_namespace, secondary_namespace, key)
        self._change(address, self._find(address), value, None)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        self.check_usable()
        self.changes[primary_namespace, secondary_namespace, key] = None

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        check_namespace(primary_namespace, secondary_namespace)
        self.check_usable()
        namespace = (primary_namespace, secondary_namespace)
        keys = dict.fromkeys(self._store._namespaces.get(namespace, ()))
        return _with_changes(keys, namespace, self.changes)

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
            if value is None:
                self.changes[address] = None
            else:
                self._change(address, entry, value, expires_at)
        return found

    def _change(
        self, address: Address, old: Stored | None, value: bytes, expires_at: int | None
    ) -> None:
        entry = self._store._entry(old, value, expires_at)
        if old is None and address in self.changes:
            del self.changes[address]  # removed before: it is new, and goes to the end
        self.changes[address] = entry

    def _find(self, address: Address) -> Stored | None:
        self.check_usable()
        if address in self.changes:
            return self.changes[address]
        return self._store._find(address)


def _found_value(found: object) -> bytes | None:
    assert found is None or isinstance(found, bytes)  # not _BUSY
    return found


def _found(entry: Stored | None) -> Stored:
    if entry is None:
        raise KeyNotFoundError("no entry under that name")
    return entry


def _with_changes(
    keys: dict[str, None], namespace: tuple[str, str], changes: dict[Address, Stored | None]
) -> list[str]:
    """Return the keys of a namespace as they are after the changes."""
    for address, entry in changes.items():
        if address[:2] == namespace:
            if entry is None:
                keys.pop(address[2], None)
            else:
                keys[address[2]] = None
    return list(keys)
