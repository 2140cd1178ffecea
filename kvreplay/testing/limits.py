"""The longest names, and values of some MiB, in every call: a channel's monitor may have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import InvalidValueError, KeyNotFoundError
from kvreplay.store import (
    Change,
    Entry,
    ExpiringKVStore,
    InspectableKVStore,
    KVStoreSync,
    PaginatedKVStore,
    TransactionalKVStore,
)
from kvreplay.testing.entries import LONGEST, Address, content

__all__ = ["LimitTests"]

MIB = 2**20

LONG = [
    (LONGEST, "s", "k"),
    ("p", LONGEST, "k"),
    ("p", "s", LONGEST),
    (LONGEST, "", LONGEST),
    (LONGEST, LONGEST, LONGEST),
    ("", "", LONGEST),
]
"""Names of 120 characters in each position, and together."""


class LimitTests:
    """What the rules allow works everywhere, not only in ``read`` and ``write``."""

    @pytest.mark.parametrize("address", LONG)
    def test_the_longest_names_in_every_call(self, store: Any, address: Address) -> None:
        p, s, k = address
        other = (p, s, "M" * len(k))
        store.write(*address, b"v")
        store.write(*other, b"w")
        last = b"v"
        assert sorted(store.list(p, s)) == sorted({k, other[2]})
        assert content(store, (p, s)) == {address: b"v", other: b"w"}
        if hasattr(store, "check_and_put"):
            put, last = store.check_and_put, b"due"
            assert put(*address, expected=None, value=b"x") == b"v"
            assert put(*address, expected=b"v", value=last, expires_at=5) == b"v"
        if hasattr(store, "check_and_put_each"):
            changes = [Change(*other, expected=b"w", value=b"x"), Change(*other, b"x", b"w")]
            assert list(store.check_and_put_each(changes)) == [b"w", b"x"]
        if hasattr(store, "read_entry"):
            assert store.read_entry(*address) == Entry(b"due", 5)
        if hasattr(store, "list_paginated"):
            first = store.list_paginated(p, s, limit=1)
            rest = store.list_paginated_with_values(p, s, first.next_page_token, limit=1)
            assert (list(first.keys), list(rest.entries)) == ([other[2]], [(k, last)])
            assert rest.next_page_token is None
        if hasattr(store, "transaction"):
            with store.transaction() as txn:
                assert txn.read(*other) == b"w"
                txn.write(*other, b"x")
                assert txn.check_and_put(*other, expected=b"x", value=b"w") == b"x"
                assert sorted(txn.list(p, s)) == sorted({k, other[2]})
        if hasattr(store, "sweep") and hasattr(store, "read_entry"):
            assert store.sweep(p, 5, 10).removed == 1
        store.remove(*address)
        assert content(store, (p, s)) == {other: b"w"}
        store.remove(*other, lazy=True)
        assert store.list(p, s) == []

    @pytest.mark.parametrize("mib", [1, 4, 16])
    def test_values_of_some_mib(self, store: KVStoreSync, mib: int) -> None:
        one, other = _values(store, mib)
        store.write("p", "s", "k", one)
        _same(store.read("p", "s", "k"), one)
        store.write("p", "s", "k", other)
        _same(store.read("p", "s", "k"), other)
        store.remove("p", "s", "k")
        with pytest.raises(KeyNotFoundError):
            store.read("p", "s", "k")

    @pytest.mark.parametrize("mib", [4, 16])
    def test_large_values_are_compared_and_swept(self, expiring: ExpiringKVStore, mib: int) -> None:
        one, other = _values(expiring, mib, together=2)
        put = expiring.check_and_put
        assert put("p", "s", "k", expected=None, value=one, expires_at=5) is None
        _same(put("p", "s", "k", expected=other, value=b""), one)
        _same(put("p", "s", "k", expected=one[:-1], value=b""), one)
        _same(put("p", "s", "k", expected=one, value=other, expires_at=5), one)
        if hasattr(expiring, "read_entry"):
            found = expiring.read_entry("p", "s", "k")
            _same(found.value, other)
            assert found.expires_at == 5
        assert expiring.sweep("p", 5, 1).removed == 1
        assert expiring.list("p", "s") == []

    @pytest.mark.parametrize("mib", [4, 16])
    def test_large_values_on_pages(self, paginated: PaginatedKVStore, mib: int) -> None:
        one, other = _values(paginated, mib)
        paginated.write("p", "s", "one", one)
        paginated.write("p", "s", "other", other)
        page = paginated.list_paginated_with_values("p", "s")
        assert [key for key, _ in page.entries] == ["other", "one"]
        for (_, found), value in zip(page.entries, (other, one), strict=True):
            _same(found, value)
        assert list(paginated.list_paginated("p", "s").keys) == ["other", "one"]

    @pytest.mark.parametrize("mib", [4, 16])
    def test_large_values_in_a_transaction(
        self, transactional: TransactionalKVStore, mib: int
    ) -> None:
        one, other = _values(transactional, mib, together=2)
        transactional.write("p", "s", "k", one)
        with transactional.transaction() as txn:
            _same(txn.read("p", "s", "k"), one)
            txn.write("p", "s", "k", other)
            txn.write("p", "s", "new", one)
            _same(txn.check_and_put("p", "s", "new", expected=one, value=other), one)
        with pytest.raises(ZeroDivisionError), transactional.transaction() as txn:
            txn.write("p", "s", "k", one)
            raise ZeroDivisionError
        for key in ("k", "new"):
            _same(transactional.read("p", "s", key), other)

    def test_a_large_value_outlives_the_store_object(
        self, inspectable: InspectableKVStore, reopen: Callable[[], Any]
    ) -> None:
        one, _ = _values(inspectable, 4)
        inspectable.check_and_put("p", "s", "k", expected=None, value=one, expires_at=5)
        found = reopen().read_entry("p", "s", "k")
        _same(found.value, one)
        assert found.expires_at == 5

    def test_the_largest_changes(self, bounded: Any) -> None:
        """The expected and the new value count together."""
        most = bounded.max_change_bytes
        half, other = bytes(most // 2), bytes(most - most // 2 - 1) + b"1"
        bounded.write(*(LONGEST,) * 3, bytes(most))
        _same(bounded.read(*(LONGEST,) * 3), bytes(most))
        if hasattr(bounded, "check_and_put"):
            address, put = ("p", LONGEST, LONGEST), bounded.check_and_put
            assert put(*address, expected=None, value=half, expires_at=5) is None
            _same(put(*address, expected=half, value=other, expires_at=7), half)
            _same(put(*address, expected=None, value=bytes(most)), other)
            bounded.write(*address, bytes(most))
            _same(put(*address, expected=bytes(most), value=None), bytes(most))
            assert content(bounded) == {(LONGEST,) * 3: bytes(most)}

    def test_a_larger_change_is_refused(self, bounded: Any) -> None:
        most = bounded.max_change_bytes
        bounded.write("p", "s", "k", b"v")
        with pytest.raises(InvalidValueError):
            bounded.write("p", "s", "k", bytes(most + 1))
        with pytest.raises(InvalidValueError):
            bounded.write("p", "s", "new", bytes(most + 1))
        if hasattr(bounded, "check_and_put"):
            for expected, value in [(None, most + 1), (1, most), (most // 2 + 1, most - most // 2)]:
                with pytest.raises(InvalidValueError):
                    bounded.check_and_put(
                        *("p", "s", "k"),
                        expected=None if expected is None else bytes(expected),
                        value=bytes(value),
                    )
            with pytest.raises(InvalidValueError):
                bounded.check_and_put("p", "s", "k", expected=bytes(most + 1), value=None)
        assert content(bounded, ("p", "s")) == {("p", "s", "k"): b"v"}


def _values(store: object, mib: int, together: int = 1) -> tuple[bytes, bytes]:
    """Two values of one size, which differ in their last byte only.

    The test is skipped if the store cannot carry so many of them ``together`` in one change.
    """
    most = getattr(store, "max_change_bytes", None)
    if most is not None and together * mib * MIB > most:
        pytest.skip(f"a change of this store carries {most} bytes at most")
    value = bytes(range(256)) * (mib * MIB // 256)
    return value, value[:-1] + b"\0"


def _same(found: bytes | None, value: bytes) -> None:
    """Compare two values, and show neither: that would take long."""
    same = found == value
    assert same, f"{len(found or b'')} bytes that differ from the {len(value)} that were put"
