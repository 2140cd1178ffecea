"""The first pass: the destination becomes equal to the source, batch by batch.

What is always true:

* An entry is created in the destination only after all older ones of its namespace, where both
  sides know the order of creation.
* A destination that was in use loses nothing: none of its entries is replaced or removed.
* In one that was empty, all entries were put by a migration. What is not in its place there, or is
  not in the source any more, is removed. What differs is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from kvreplay._migration.claims import Claims
from kvreplay._migration.mark import MARK
from kvreplay._migration.sides import exactly
from kvreplay._migration.walking import Address, namespaces, oldest_first
from kvreplay.errors import DestinationNotEmptyError, KeyNotFoundError, MigrationError
from kvreplay.store import (
    BatchingKVStore,
    Change,
    Entry,
    TransactionalKVStore,
    missing_methods,
)

__all__ = ["Copying"]

_BATCH_BYTES: Final = 8 * 1024 * 1024


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
        self._with_claims = with_claims
        self._claims = Claims(source)
        self._batch = batch
        self._done = done
        self._put_each = _putter(destination)
        self._waiting = list[Change]()
        self._size = 0

    def run(self, *, ordered: bool) -> None:
        """Copy everything."""
        if ordered:
            for namespace in namespaces(self._source.list_all_keys()):
                self._copy_in_order(namespace)
        else:
            for address in self._source.list_all_keys():
                self._copy(address)
        self._flush()
        if self._mends:
            self._remove_what_is_gone()

    def _copy_in_order(self, namespace: tuple[str, str]) -> None:
        if not self._mends:
            for key in oldest_first(self._source, namespace):
                self._copy((*namespace, key))
            return
        self._flush()
        there = oldest_first(self._destination, namespace)
        next_there = next(there, None)
        for key in oldest_first(self._source, namespace):
            while next_there is not None and next_there != key:
                self._remove((*namespace, next_there))
                next_there = next(there, None)
            if next_there == key:
                next_there = next(there, None)
            self._copy((*namespace, key))
        while next_there is not None:
            self._remove((*namespace, next_there))
            next_there = next(there, None)

    def _copy(self, address: Address) -> None:
        try:
            entry = self._read_source(*address)
        except KeyNotFoundError:
            return  # removed since it was listed
        if not self._with_claims and self._claims.look_at(address, entry.value):
            self._flush()
            raise self._claims.error("a part was copied, and the migration has not ended")
        self._waiting.append(Change(*address, None, entry.value, entry.expires_at))
        self._size += len(entry.value)
        if len(self._waiting) >= self._batch or self._size >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        changes, self._waiting, self._size = self._waiting, [], 0
        if not changes:
            return
        for change, found in zip(changes, self._put_each(changes), strict=True):
            if isinstance(found, Exception):
                raise found
            if found is None:
                self.copied += 1
            else:
                self._meet(change, found)
        self._done(len(changes))

    def _meet(self, change: Change, found: bytes) -> None:
        """Deal with an entry that is there already."""
        address = (change.primary_namespace, change.secondary_namespace, change.key)
        wanted = Entry(change.value or b"", change.expires_at)
        if found == change.value and self._read_destination(*address) == wanted:
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


def _putter(store: Any) -> Callable[[Sequence[Change]], Sequence[bytes | Exception | None]]:
    """Return what puts many entries at once, as well as the store can."""
    if not missing_methods(store, BatchingKVStore):
        put_each: Callable[[Sequence[Change]], Sequence[bytes | Exception | None]] = (
            store.check_and_put_each
        )
        return put_each

    def each_in(calls: Any, changes: Sequence[Change]) -> list[bytes | Exception | None]:
        return [
            calls.check_and_put(
                each.primary_namespace,
                each.secondary_namespace,
                each.key,
                expected=each.expected,
                value=each.value,
                expires_at=each.expires_at,
            )
            for each in changes
        ]

    if missing_methods(store, TransactionalKVStore):
        return lambda changes: each_in(store, changes)

    def in_one(changes: Sequence[Change]) -> list[bytes | Exception | None]:
        with store.transaction() as transaction:
            return each_in(transaction, changes)

    return in_one
