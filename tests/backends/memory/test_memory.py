"""The memory store, beyond the contract: what an interrupt or a fork may leave behind."""

from __future__ import annotations

import bisect
import threading
from typing import Any

import pytest

from kvreplay.backends import memory
from kvreplay.backends.memory import MemoryStore
from kvreplay.errors import StoreError
from kvreplay.store import SweepResult, TransactionalKVStore
from kvreplay.testing.entries import put
from support.waiting import HeldTransaction


def test_what_it_is() -> None:
    store = MemoryStore()
    typed: TransactionalKVStore = store
    assert isinstance(typed, TransactionalKVStore)
    assert MemoryStore.LOCATION == "none"
    assert MemoryStore.OPTIONS == {}
    assert repr(store) == "<MemoryStore open>"
    store.close()
    assert repr(store) == "<MemoryStore closed>"


def test_two_stores_share_nothing() -> None:
    one, other = MemoryStore(), MemoryStore()
    one.write("p", "s", "k", b"v")
    assert list(other.list_all_keys()) == []


def test_a_reader_waits_for_the_end_of_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    apply = MemoryStore._apply
    seen: list[list[str]] = []
    reader = threading.Thread(target=lambda: seen.append(store.list("p", "s")))

    def slowly(self: MemoryStore, *change: Any) -> None:
        apply(self, *change)
        if not reader.ident:
            reader.start()
            reader.join(0.1)
            assert not seen

    monkeypatch.setattr(MemoryStore, "_apply", slowly)
    with store.transaction() as txn:
        txn.write("p", "s", "a", b"v")
        txn.write("p", "s", "b", b"v")
    reader.join(30)
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
    assert store._expiry == {}


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
    assert entry in [(b"old", 5), (b"new", 6), (b"old", 6), (b"new", None), None]
    gone = int(entry is not None and entry[1] is not None)
    assert store.sweep("p", 6, 10).removed == gone
    assert store.sweep("p", 6, 10) == SweepResult(0, 0, False)
    put(store, "k", b"again", 6)
    assert store.sweep("p", 6, 10) == SweepResult(1, 1, False)
    assert store.sweep("p", 7, 10) == SweepResult(1, 1, False)
    store.write("p", "s", "k", b"v")
    assert store.list("p", "s") == ["k"]


def test_a_fork_waits_for_a_change_in_the_middle(fork: Any) -> None:
    """The child of a process that forks while a thread is half through a change finds it whole."""
    store = MemoryStore()
    put(store, "k", b"old", 5)
    half, forked = threading.Event(), threading.Event()

    class Dict(dict[Any, Any]):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            half.set()
            forked.wait(0.2)  # it is the fork that waits, so this one has to go on by itself

    store._namespaces["p", "s"] = Dict(store._namespaces["p", "s"])
    writer = threading.Thread(target=put, args=(store, "k", b"new", 6))
    writer.start()
    assert half.wait(30)

    def child() -> None:
        assert store._find(("p", "s", "k")) == (b"new", 6)
        assert store._expiry == {"p": [(6, "s", "k")]}

    fork(child).join()
    forked.set()
    writer.join()
    assert store.sweep("p", 6, 10) == SweepResult(1, 1, False)


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


def test_a_child_may_end_the_transaction_in_which_it_was_forked(fork: Any) -> None:
    """Its entries are a copy, and the transaction is one too."""
    store = MemoryStore()

    def child(txn: Any, block: Any) -> None:
        with pytest.raises(StoreError, match="transaction"):
            store.write("p", "s", "x", b"child")
        txn.write("p", "s", "more", b"child")
        block.__exit__(None, None, None)
        assert sorted(store.list("p", "s")) == ["k", "more"]
        store.write("p", "s", "x", b"child")

    block = store.transaction()
    with block as txn:
        txn.write("p", "s", "k", b"parent")
        fork(lambda: child(txn, block)).join()
    assert store.list("p", "s") == ["k"]
