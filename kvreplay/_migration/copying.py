"""The first pass: the destination becomes equal to the source, batch by batch.

What is always true:

* An entry is created in the destination only after all older ones of its namespace, where both
  sides know the order of creation.
* A destination that was in use loses nothing: none of its entries is replaced or removed.
* In one that was empty, all entries were put by a migration. What is not in its place there, or is
  not in the source any more, is removed. What differs is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from kvreplay._migration.claims import IN_PROGRESS, Claims
from kvreplay._migration.mark import MARK
from kvreplay._migration.sides import exactly
from kvreplay._migration.walking import Address, namespaces, oldest_first
from kvreplay.errors import (
    DestinationNotEmptyError,
    KeyNotFoundError,
    MigrationError,
    StoreUnavailableError,
)
from kvreplay.store import (
    BatchingKVStore,
    Change,
    Entry,
    TransactionalKVStore,
    missing_methods,
)

__all__ = ["Copying"]

_BATCH_BYTES: Final = 8 * 1024 * 1024
_ONE_BY_ONE: Final = 1000  # entries, in a batch of a store that puts each by itself

_Copies = Sequence[tuple[Address, Entry]]


class Copying:
    """One first pass.

    Args:
        resumed: the destination may have entries of an earlier pass.
        used: the destination has entries of its own.
        batch: how many entries are put at once, at most.
        done: called with how many entries were looked at since the last call.
    """

    def __init__(
        self,
        source: Any,
        destination: Any,
        *,
        resumed: bool,
        used: bool,
        with_claims: bool,
        batch: int,
        done: Callable[[int], object],
    ) -> None:
        self.copied = 0
        self.removed = 0
        self._source = source
        self._destination = destination
        self._read_source = exactly(source)
        self._read_destination = exactly(destination)
        self._mends = resumed and not used
        self._used = used
        self._claims = None if with_claims else Claims(source)
        self._done = done
        self._put_each = _put_in_one
        self._batch = batch
        if missing_methods(destination, TransactionalKVStore):
            self._put_each = _put_each
            self._batch = min(batch, _ONE_BY_ONE)
        self._waiting = list[tuple[Address, Entry]]()

    def run(self, *, ordered: bool) -> None:
        """Copy everything."""
        if ordered:
            for primary, secondary in namespaces(self._source.list_all_keys()):
                self._copy_in_order((primary, secondary))
        else:
            self._copy(self._source.list_all_keys())
        self._flush()
        if self._mends:
            self._remove_what_is_gone()

    def _copy_in_order(self, namespace: tuple[str, str]) -> None:
        keys: Iterable[str] = oldest_first(self._source, namespace)
        if self._mends:
            self._flush()
            keys = self._in_their_place(namespace, keys)
        self._copy((*namespace, key) for key in keys)

    def _in_their_place(self, namespace: tuple[str, str], keys: Iterable[str]) -> Iterable[str]:
        """Yield these keys; from the destination remove what stands before each and is another."""
        there = oldest_first(self._destination, namespace)
        next_there = next(there, None)
        for key in keys:
            while next_there is not None and next_there != key:
                self._remove((*namespace, next_there))
                next_there = next(there, None)
            if next_there == key:
                next_there = next(there, None)
            yield key
        while next_there is not None:
            self._remove((*namespace, next_there))
            next_there = next(there, None)

    def _copy(self, addresses: Iterable[Address]) -> None:
        read, batch, waiting, size = self._read_source, self._batch, self._waiting, 0
        for address in addresses:
            try:
                entry = read(*address)
            except KeyNotFoundError:
                continue  # removed since it was listed
            value = entry.value
            if value.startswith(IN_PROGRESS):
                self._refuse_claim(address, value)
            waiting.append((address, entry))
            size += len(value)
            if len(waiting) >= batch or size >= _BATCH_BYTES:
                self._flush()
                size = 0

    def _refuse_claim(self, address: Address, value: bytes) -> None:
        if self._claims is not None and self._claims.look_at(address, value):
            self._flush()
            raise self._claims.error("a part was copied, and the migration has not ended")

    def _flush(self) -> None:
        copies = self._waiting[:]
        self._waiting.clear()
        if not copies:
            return
        for copy, found in zip(copies, self._put_each(self._destination, copies), strict=True):
            if found is None:
                self.copied += 1
            elif isinstance(found, Exception):
                raise found
            else:
                self._meet(*copy, found)
        self._done(len(copies))

    def _meet(self, address: Address, wanted: Entry, found: bytes) -> None:
        """Deal with an entry that is there already."""
        if found == wanted.value and self._read_destination(*address) == wanted:
            return
        if self._used:
            raise DestinationNotEmptyError(
                "the destination has another entry under the name of one of the source's; that"
                " entry was not changed, and the migration has not ended: choose another"
                " destination"
            )
        put = self._destination.check_and_put
        if put(*address, expected=found, value=wanted.value, expires_at=wanted.expires_at) != found:
            raise MigrationError(
                "somebody else changes the destination; the entry that he changed was left as it"
                " is, and the migration has not ended: stop him, and migrate again"
            )
        self.copied += 1

    def _remove(self, address: Address) -> None:
        if address != MARK:
            self._destination.remove(*address)
            self.removed += 1

    def _remove_what_is_gone(self) -> None:
        for address in self._destination.list_all_keys():
            try:
                self._source.read(*address)
            except KeyNotFoundError:
                self._remove(address)


def _put_in_one(store: Any, copies: _Copies) -> Sequence[bytes | Exception | None]:
    """Put entries that are not there, in one transaction; return what was there instead."""
    try:
        with store.transaction() as transaction:
            return _each(transaction, copies)
    except StoreUnavailableError:  # nothing was changed; a full map has been grown by now
        return _put_each(store, copies)


def _put_each(store: Any, copies: _Copies) -> Sequence[bytes | Exception | None]:
    """The same without a transaction, as well as the store can."""
    if missing_methods(store, BatchingKVStore):
        return _each(store, copies)
    found: Sequence[bytes | Exception | None] = store.check_and_put_each(
        [Change(*address, None, entry.value, entry.expires_at) for address, entry in copies]
    )
    return found


def _each(calls: Any, copies: _Copies) -> list[bytes | None]:
    put = calls.check_and_put
    return [
        put(*address, expected=None, value=entry.value, expires_at=entry.expires_at)
        for address, entry in copies
    ]
