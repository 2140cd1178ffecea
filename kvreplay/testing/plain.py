"""``KVStoreSync``: LDK's four calls, with the cases that LDK's own tests assert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import KeyNotFoundError, StoreError
from kvreplay.store import KVStoreSync
from kvreplay.testing.entries import LONGEST, content
from kvreplay.testing.threads import at_once, watched_by

__all__ = ["PlainTests"]


class PlainTests:
    """A read returns what was written, whole, under its own name and no other."""

    def test_round_trip(self, store: KVStoreSync) -> None:
        assert store.list("p", "s") == []
        store.write("p", "s", "k", b"value")
        assert store.read("p", "s", "k") == b"value"
        assert store.list("p", "s") == ["k"]
        store.write("p", "s", "k", b"another")
        assert store.read("p", "s", "k") == b"another"
        assert store.list("p", "s") == ["k"]
        store.remove("p", "s", "k")
        assert store.list("p", "s") == []
        with pytest.raises(KeyNotFoundError):
            store.read("p", "s", "k")

    def test_types(self, store: KVStoreSync) -> None:
        store.write("p", "s", "k", b"value")
        assert type(store.read("p", "s", "k")) is bytes
        assert type(store.list("p", "s")) is list
        assert [type(key) for key in store.list("p", "s")] == [str]

    def test_arguments_by_name(self, store: KVStoreSync) -> None:
        where = {"primary_namespace": "p", "secondary_namespace": "s"}
        store.write(**where, key="k", value=b"v")
        assert store.read(**where, key="k") == b"v"
        assert store.list(**where) == ["k"]
        store.remove(**where, key="k", lazy=False)
        assert store.list(**where) == []
        store.remove("p", "s", "k", True)

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 65537, 2**20])
    def test_value_sizes(self, store: KVStoreSync, size: int) -> None:
        value = bytes(range(256)) * (size // 256) + bytes(size % 256)
        store.write("p", "s", "k", value)
        assert store.read("p", "s", "k") == value
        store.write("p", "s", "k", b"")
        assert store.read("p", "s", "k") == b""
        store.write("p", "s", "k", value)
        assert content(store) == {("p", "s", "k"): value}

    def test_addresses_are_distinct(self, store: KVStoreSync) -> None:
        """Two entries differ if one of their three names differs, and names never run together."""
        namespaces = [(p, s) for p in ("", "a", "aa", "A") for s in ("", "a", "aa") if p or not s]
        addresses = {(p, s, k): f"{p}/{s}/{k}".encode() for p, s in namespaces for k in "aAb"}
        for address, value in addresses.items():
            store.write(*address, value)
        for p, s in namespaces:
            assert sorted(store.list(p, s)) == ["A", "a", "b"]
        assert content(store, *namespaces) == addresses
        for address in list(addresses):
            store.remove(*address)
            del addresses[address]
            assert content(store, *namespaces) == addresses

    def test_absence(self, store: KVStoreSync) -> None:
        """An absent entry: ``read`` raises, ``remove`` does nothing, and the list is empty."""
        store.write("p", "s", "k", b"v")
        for p, s, k in [
            ("p", "s", "q"),
            ("p", "t", "k"),
            ("q", "s", "k"),
            ("p", "", "k"),
            ("", "", "k"),
        ]:
            with pytest.raises(KeyNotFoundError) as caught:
                store.read(p, s, k)
            assert isinstance(caught.value, KeyError)
            assert isinstance(caught.value, StoreError)
            store.remove(p, s, k)
            store.remove(p, s, k, lazy=True)
        assert store.list("q", "s") == store.list("p", "t") == store.list("", "") == []
        assert content(store) == {("p", "s", "k"): b"v"}

    def test_messages_and_repr_show_no_entry(self, store: KVStoreSync) -> None:
        """A user may log each of them."""
        store.write("secret-p", "secret-s", "secret-k", b"secret-v")
        assert "secret" not in repr(store)
        with pytest.raises(KeyNotFoundError) as caught:
            store.read("secret-p", "secret-s", "secret")
        assert "secret" not in f"{caught.value} {caught.value!r}"

    @pytest.mark.parametrize("lazy", [False, True])
    def test_a_later_write_wins_over_a_removal(self, store: KVStoreSync, lazy: bool) -> None:
        for _ in range(20):
            store.write("p", "s", "k", b"old")
            store.remove("p", "s", "k", lazy=lazy)
            store.write("p", "s", "k", b"new")
            assert store.read("p", "s", "k") == b"new"
        assert content(store) == {("p", "s", "k"): b"new"}

    def test_what_is_written_outlives_the_store_object(
        self, store: KVStoreSync, reopen: Callable[[], Any]
    ) -> None:
        expected = {
            ("", "", "a"): b"1",
            ("p", "", "a"): b"",
            ("p", "s", "changed"): b"after",
            ("p", "s", "again"): b"new",
            (LONGEST, LONGEST, LONGEST): bytes(2**20),
        }
        store.write("p", "s", "changed", b"before")
        for address, value in expected.items():
            store.write(*address, value)
        again = reopen()
        assert content(again, *{(p, s) for p, s, _ in expected}) == expected

    def test_what_is_removed_stays_away(
        self, store: KVStoreSync, reopen: Callable[[], Any]
    ) -> None:
        store.write("p", "s", "goes", b"v")
        store.write("p", "s", "stays", b"v")
        again = reopen()
        again.remove("p", "s", "goes")
        assert content(reopen()) == {("p", "s", "stays"): b"v"}

    def test_a_lazy_removal_is_overruled_for_good(
        self, store: KVStoreSync, reopen: Callable[[], Any]
    ) -> None:
        store.write("p", "s", "k", b"old")
        store.remove("p", "s", "k", lazy=True)
        store.write("p", "s", "k", b"new")
        assert content(reopen()) == {("p", "s", "k"): b"new"}

    def test_threads_that_write_apart(self, store: KVStoreSync) -> None:
        """No thread loses an entry because of another thread."""

        def work(name: str) -> None:
            for n in range(20):
                store.write("p", "s", f"{name}{n}", name.encode())
                if n % 2:
                    store.remove("p", "s", f"{name}{n}")

        at_once(*(lambda name=name: work(name) for name in "abcd"))
        expected = {("p", "s", f"{name}{n}"): name.encode() for name in "abcd" for n in range(20)}
        assert content(store) == {
            address: value for address, value in expected.items() if int(address[2][1:]) % 2 == 0
        }

    def test_readers_see_whole_values_and_whole_lists(self, store: KVStoreSync) -> None:
        """A list shows no temporary file, and misses nothing that stays."""
        values = [b"old" * 5000, b"new" * 8000]
        stays = {f"stays-{n}" for n in range(5)}
        for key in stays:
            store.write("p", "s", key, values[0])

        def look() -> None:
            assert store.read("p", "s", "stays-0") in values
            keys = store.list("p", "s")
            assert len(keys) == len(set(keys))
            assert stays <= set(keys) <= stays | {"comes"}

        with watched_by(look, look):
            for n in range(60):
                store.write("p", "s", "stays-0", values[n % 2])
                store.write("p", "s", "comes", values[n % 2])
                store.remove("p", "s", "comes")
