"""The memory store, beyond the contract: what an interrupt or a fork may leave behind."""

from __future__ import annotations

import bisect
import threading
from typing import Any

import pytest

from kvreplay.backends import memory
from kvreplay.backends.memory import MemoryStore
from kvreplay.errors import KeyNotFoundError, StoreError, StoreNotFoundError
from kvreplay.store import InspectableKVStore, SweepResult, TransactionalKVStore
from kvreplay.testing.entries import put
from support.waiting import HeldTransaction


def test_what_it_is() -> None:
    store = MemoryStore()
    typed: TransactionalKVStore = store
    assert isinstance(typed, TransactionalKVStore)
    assert isinstance(store, InspectableKVStore)
    assert MemoryStore.LOCATION == "none"
    assert MemoryStore.OPTIONS == {"create": "boolean"}
    assert repr(store) == "<MemoryStore open>"
    store.close()
    assert repr(store) == "<MemoryStore closed>"


def test_there_is_never_one_that_was_made_before() -> None:
    with pytest.raises(StoreNotFoundError, match="begins empty"):
        MemoryStore(create=False)
    MemoryStore(create=True).close()


def test_two_stores_share_nothing() -> None:
    one, other = MemoryStore(), MemoryStore()
    one.write("p", "s", "k", b"v")
    assert list(other.list_all_keys()) == []


def test_a_reader_in_the_middle_of_a_commit_sees_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    apply = MemoryStore._apply
    seen: list[list[str]] = []
    reader = threading.Thread(target=lambda: seen.append(store.list("p", "s")))

    def slowly(self: MemoryStore, *change: Any) -> None:
        apply(self, *change)
        if not reader.ident:
            reader.start()
            reader.join(30)
            assert seen == [["a", "b"]]

    monkeypatch.setattr(MemoryStore, "_apply", slowly)
    with store.transaction() as txn:
        txn.write("p", "s", "a", b"v")
        txn.write("p", "s", "b", b"v")
    assert seen == [["a", "b"]]


def test_its_tables_empty_themselves() -> None:
    store = MemoryStore()
    for n in range(3):
        put(store, f"swept{n}", b"v", 5)
    put(store, "removed", b"v", 6)
    put(store, "never", b"v")
    store.remove("p", "s", "removed")
    store.remove("p", "s", "never")
    assert store.sweep("p", 5, 10).removed == 3
    assert store._expiry == {}
    put(store, "overwritten", b"v", 5)
    store.write("p", "s", "overwritten", b"v")
    store.remove("p", "s", "overwritten")
    assert store._namespaces == {}
    assert store._expiry == store._unsorted == {}


def test_a_few_new_items_and_many_find_their_places_in_the_index() -> None:
    store = MemoryStore()
    for n in range(0, 200, 2):
        put(store, f"k{n}", b"v", n)
    assert store.sweep("p", 0, 1000).removed == 1
    assert len(store._expiry["p"]) == 99, "many are sorted anew"
    for n in (7, 3):
        put(store, f"k{n}", b"v", n)
    put(store, "k100", b"v", 5)  # an earlier one
    put(store, "k102", b"v", 150)  # a later one
    assert store.sweep("p", 6, 1000).removed == 5  # 2, 3, 4, 5, 6
    assert store._unsorted == {}
    assert store._expiry["p"] == sorted(store._expiry["p"])
    assert len(store._expiry["p"]) == len(store.list("p", "s"))
    assert store.sweep("p", 149, 1000).more is False
    assert "k102" in store.list("p", "s")
    assert store.sweep("p", 150, 1000).removed == 2
    assert store._expiry["p"] == [(n, "s", f"k{n}") for n in range(152, 200, 2)]


def test_a_change_beside_a_transaction_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store, waits = MemoryStore(), threading.Event()
    held = HeldTransaction(store, b"transaction")
    found: list[bytes | None] = []

    def change() -> None:
        found.append(store.check_and_put("p", "s", "k", expected=b"transaction", value=b"after"))

    monkeypatch.setattr(store, "_refuse_nested", waits.set)  # it looks there before it waits
    thread = threading.Thread(target=change)
    thread.start()
    assert waits.wait(30)
    assert found == []
    held.end()
    thread.join(30)
    assert found == [b"transaction"]
    assert store.read("p", "s", "k") == b"after"


def test_a_close_inside_the_own_transaction_is_refused() -> None:
    store = MemoryStore()
    with store.transaction() as txn:
        txn.write("p", "s", "k", b"v")
        with pytest.raises(StoreError, match="transaction"):
            store.close()
    assert store.read("p", "s", "k") == b"v"
    store.close()


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("change", ["put", "again", "never", "remove", "sweep"])
def test_an_interrupt_spoils_nothing_for_later_changes(
    monkeypatch: pytest.MonkeyPatch, change: str, step: int
) -> None:
    """Whatever the interrupt left, each entry is the old or the new one, and sweeps are right."""
    store = MemoryStore()
    put(store, "beside", b"v", 7)
    put(store, "k", b"old", 5)
    left = iter(["go"] * step + ["stop"])

    def stop() -> None:
        if next(left, "go") == "stop":
            raise KeyboardInterrupt

    class Dict(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            stop()
            super().__setitem__(key, value)
            stop()

        def __delitem__(self, key: Any) -> None:
            stop()
            super().__delitem__(key)
            stop()

    def insort(*args: Any) -> None:
        stop()
        bisect.insort(*args)
        stop()

    class Bisect:
        bisect_left = staticmethod(bisect.bisect_left)
        bisect_right = staticmethod(bisect.bisect_right)

    Bisect.insort = insort  # type: ignore[attr-defined]
    store._namespaces["p", "s"] = Dict(store._namespaces["p", "s"])
    monkeypatch.setattr(memory, "bisect", Bisect)
    changes: dict[str, Any] = {
        "put": lambda: put(store, "k", b"new", 6),
        "again": lambda: put(store, "k", b"old", 6),
        "never": lambda: put(store, "k", b"new"),
        "remove": lambda: store.remove("p", "s", "k"),
        "sweep": lambda: store.sweep("p", 5, 10),
    }
    try:
        changes[change]()
    except KeyboardInterrupt:
        pass
    left = iter(())
    monkeypatch.undo()
    assert set(store.list("p", "s")) - {"k"} == {"beside"}
    entry = store._find(("p", "s", "k"))
    assert (entry and entry[:2]) in [(b"old", 5), (b"new", 6), (b"old", 6), (b"new", None), None]
    gone = int(entry is not None and entry[1] is not None)
    assert store.sweep("p", 6, 10).removed == gone
    assert store.sweep("p", 6, 10) == SweepResult(0, 0, False)
    put(store, "k", b"again", 6)
    assert store.sweep("p", 6, 10) == SweepResult(1, 1, False)
    assert store.sweep("p", 7, 10) == SweepResult(1, 1, False)
    store.write("p", "s", "k", b"v")
    assert store.list("p", "s") == ["k"]


def test_a_child_forked_in_the_middle_of_a_change_goes_on(fork: Any) -> None:
    """A thread of its parent is half through a change; the child has the new entry, and sweeps."""
    store = MemoryStore()
    put(store, "k", b"old", 5)
    half, forked = threading.Event(), threading.Event()

    class Dict(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            half.set()
            assert forked.wait(30)

    store._namespaces["p", "s"] = Dict(store._namespaces["p", "s"])
    writer = threading.Thread(target=put, args=(store, "k", b"new", 6))
    writer.start()
    assert half.wait(30)

    def child() -> None:
        assert store.read("p", "s", "k") == b"new"
        assert store.sweep("p", 6, 10).removed == 1
        assert store._expiry == {}
        assert store._namespaces == {}

    fork(child).join()
    forked.set()
    writer.join()
    assert store.sweep("p", 6, 10) == SweepResult(1, 1, False)


@pytest.mark.parametrize("step", range(4))
def test_a_child_forked_in_the_middle_of_a_commit_sees_all_of_it(fork: Any, step: int) -> None:
    """As readers in the parent do, who take no lock and do not wait."""
    store = MemoryStore()
    put(store, "old", b"v", 5)
    put(store, "kept", b"v", 5)
    half, forked = threading.Event(), threading.Event()
    steps = iter(range(10))

    def stop() -> None:
        if next(steps) == step:
            half.set()
            assert forked.wait(30)

    class Dict(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            stop()

        def __delitem__(self, key: Any) -> None:
            stop()
            super().__delitem__(key)

    store._namespaces["p", "s"] = Dict(store._namespaces["p", "s"])

    def transact() -> None:
        with store.transaction() as txn:
            txn.write("p", "s", "a", b"new")
            txn.remove("p", "s", "old")
            txn.write("p", "s", "b", b"new")
            txn.write("p", "other", "c", b"new")
            txn.check_and_put("p", "s", "kept", expected=b"v", value=b"new", expires_at=6)

    def look() -> None:
        assert sorted(store.list("p", "s")) == ["a", "b", "kept"]
        assert [store.read("p", "s", key) for key in ("a", "b", "kept")] == [b"new"] * 3
        assert store.read("p", "other", "c") == b"new"
        assert len(set(store.list_all_keys())) == 4
        with pytest.raises(KeyNotFoundError):
            store.read("p", "s", "old")

    def child() -> None:
        look()
        assert store.sweep("p", 6, 10).removed == 1
        assert sorted(store.list("p", "s")) == ["a", "b"]

    transacting = threading.Thread(target=transact)
    transacting.start()
    assert half.wait(30)
    look()
    fork(child).join()
    forked.set()
    transacting.join()
    look()
    assert store._pending == {}


def test_a_child_goes_on_while_the_parents_transaction_is_another_threads(fork: Any) -> None:
    store = MemoryStore()
    transaction = HeldTransaction(store, b"parent")

    def child() -> None:
        assert store.list("p", "s") == []
        store.write("p", "s", "k", b"child")
        with store.transaction() as txn:
            assert txn.read("p", "s", "k") == b"child"

    fork(child).join()
    transaction.end()
    assert store.read("p", "s", "k") == b"parent"


def test_a_child_cannot_commit_its_parents_transaction(fork: Any) -> None:
    """Its entries are a copy, which it may change after it has left the block, or before."""
    store = MemoryStore()

    def child(txn: Any, block: Any) -> None:
        store.write("p", "s", "before", b"child")
        for call in (lambda: txn.write("p", "s", "k", b"v"), lambda: txn.read("p", "s", "k")):
            with pytest.raises(StoreError, match="forked child"):
                call()
        with pytest.raises(StoreError, match="forked child"):
            block.__exit__(None, None, None)
        store.write("p", "s", "after", b"child")
        assert sorted(store.list("p", "s")) == ["after", "before"]

    block = store.transaction()
    with block as txn:
        txn.write("p", "s", "k", b"parent")
        fork(lambda: child(txn, block)).join()
    assert store.list("p", "s") == ["k"]
