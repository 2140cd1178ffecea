"""What a store refuses before it touches anything: names, values, times and limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import InvalidNameError, InvalidValueError
from kvreplay.store import AtomicKVStore, ExpiringKVStore, KVStoreSync, TransactionalKVStore
from kvreplay.testing.entries import LONGEST, content, put

__all__ = ["NameTests"]

LEGAL = [
    "a",
    "Z",
    "0",
    "-",
    "_",
    "--help",
    LONGEST,
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-",
]
ILLEGAL: list[Any] = [
    LONGEST + "N",
    "a b",
    "a/b",
    "a.b",
    ".",
    "..",
    "a\n",
    "\n",
    "a\0",
    "\xe9",
    "\u0663",  # a digit, but not an ASCII digit
    "[empty]",
    "k.tmp",
    "a%b",
    "a'b",
    "a*",
    None,
    b"a",
    1,
    ["a"],
]
NO_BYTES: list[Any] = ["text", bytearray(b"v"), memoryview(b"v"), 1, ["v"]]
NO_TIMES: list[Any] = [-1, 2**63, 1.5, True, "1", b"1"]


class NameTests:
    """LDK's name rules at their limits; only bytes are values, only valid times are expiries."""

    @pytest.mark.parametrize("name", LEGAL)
    def test_legal_names(self, store: KVStoreSync, name: str) -> None:
        expected = {
            (name, name, name): b"1",
            ("", "", name): b"2",
            (name, "", name): b"3",
        }
        for address, value in expected.items():
            store.write(*address, value)
        for p, s in [(name, name), ("", ""), (name, "")]:
            assert store.list(p, s) == [name]
        assert content(store, (name, name), ("", ""), (name, "")) == expected
        store.remove(name, name, name)
        assert store.list(name, name) == []

    @pytest.mark.parametrize("name", LEGAL)
    def test_legal_names_that_expire(self, expiring: ExpiringKVStore, name: str) -> None:
        addresses = [(name, name, name), (name, "", name)]
        for address in addresses:
            found = expiring.check_and_put(*address, expected=None, value=b"1", expires_at=5)
            assert found is None
            found = expiring.check_and_put(*address, expected=b"1", value=b"2", expires_at=5)
            assert found == b"1"
        assert content(expiring) == dict.fromkeys(addresses, b"2")
        assert expiring.sweep(name, 5, 10).removed == 2
        assert content(expiring) == {}

    def test_illegal_names_touch_nothing(self, store: KVStoreSync) -> None:
        store.write("p", "s", "k", b"1")
        _refuse_illegal_names(store)
        assert content(store) == {("p", "s", "k"): b"1"}

    def test_illegal_names_in_a_transaction(self, transactional: TransactionalKVStore) -> None:
        transactional.write("p", "s", "k", b"1")
        with transactional.transaction() as txn:
            _refuse_illegal_names(txn)
        assert content(transactional) == {("p", "s", "k"): b"1"}

    def test_illegal_namespaces_to_sweep(self, expiring: ExpiringKVStore) -> None:
        for bad in ILLEGAL:
            with pytest.raises(InvalidNameError):
                expiring.sweep(bad, 10, 10)
        put(expiring, "k", b"v", 5, primary=LONGEST)
        assert expiring.sweep("", 10, 10).removed == 0
        assert expiring.sweep(LONGEST, 10, 10).removed == 1

    def test_values_that_are_not_bytes_touch_nothing(self, store: KVStoreSync) -> None:
        store.write("p", "s", "k", b"1")
        _refuse_bad_writes(store)
        assert content(store) == {("p", "s", "k"): b"1"}

    def test_bad_changes_touch_nothing(self, atomic: AtomicKVStore) -> None:
        atomic.write("p", "s", "k", b"1")
        _refuse_bad_changes(atomic)
        assert content(atomic) == {("p", "s", "k"): b"1"}

    def test_bad_values_in_a_transaction(self, transactional: TransactionalKVStore) -> None:
        transactional.write("p", "s", "k", b"1")
        with transactional.transaction() as txn:
            _refuse_bad_writes(txn)
            _refuse_bad_changes(txn)
        assert content(transactional) == {("p", "s", "k"): b"1"}

    @pytest.mark.parametrize("limit", [0, -1, 1.5, True, "1", None])
    def test_bad_sweep_limits(self, expiring: ExpiringKVStore, limit: Any) -> None:
        put(expiring, "k", b"v", 5)
        with pytest.raises(InvalidValueError):
            expiring.sweep("p", 10, limit)
        assert expiring.read("p", "s", "k") == b"v"
        assert expiring.sweep("p", 10, 1).removed == 1

    @pytest.mark.parametrize("now", [1.5, True, "1", None])
    def test_bad_sweep_times(self, expiring: ExpiringKVStore, now: Any) -> None:
        put(expiring, "k", b"v", 0)
        with pytest.raises(InvalidValueError):
            expiring.sweep("p", now, 1)
        assert expiring.read("p", "s", "k") == b"v"
        assert expiring.sweep("p", 1, 1).removed == 1


def _by_address(store: Any) -> list[Callable[[Any, Any, Any], object]]:
    """The calls that take a whole address."""
    calls: list[Callable[[Any, Any, Any], object]] = [
        store.read,
        lambda p, s, k: store.write(p, s, k, b"v"),
        store.remove,
        lambda p, s, k: store.remove(p, s, k, lazy=True),
    ]
    if hasattr(store, "check_and_put"):
        calls += [
            lambda p, s, k: store.check_and_put(p, s, k, expected=None, value=b"v"),
            lambda p, s, k: store.check_and_put(p, s, k, expected=None, value=None),
        ]
    return calls


def _refuse_illegal_names(store: Any) -> None:
    for call in _by_address(store):
        for bad in ILLEGAL:
            for address in [(bad, "s", "k"), ("p", bad, "k"), ("p", "s", bad)]:
                with pytest.raises(InvalidNameError) as caught:
                    call(*address)
                assert isinstance(caught.value, ValueError)
                if isinstance(bad, str) and len(bad) > 2:
                    assert bad not in str(caught.value), "the message shows the name"
        for address in [("p", "s", ""), ("", "s", "k"), ("", "", "")]:
            with pytest.raises(InvalidNameError):
                call(*address)
    for bad in ILLEGAL:
        for namespace in [(bad, "s"), ("p", bad), (bad, bad)]:
            with pytest.raises(InvalidNameError):
                store.list(*namespace)
    with pytest.raises(InvalidNameError):
        store.list("", "s")


def _refuse_bad_writes(store: Any) -> None:
    for bad in [*NO_BYTES, None]:
        for key in ("k", "new"):
            with pytest.raises(InvalidValueError) as caught:
                store.write("p", "s", key, bad)
            assert isinstance(caught.value, ValueError)


def _refuse_bad_changes(store: Any) -> None:
    for bad in NO_BYTES:
        for key, expected, value in [("k", b"1", bad), ("k", bad, b"2"), ("new", None, bad)]:
            with pytest.raises(InvalidValueError):
                store.check_and_put("p", "s", key, expected=expected, value=value)
    for bad in NO_TIMES:
        for value in (b"2", None):
            with pytest.raises(InvalidValueError):
                store.check_and_put("p", "s", "k", expected=b"1", value=value, expires_at=bad)
