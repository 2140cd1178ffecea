"""Lazy removal, as LDK means it: at once for the process, and a later write wins over it.

Only a crash may bring the entry back. What another process sees before the next commit is the
engine's own business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.errors import KeyNotFoundError
from kvreplay.store import (
    AtomicKVStore,
    ExpiringKVStore,
    InspectableKVStore,
    KVStoreSync,
    MigratableKVStore,
    PaginatedKVStore,
    TransactionalKVStore,
)
from kvreplay.testing.entries import content, put
from kvreplay.testing.processes import Spawn
from kvreplay.testing.threads import at_once, elsewhere

__all__ = ["LazyTests"]


class LazyTests:
    """``remove(…, lazy=True)``."""

    def test_what_is_removed_lazily_is_gone_at_once(self, store: KVStoreSync) -> None:
        """For every thread of this process."""
        store.write("p", "s", "goes", b"v")
        store.write("p", "s", "stays", b"v")
        store.remove("p", "s", "goes", lazy=True)

        def look() -> None:
            with pytest.raises(KeyNotFoundError):
                store.read("p", "s", "goes")
            assert store.list("p", "s") == ["stays"]
            assert store.read("p", "s", "stays") == b"v"

        look()
        elsewhere(look)
        store.remove("p", "s", "goes", lazy=True)
        store.remove("p", "s", "goes")
        look()

    def test_other_objects_see_it_gone_too(
        self, store: KVStoreSync, another: Callable[[], Any]
    ) -> None:
        other = another()
        store.write("p", "s", "k", b"v")
        store.remove("p", "s", "k", lazy=True)
        assert content(other) == content(another()) == {}
        other.write("p", "s", "k", b"w")
        assert content(store) == {("p", "s", "k"): b"w"}

    def test_no_walk_shows_what_is_removed_lazily(self, walkable: MigratableKVStore) -> None:
        for p in ("a", "b", "c"):
            for k in ("1", "2", "3"):
                walkable.write(p, "s", k, b"v")
        for p, k in (("a", "1"), ("b", "2"), ("c", "3")):
            walkable.remove(p, "s", k, lazy=True)
        expected = [("a", "2"), ("a", "3"), ("b", "1"), ("b", "3"), ("c", "1"), ("c", "2")]
        assert sorted(walkable.list_all_keys()) == [(p, "s", k) for p, k in expected]

    def test_no_page_shows_what_is_removed_lazily(self, paginated: PaginatedKVStore) -> None:
        """And the pages are as full as ever."""
        for n in range(9):
            paginated.write("p", "s", f"k{n}", b"%d" % n)
        for n in (8, 7, 5, 2):
            paginated.remove("p", "s", f"k{n}", lazy=True)
        first = paginated.list_paginated("p", "s", limit=3)
        assert list(first.keys) == ["k6", "k4", "k3"]
        values = paginated.list_paginated_with_values("p", "s", limit=3)
        assert list(values.entries) == [("k6", b"6"), ("k4", b"4"), ("k3", b"3")]
        second = paginated.list_paginated("p", "s", first.next_page_token, limit=3)
        assert (list(second.keys), second.next_page_token) == (["k1", "k0"], None)
        assert paginated.list_paginated("p", "s", limit=5).next_page_token is None

    def test_what_is_removed_lazily_is_not_told(self, inspectable: InspectableKVStore) -> None:
        put(inspectable, "k", b"v", 5)
        inspectable.remove("p", "s", "k", lazy=True)
        with pytest.raises(KeyNotFoundError):
            inspectable.read_entry("p", "s", "k")

    @pytest.mark.parametrize("expected", [None, b"v", b"w"])
    def test_a_check_finds_nothing_where_was_removed_lazily(
        self, atomic: AtomicKVStore, expected: bytes | None
    ) -> None:
        atomic.write("p", "s", "k", b"v")
        atomic.remove("p", "s", "k", lazy=True)
        assert atomic.check_and_put("p", "s", "k", expected=expected, value=b"new") is None
        assert content(atomic) == ({} if expected else {("p", "s", "k"): b"new"})

    @pytest.mark.parametrize("value", [b"v", b"new"])
    def test_a_write_over_a_lazy_removal_stays(
        self, store: KVStoreSync, reopen: Callable[[], Any], value: bytes
    ) -> None:
        """Even one of the very same bytes; and so does one that follows a second removal."""
        for key, times in (("once", 1), ("twice", 2)):
            store.write("p", "s", key, b"v")
            for _ in range(times):
                store.remove("p", "s", key, lazy=True)
                store.write("p", "s", key, value)
            assert store.read("p", "s", key) == value
        store.write("p", "s", "other", b"v")
        expected = {("p", "s", "once"): value, ("p", "s", "twice"): value}
        assert content(store) == {**expected, ("p", "s", "other"): b"v"}
        again = reopen()
        again.remove("p", "s", "other")
        assert content(again) == content(reopen()) == expected

    def test_what_is_written_then_is_new(self, paginated: PaginatedKVStore) -> None:
        for key in ("old", "middle"):
            paginated.write("p", "s", key, b"v")
        paginated.remove("p", "s", "old", lazy=True)
        paginated.write("p", "s", "old", b"v")
        assert list(paginated.list_paginated("p", "s").keys) == ["old", "middle"]

    def test_what_is_removed_lazily_is_not_swept(self, expiring: ExpiringKVStore) -> None:
        put(expiring, "removed", b"v", 5)
        put(expiring, "again", b"v", 5)
        put(expiring, "due", b"v", 5)
        expiring.remove("p", "s", "again", lazy=True)
        expiring.write("p", "s", "again", b"v")
        expiring.remove("p", "s", "removed", lazy=True)
        assert expiring.sweep("p", 5, 10).removed == 1
        assert content(expiring) == {("p", "s", "again"): b"v"}

    @pytest.mark.parametrize("committed", [False, True])
    def test_what_is_removed_lazily_stays_away(
        self, store: KVStoreSync, reopen: Callable[[], Any], committed: bool
    ) -> None:
        """Once the store is closed, whether or not anything else was committed meanwhile."""
        store.write("p", "s", "goes", b"v")
        store.write("p", "s", "stays", b"v")
        again = reopen()
        again.remove("p", "s", "goes", lazy=True)
        if committed:
            again.write("p", "s", "stays", b"w")
        assert content(reopen()) == {("p", "s", "stays"): b"w" if committed else b"v"}

    def test_a_transaction_finds_it_gone(self, transactional: TransactionalKVStore) -> None:
        for key in ("1", "2", "3"):
            transactional.write("p", "s", key, b"v")
            transactional.remove("p", "s", key, lazy=True)
        with transactional.transaction() as txn:
            assert txn.list("p", "s") == []
            with pytest.raises(KeyNotFoundError):
                txn.read("p", "s", "1")
            assert txn.check_and_put("p", "s", "2", expected=None, value=b"v") is None
            txn.write("p", "s", "3", b"v")
        assert content(transactional) == {("p", "s", "2"): b"v", ("p", "s", "3"): b"v"}

    def test_an_undone_transaction_brings_nothing_back(
        self, transactional: TransactionalKVStore
    ) -> None:
        transactional.write("p", "s", "k", b"v")
        transactional.remove("p", "s", "k", lazy=True)
        with contextlib.suppress(ZeroDivisionError), transactional.transaction() as txn:
            txn.write("p", "s", "k", b"undone")
            txn.write("p", "s", "l", b"undone")
            raise ZeroDivisionError
        assert content(transactional) == {}
        transactional.write("p", "s", "l", b"v")
        assert content(transactional) == {("p", "s", "l"): b"v"}

    def test_a_lazy_removal_inside_a_transaction_is_part_of_it(
        self, transactional: TransactionalKVStore
    ) -> None:
        transactional.write("p", "s", "k", b"v")
        with contextlib.suppress(ZeroDivisionError), transactional.transaction() as txn:
            txn.remove("p", "s", "k", lazy=True)
            raise ZeroDivisionError
        assert content(transactional) == {("p", "s", "k"): b"v"}
        with transactional.transaction() as txn:
            txn.remove("p", "s", "k", lazy=True)
        assert content(transactional) == {}

    def test_threads_that_remove_lazily(self, atomic: AtomicKVStore) -> None:
        """Each finds what it has removed gone, whatever the others commit meanwhile."""

        def work(name: str) -> None:
            for n in range(15):
                value = b"%d" % n
                assert atomic.check_and_put("p", "s", name, expected=None, value=value) is None
                atomic.remove("p", "s", name, lazy=True)
                assert name not in atomic.list("p", "s")
                atomic.write("p", "s", f"{name}{n}", value)
                with pytest.raises(KeyNotFoundError):
                    atomic.read("p", "s", name)

        at_once(*(lambda name=name: work(name) for name in "abcd"))
        assert content(atomic) == {
            ("p", "s", f"{name}{n}"): b"%d" % n for name in "abcd" for n in range(15)
        }

    def test_a_check_that_comes_at_once_with_a_lazy_removal(self, atomic: AtomicKVStore) -> None:
        """One comes first: what was found and replaced is removed, or nothing is found."""
        for _ in range(30):
            atomic.write("p", "s", "k", b"v")

            def check() -> bytes | None:
                return atomic.check_and_put("p", "s", "k", expected=b"v", value=b"w")

            def remove() -> bytes | None:
                atomic.remove("p", "s", "k", lazy=True)
                return None

            at_once(check, remove)
            assert atomic.list("p", "s") == []

    def test_what_another_process_puts_stays(self, store: KVStoreSync, beside: Spawn) -> None:
        """Whatever its bytes are; and it sees what is gone, once this process has committed."""
        expected = {("p", "s", "same"): b"v", ("p", "s", "back"): b"v", ("p", "s", "new"): b"w"}
        process = beside(_put_over)
        keys = ("same", "back", "new", "goes")
        for key in keys:
            store.write("p", "s", key, b"v")
        for key in keys:
            store.remove("p", "s", key, lazy=True)
        process.go()
        process.result()
        assert content(store) == expected
        store.write("p", "s", "committed", b"v")
        expected["p", "s", "committed"] = b"v"
        assert content(store) == expected
        process.end()
        later = beside(content)
        later.go()
        assert later.result() == content(store) == expected
        later.end()


def _put_over(store: Any) -> None:
    store.write("p", "s", "same", b"v")
    for value in (b"w", b"v"):
        store.write("p", "s", "back", value)
    store.write("p", "s", "new", b"w")
