"""The engine itself: creation numbers, sizes, the log that is shortened, and shared commits."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.sqlite import SQLiteStore, committer
from kvreplay.backends.sqlite import store as sqlite_store
from kvreplay.errors import InvalidValueError, StoreError
from kvreplay.store import Change
from kvreplay.testing.entries import content, put
from support.sqlite_stores import raw
from support.waiting import HeldTransaction, until


@pytest.fixture
def store(root: Path) -> Any:
    with SQLiteStore(root) as store:
        yield store


def orders(root: Path) -> list[int]:
    with raw(root) as connection:
        rows = connection.execute("SELECT sort_order FROM ldk_node_data ORDER BY 1").fetchall()
    return [order for (order,) in rows]


def test_no_creation_number_is_given_twice_by_many_processes_and_threads(root: Path) -> None:
    with SQLiteStore(root) as one, SQLiteStore(root) as two, ThreadPoolExecutor(6) as pool:

        def create(n: int) -> None:
            store = (one, two)[n % 2]
            if n % 3 == 0:
                store.check_and_put_each([Change("p", "s", f"{n}-{m}", None, b"v") for m in "ab"])
            elif n % 3 == 1:
                with store.transaction() as txn:
                    txn.write("p", "s", f"{n}-a", b"v")
                    txn.write("p", "s", f"{n}-b", b"v")
            else:
                store.write("p", "s", f"{n}-a", b"v")
                store.write("p", "s", f"{n}-b", b"v")

        list(pool.map(create, range(30)))
    assert orders(root) == list(range(1, 61))


def test_a_number_of_a_transaction_that_is_undone_may_be_given_again(
    store: Any, root: Path
) -> None:
    with pytest.raises(ZeroDivisionError), store.transaction() as txn:
        txn.write("p", "s", "undone", b"v")
        raise ZeroDivisionError
    store.write("p", "s", "k", b"v")
    store.close()
    assert orders(root) == [1]


def test_a_value_beyond_sqlites_limit(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_MAX_VALUE", 100)
    store.write("p", "s", "k", bytes(100))
    with store.transaction() as txn:
        for call in (
            lambda: txn.write("p", "s", "k", bytes(101)),
            lambda: txn.check_and_put("p", "s", "n", expected=None, value=bytes(101)),
        ):
            with pytest.raises(InvalidValueError, match="more than SQLite can hold"):
                call()
    for call in (
        lambda: store.write("p", "s", "k", bytes(101)),
        lambda: store.check_and_put("p", "s", "n", expected=None, value=bytes(101)),
    ):
        with pytest.raises(InvalidValueError, match="more than SQLite can hold"):
            call()
    (outcome,) = store.check_and_put_each([Change("p", "s", "n", None, bytes(101))])
    assert isinstance(outcome, InvalidValueError)
    assert content(store) == {("p", "s", "k"): bytes(100)}


def test_the_log_is_shortened_now_and_then(
    store: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwriting the same entry for ever does not let it grow for ever."""
    monkeypatch.setattr(committer, "_CHECKPOINT_PAGES", 60)
    sizes = []
    for n in range(200):
        store.write("p", "s", "k", bytes([n]) * 3000)
        sizes.append(os.stat(f"{root}-wal").st_size)
    assert sizes[-1] == sizes[40], "it has grown on and on"


def test_a_reader_keeps_the_log_and_stops_nobody(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program that reads for long: the log grows, and gives its room back at the end."""
    monkeypatch.setattr(committer, "_CHECKPOINT_PAGES", 60)
    monkeypatch.setattr(committer, "_LARGE_LOG", 80 * 4096)
    with SQLiteStore(root) as store, raw(root) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM ldk_node_data").fetchall()
        for n in range(100):
            store.write("p", "s", "k", bytes([n]) * 3000)
        assert os.stat(f"{root}-wal").st_size > 100 * 4096
        reader.execute("COMMIT")
        for n in range(20):
            store.write("p", "s", "k", bytes([n]) * 3000)
        assert os.stat(f"{root}-wal").st_size <= 80 * 4096


def test_a_large_log_is_shortened_at_the_next_opening(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "_LARGE_LOG", 20 * 4096)
    with SQLiteStore(root) as one:
        for n in range(40):
            one.write("p", "s", "k", bytes([n]) * 3000)
        size = os.stat(f"{root}-wal").st_size
        assert size > 20 * 4096
        with SQLiteStore(root) as two:
            two.write("p", "s", "k", b"v")
            assert os.stat(f"{root}-wal").st_size <= 20 * 4096, "it did not begin anew"


def test_writes_that_wait_share_a_commit(store: Any) -> None:
    """Each has its own outcome; one that cannot be made fails alone."""
    committed = []
    commit = committer.Committer.commit_begun

    def count(self: committer.Committer) -> None:
        committed.append(1)
        commit(self)

    held = HeldTransaction(store)
    with ThreadPoolExecutor(20) as pool, pytest.MonkeyPatch.context() as patch:
        waiting = [
            pool.submit(store.check_and_put, "p", "s", f"k{n % 10}", expected=None, value=b"%d" % n)
            for n in range(20)
        ]
        until(lambda: len(store._opened()._queue._waiting) == 20)
        patch.setattr(committer.Committer, "commit_begun", count)
        held.end()
        found = [each.result(30) for each in waiting]
    assert len(committed) <= 3, "they did not share"
    assert found.count(None) == 10
    for n in range(10):
        assert store.read("p", "s", f"k{n}") in {found[n], found[n + 10]} | {
            b"%d" % n,
            b"%d" % (n + 10),
        }


def test_many_threads_that_read_at_once(store: Any) -> None:
    put(store, "k", b"v")
    start = threading.Barrier(80)

    def read() -> bytes:
        start.wait(30)
        for _ in range(20):
            assert store.read("p", "s", "k") == b"v"
        value: bytes = store.read("p", "s", "k")
        return value

    with ThreadPoolExecutor(80) as pool:
        assert {each.result(60) for each in [pool.submit(read) for _ in range(80)]} == {b"v"}
    assert len(store._opened().connections._readers) <= 64
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.read("p", "s", "k")
