"""The map, which grows by itself: in this process, in another, under readers, or not at all."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb.handle import Handle
from kvreplay.errors import StoreUnavailableError
from kvreplay.store import SweepResult
from kvreplay.testing.entries import content
from support.lmdb_stores import KIB, Process, in_process, map_size
from support.told import told


def test_the_map_grows_by_itself(root: Path) -> None:
    with LMDBStore(root, map_size=64 * KIB) as store:
        for n in range(100):
            store.write("p", "s", f"k{n}", bytes([n]) * 2000)
        assert map_size(store) > 200_000
        for n in range(100):
            assert store.read("p", "s", f"k{n}") == bytes([n]) * 2000
    with LMDBStore(root, map_size=64 * KIB) as store:
        assert len(store.list("p", "s")) == 100
        store.write("p", "s", "more", bytes(2000))


def test_one_value_that_is_larger_than_the_map(root: Path) -> None:
    value = random.Random(1).randbytes(1024 * KIB)
    with LMDBStore(root, map_size=64 * KIB) as store:
        store.write("p", "s", "k", value)
        assert store.check_and_put("p", "s", "k", expected=value, value=value[:-1]) == value
        assert store.read("p", "s", "k") == value[:-1]


def fill_transaction(store: LMDBStore) -> None:
    with store.transaction() as txn:
        txn.write("p", "s", "first", b"v")
        for n in range(40):
            txn.write("p", "s", f"secret{n}", b"hidden" * 500)


def test_a_transaction_in_a_full_map(root: Path) -> None:
    with LMDBStore(root, map_size=128 * KIB) as store:
        store.write("p", "s", "k", b"v")
        with pytest.raises(StoreUnavailableError) as caught:
            fill_transaction(store)
        assert isinstance(caught.value.__cause__, lmdb.MapFullError)
        assert "secret" not in told(caught.value)
        assert "hidden" not in told(caught.value)
        assert content(store) == {("p", "s", "k"): b"v"}
        fill_transaction(store)
        assert len(store.list("p", "s")) == 42


def test_a_transaction_that_hides_the_failure(root: Path) -> None:
    with LMDBStore(root, map_size=64 * KIB) as store:
        with pytest.raises(StoreUnavailableError), store.transaction() as txn:
            txn.write("p", "s", "first", b"v")
            for call in (
                lambda: txn.write("p", "s", "k", bytes(100 * KIB)),
                lambda: txn.write("p", "s", "k", b"small"),
                lambda: txn.read("p", "s", "first"),
                lambda: txn.list("p", "s"),
            ):
                with pytest.raises(StoreUnavailableError):
                    call()
        assert content(store) == {}
        assert map_size(store) > 64 * KIB
        store.write("p", "s", "k", b"v")


def test_a_crowded_map_grows_before_a_transaction(root: Path) -> None:
    """So that a transaction of ordinary size needs no second run."""
    with LMDBStore(root, map_size=512 * KIB) as store:
        for n in range(25):
            store.write("p", "s", f"k{n}", bytes(15 * KIB))
        assert map_size(store) == 512 * KIB
        with store.transaction() as txn:
            assert map_size(store) == 1024 * KIB
            txn.write("p", "s", "k", bytes(300 * KIB))
        assert store.read("p", "s", "k") == bytes(300 * KIB)


def test_growth_while_threads_read(root: Path) -> None:
    with LMDBStore(root, map_size=64 * KIB) as store, ThreadPoolExecutor(2) as pool:
        store.write("p", "s", "k", b"v" * 3000)
        done = threading.Event()

        def watch() -> int:
            reads = 0
            while not done.is_set():
                assert store.read("p", "s", "k") == b"v" * 3000
                assert "k" in store.list("p", "s")
                reads += 1
            return reads

        watchers = [pool.submit(watch) for _ in range(2)]
        try:
            for n in range(12):
                store.write("p", "s", f"more{n}", bytes(60 * KIB))
        finally:
            done.set()
        assert all(watcher.result() > 0 for watcher in watchers)
        assert map_size(store) >= 512 * KIB


@pytest.mark.parametrize("how", ["raises", "map full", "a single write"])
def test_a_transaction_is_undone_while_threads_read(root: Path, how: str) -> None:
    """The driver's own ``abort()`` waits for a moment without a reader, which may never come."""
    with LMDBStore(root, map_size=64 * KIB) as store, ThreadPoolExecutor(5) as pool:
        store.write("p", "s", "k", b"v" * 3000)
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                assert store.read("p", "s", "k") == b"v" * 3000
                assert store.list("p", "s")

        def undo() -> None:
            for n in range(5):
                if how == "a single write":
                    store.write("p", "s", f"k{n}", bytes(map_size(store)))
                    continue
                with pytest.raises((ZeroDivisionError, StoreUnavailableError)):
                    with store.transaction() as txn:
                        txn.write("p", "s", "k", b"w")
                        if how == "raises":
                            raise ZeroDivisionError
                        txn.write("p", "s", "k", bytes(map_size(store)))

        watchers = [pool.submit(watch) for _ in range(4)]
        try:
            pool.submit(undo).result(20)
        finally:
            done.set()
        for watcher in watchers:
            watcher.result()


GROW = """
with LMDBStore(path, map_size=64 * 1024) as store:
    store.write("p", "s", "other", bytes(1024 * 1024))
"""


@pytest.mark.parametrize("call", ["read", "list", "write", "transaction", "sweep"])
def test_resized_by_another_process(root: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    met = []
    repair = Handle.repair

    def spy(self: Any, env: Any, error: Exception) -> bool:
        met.append(type(error))
        return repair(self, env, error)

    monkeypatch.setattr(Handle, "repair", spy)
    with LMDBStore(root, map_size=64 * KIB) as store:
        store.write("p", "s", "k", b"v")
        in_process(GROW, root)
        if call == "read":
            assert store.read("p", "s", "other") == bytes(1024 * KIB)
        elif call == "list":
            assert sorted(store.list("p", "s")) == ["k", "other"]
        elif call == "write":
            store.write("p", "s", "k", b"w")
        elif call == "sweep":
            assert store.sweep("p", 5, 5) == SweepResult(0, 0, False)
        else:
            with store.transaction() as txn:
                assert txn.read("p", "s", "other") == bytes(1024 * KIB)
                txn.write("p", "s", "k", b"w")
        # Before a transaction, which cannot be run again, the map's size is looked at anyway.
        assert met == ([] if call == "transaction" else [lmdb.MapResizedError])
        assert store.read("p", "s", "other") == bytes(1024 * KIB)
        assert map_size(store) >= 1024 * KIB


def test_two_processes_grow_in_turn(root: Path) -> None:
    """Upstream calls growth by several processes fragile: what is acknowledged stays."""
    code = """
name = wait()
for part in range(3):
    with LMDBStore(path, map_size=64 * 1024) as store:
        for n in range(20):
            store.write("p", name, f"k{part}-{n}", bytes(5000))
            assert store.read("p", name, f"k{part}-{n}") == bytes(5000)
"""
    with Process(code, root) as one, Process(code, root) as other:
        one.tell("one")
        other.tell("other")
        one.join()
        other.join()
    with LMDBStore(root, map_size=64 * KIB) as store:
        for name in ("one", "other"):
            assert len(store.list("p", name)) == 60
            assert all(store.read("p", name, key) == bytes(5000) for key in store.list("p", name))


def test_a_map_that_cannot_grow(root: Path) -> None:
    """The process may address no more: nothing is written, and small changes go on."""
    code = """
import resource
store = LMDBStore(path, map_size=64 * 1024 * 1024)
store.write("p", "s", "k", b"v")
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (now + 40 * 1024 * 1024,) * 2)
for again in range(2):
    try:
        for n in range(100):
            store.write("p", "s", f"k{n}", bytes(2 * 1024 * 1024))
    except StoreFullError as error:
        say(f"{n} {error}")
    try:
        with store.transaction() as txn:
            txn.write("p", "t", "k", bytes(4 * 1024 * 1024))
    except StoreFullError as error:
        say(str(error))
    assert store.read("p", "s", "k") == b"v"
    assert len(store.list("p", "s")) == n + 1
    assert store.list("p", "t") == []
    for key in store.list("p", "s"):
        store.remove("p", "s", key)
    store.write("p", "s", "k", b"v")
store.close()
"""
    said = in_process(code, root).splitlines()
    assert len(said) == 4
    assert all("cannot grow" in line for line in said)
