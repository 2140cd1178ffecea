"""The store's calls as generators: what is asked of the cluster, and what follows from its answer.

They do no I/O. ``session.py`` answers their requests with blocking calls, ``aio_session.py`` with
awaits, so that a decision is written once. A request that fails is *thrown* its StoreError.

Each change is one transaction. It compares what was expected, and whether this is still the store
that was opened; its other branch reads what is there instead.
"""

from __future__ import annotations

from binascii import a2b_base64
from collections.abc import Generator, Sequence
from typing import Any, Final, TypeVar

import attrs

from kvreplay.backends._support import SCAN_BYTES
from kvreplay.backends.etcd.cluster import Cluster, TooMuch
from kvreplay.backends.etcd.errors import another_store, maybe_full
from kvreplay.backends.etcd.layout import (
    Address,
    Keys,
    Range,
    after,
    expiry_of,
    expiry_text,
)
from kvreplay.backends.etcd.requests import (
    Asked,
    delete,
    delete_all,
    get,
    is_absent,
    is_value,
    newest,
    one,
    put,
    read,
    step,
    transaction,
    within,
)
from kvreplay.errors import (
    CorruptStoreError,
    InvalidValueError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
)
from kvreplay.store import (
    Entry,
    Page,
    PageWithValues,
    SweepResult,
    check_change,
    check_name,
    check_namespace,
    check_page,
    check_sweep,
    check_value,
    page_token,
    place_of,
)

__all__ = ["FIRST_SCAN", "OVERHEAD", "Operation", "Operations", "Scanned", "values_in"]

T = TypeVar("T")

FIRST_SCAN: Final = 16
"""How many entries a scan asks for first."""

Operation = Generator[Asked, dict[str, Any], T]

OVERHEAD: Final = 8 * 2**10
"""How many bytes of a change are not its values, at most: keys, and what is around them."""

_WALK: Final = 1000  # keys that a walk takes in one request
_SWEEP_BATCH: Final = 100  # steps of a sweep's transaction: etcd's default allows 128 operations
_SWEPT: Final = 4096  # bytes that a step has, at most
_ENCODED: Final = 4 * SCAN_BYTES  # bytes of an answer with the entries of a scan


@attrs.frozen(eq=False, repr=False)
class Scanned:
    """A page of a scan.

    Attributes:
        damaged: how many entries it has left out.
        next: where the scan goes on; ``None``: it is over.
        limit: how many entries to ask for then.
    """

    entries: Sequence[tuple[Address, Entry]]
    damaged: int
    next: Range | None
    limit: int


class Operations:
    """The calls of a store.

    Args:
        keys: of the store.
        mark: the value of ``keys.meta``, which says which store this is.
        most: how many bytes a change can carry, its expected and its new value together.
        cluster: what tells the latest revision.
    """

    def __init__(self, keys: Keys, mark: bytes, most: int, cluster: Cluster) -> None:
        self._keys = keys
        self._same = is_value(keys.meta, mark)
        self._mark = mark
        self._most = most
        self._cluster = cluster

    def read(self, primary: str, secondary: str, key: str) -> Operation[bytes]:
        """Return the value."""
        check_name(primary, secondary, key)
        told = yield read(one(self._keys.entry(primary, secondary, key)))
        kvs = told.get("kvs")
        if not kvs:
            raise _absent()
        return _value_of(kvs[0])

    def read_entry(self, primary: str, secondary: str, key: str) -> Operation[Entry]:
        """Return value and expiry, of one moment."""
        check_name(primary, secondary, key)
        entry = get(one(self._keys.entry(primary, secondary, key)))
        expiry = get(one(self._keys.expiry(primary, secondary, key)))
        told = yield transaction((), (entry, expiry), changes=False)
        found, expiries = values_in(told)
        if not found:
            raise _absent()
        expires_at = None
        if expiries:
            expires_at = expiry_of(expiries[0][1])
            if expires_at is None:
                raise CorruptStoreError(
                    "the expiry of an entry is no number: another program has changed it; nothing"
                    " was done: write the entry again, or restore the store from a backup"
                )
        return Entry(found[0][1], expires_at)

    def write(self, primary: str, secondary: str, key: str, value: bytes) -> Operation[None]:
        """Create or replace the entry, which has no expiry."""
        check_name(primary, secondary, key)
        check_value(value)
        self._check_size(len(value))
        names = (primary, secondary, key)
        entry = self._keys.entry(*names)
        steps = put(entry, value), delete(self._keys.expiry(*names))
        yield from self._unless_full(self._change(*steps), entry, None, value)

    def remove(self, primary: str, secondary: str, key: str) -> Operation[None]:
        """Remove the entry."""
        check_name(primary, secondary, key)
        names = (primary, secondary, key)
        yield from self._change(delete(self._keys.entry(*names)), delete(self._keys.expiry(*names)))

    def _change(self, *steps: bytes) -> Operation[dict[str, Any]]:
        told = yield transaction((self._same,), steps)
        if not told.get("succeeded"):
            raise another_store()
        return told

    def _unless_full(
        self,
        change: Operation[dict[str, Any]],
        entry: bytes,
        expected: bytes | None,
        value: bytes | None,
    ) -> Operation[dict[str, Any]]:
        """Make a change; if etcd refuses it for its quota, look whether it was made all the same.

        A member that meets the end of the quota while it applies a change has made that one, and
        yet says that it is full. It says so at the end, so that a look tells.
        """
        before = self._cluster.revision
        try:
            return (yield from change)
        except StoreFullError as full:
            try:
                told = yield read(one(entry))
            except StoreError:
                raise maybe_full() from full
            kvs = told.get("kvs")
            if not kvs:
                unmade = expected is None
            else:
                unmade = int(kvs[0]["mod_revision"]) <= before
                unmade |= _value_of(kvs[0]) == expected != value
            if unmade:
                raise
            raise maybe_full() from full

    def check_and_put(
        self,
        primary: str,
        secondary: str,
        key: str,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None,
    ) -> Operation[bytes | None]:
        """Compare and put; return what was found."""
        check_name(primary, secondary, key)
        check_change(expected, value, expires_at)
        self._check_size(len(expected or b"") + len(value or b""))
        keys, names = self._keys, (primary, secondary, key)
        entry, expiry = keys.entry(*names), keys.expiry(*names)
        if value is None:
            steps = [delete(entry), delete(expiry)] if expected is not None else []
        elif expires_at is None:  # what is new has no expiry that could be deleted
            steps = [put(entry, value), *([delete(expiry)] if expected is not None else [])]
        else:
            due = keys.due(primary, expires_at, secondary, key)
            steps = [put(entry, value), put(expiry, expiry_text(expires_at)), put(due, b"")]
        change = transaction(
            (self._same, is_absent(entry) if expected is None else is_value(entry, expected)),
            steps,
            (get(one(entry)), get(one(keys.meta))),
            changes=bool(steps),
        )
        told = yield from self._unless_full(_asking(change), entry, expected, value)
        if told.get("succeeded"):
            return expected
        found, meta = values_in(told)
        if not meta or meta[0][1] != self._mark:
            raise another_store()
        return found[0][1] if found else None

    def keys(self, primary: str, secondary: str) -> Operation[list[str]]:
        """Return the keys of a namespace."""
        check_namespace(primary, secondary)
        found: list[str] = []
        place: Range | None = self._keys.namespace(primary, secondary)
        while place is not None:
            addresses, place = yield from self.some_keys(place)
            found += [address[2] for address in addresses]
        return found

    def some_keys(self, place: Range) -> Operation[tuple[list[Address], Range | None]]:
        """Return the next addresses of a walk, and where it goes on; ``None``: it is over."""
        told = yield read(within(place, _WALK, keys_only=True))
        found = [a2b_base64(kv["key"]) for kv in told.get("kvs", ())]
        addresses = [each for key in found if (each := self._keys.address(key)) is not None]
        return addresses, (after(found[-1]), place[1]) if told.get("more") else None

    def walk(self, primary: str | None = None) -> Range:
        """Return where a walk begins: over a primary namespace, or over everything."""
        if primary is not None:
            check_namespace(primary, "")
        return self._keys.walk(primary)

    def some_entries(self, place: Range, limit: int) -> Operation[Scanned]:
        """Return the next entries of a scan, and how it goes on.

        Args:
            limit: how many entries to ask for; it adapts to their size.
        """
        keys = self._keys
        while True:
            # No expiry is without its entry: so these are all that belong to the entries.
            beside = keys.expiry_beside(place[0]), keys.expiry_beside(place[1])
            steps = get(within(place, limit)), get(within(beside, limit))
            most = _ENCODED if limit > 1 else None
            try:
                told = yield transaction((), steps, changes=False, most=most)
                break
            except TooMuch:
                limit = max(1, limit // 4)
        found, expiries = values_in(told)
        expiry = dict(expiries)
        entries, damaged = [], 0
        for key, value in found:
            address, text = keys.address(key), expiry.get(keys.expiry_beside(key))
            if address is None:  # no entry of ours
                continue
            expires_at = None if text is None else expiry_of(text)
            if text is not None and expires_at is None:
                damaged += 1
            else:
                entries.append((address, Entry(value, expires_at)))
        more = told["responses"][0]["response_range"].get("more")
        rest = (after(found[-1][0]), place[1]) if more else None
        return Scanned(entries, damaged, rest, min(limit * 2, _WALK))

    def page(self, primary: str, secondary: str, token: str | None, limit: int) -> Operation[Page]:
        """Return a page of keys."""
        kvs, after_it = yield from self._page(True, primary, secondary, token, limit)
        return Page([key for key, _ in kvs], after_it)

    def page_with_values(
        self, primary: str, secondary: str, token: str | None, limit: int
    ) -> Operation[PageWithValues]:
        """Return a page of keys and values."""
        kvs, after_it = yield from self._page(False, primary, secondary, token, limit)
        return PageWithValues([(key, _value_of(kv)) for key, kv in kvs], after_it)

    def _page(
        self, keys_only: bool, primary: str, secondary: str, token: str | None, limit: int
    ) -> Operation[tuple[list[tuple[str, dict[str, str]]], str | None]]:
        check_page(primary, secondary, limit)
        place = place_of(primary, secondary, token)
        # Each transaction of ours creates one entry at most: so no two have the same revision.
        told = yield read(
            newest(
                self._keys.namespace(primary, secondary),
                limit,
                keys_only=keys_only,
                until=None if place is None else place[0] - 1,
            )
        )
        kvs = told.get("kvs", [])
        found = [(self._keys.address(a2b_base64(kv["key"])), kv) for kv in kvs]
        named = [(address[2], kv) for address, kv in found if address is not None]
        if not told.get("more"):
            return named, None
        last = found[-1][0]
        key = last[2] if last is not None else "-"
        return named, page_token(primary, secondary, (int(kvs[-1]["create_revision"]), key))

    def sweep(self, primary: str, now: int, limit: int) -> Operation[SweepResult]:
        """Remove what is due, and what the index of expiries has of entries that are not."""
        check_sweep(primary, now, limit)
        visited = removed = 0
        more = now >= 0
        while more and visited < limit:
            batch = min(limit - visited, max(1, min(_SWEEP_BATCH, self._most // _SWEPT)))
            try:
                told = yield read(within(self._keys.due_until(primary, now), batch, keys_only=True))
                found = [a2b_base64(kv["key"]) for kv in told.get("kvs", ())]
                more = bool(told.get("more"))
                if found:
                    removed += yield from self._sweep_these(found)
            except StoreError as error:
                if not visited:
                    raise
                raise OutcomeUnknownError(
                    f"a sweep failed after it had removed {removed} entries: of the next ones some"
                    " may be gone too, and nothing else was changed; sweep again"
                ) from error
            visited += len(found)
        return SweepResult(visited, removed, more)

    def _sweep_these(self, found: Sequence[bytes]) -> Operation[int]:
        """Remove those that are still due; return how many were."""
        told = yield from self._change(*map(self._sweep_one, found))
        return sum(
            bool(each["response_txn"].get("succeeded")) for each in told.get("responses", ())
        )

    def _sweep_one(self, due: bytes) -> bytes:
        found = self._keys.found_due(due)
        if found is None:
            return step((is_absent(due),), (), (delete(due),))
        expires_at, address = found
        expiry = self._keys.expiry(*address)
        return step(
            (is_value(expiry, expiry_text(expires_at)),),
            (delete(self._keys.entry(*address)), delete(expiry), delete(due)),
            (delete(due),),
        )

    def remove_store(self) -> Operation[None]:
        """Remove all keys of the store, if it is still the one that was opened."""
        yield from self._change(*map(delete_all, self._keys.kinds), delete(self._keys.meta))

    def _check_size(self, size: int) -> None:
        if size > self._most:
            raise InvalidValueError(
                f"a change of {size} bytes, the expected and the new value together, is more than"
                f" one request to etcd can carry ({self._most}); nothing was written: raise"
                " max_request_bytes, here and on the members"
            )


def _asking(asked: Asked) -> Operation[dict[str, Any]]:
    return (yield asked)


def values_in(told: dict[str, Any]) -> list[list[tuple[bytes, bytes]]]:
    """Return the keys and values that each read of a transaction found."""
    return [
        [(a2b_base64(kv["key"]), _value_of(kv)) for kv in each["response_range"].get("kvs", ())]
        for each in told.get("responses", ())
    ]


def _value_of(kv: dict[str, str]) -> bytes:
    return a2b_base64(kv.get("value", ""))


def _absent() -> KeyNotFoundError:
    return KeyNotFoundError("no entry under that name")
