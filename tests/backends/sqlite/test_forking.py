"""A child and SQLite: it holds locks of its own, and ends none of its parent's."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.sqlite import SQLiteStore, connections
from kvreplay.errors import StoreError
from kvreplay.testing.entries import content, count_up
from kvreplay.testing.forking import Child
from support.forking import BareChild
from support.sqlite_stores import Process, locks_of

FORKS = pytest.mark.parametrize("make", [Child, BareChild])


@FORKS
def test_a_child_holds_locks_of_its_own_and_its_parent_keeps_its_locks(
    root: Path, make: Callable[[Callable[[], object]], Any]
) -> None:
    """Without them, another process could take itself for the last one and remove the log."""
    with SQLiteStore(root) as store:
        store.write("p", "s", "n", b"0")
        before = locks_of(os.getpid(), root)
        assert before

        def child() -> None:
            count_up(store, 1)
            assert locks_of(os.getpid(), root) == before
            assert locks_of(os.getppid(), root) == before
            store.close()
            assert locks_of(os.getpid(), root) == []

        make(child).join()
        assert locks_of(os.getpid(), root) == before
        count_up(store, 1)
        assert store.read("p", "s", "n") == b"2"


@FORKS
def test_a_child_that_comes_back_late_removes_nobodys_log(
    root: Path, make: Callable[[Callable[[], object]], Any]
) -> None:
    """Its parent has closed, another process has committed and was killed: only the log has that."""
    reader, writer = os.pipe()
    store = SQLiteStore(root)
    store.write("p", "s", "k", b"v")
    kept = list[Any]()

    def child() -> None:
        os.read(reader, 1)
        kept.append(store._database)  # nothing of it is deleted before
        assert store.read("p", "s", "later") == b"acknowledged"
        store.close()

    forked = make(child)
    store.close()
    code = """
store = SQLiteStore(path)
store.write("p", "s", "later", b"acknowledged")
say("written")
wait()
"""
    with Process(code, root) as process:
        assert process.hear() == "written"
        process.kill()
    os.write(writer, b"1")
    forked.join()
    with SQLiteStore(root) as again:
        assert again.read("p", "s", "later") == b"acknowledged"
    for each in (reader, writer):
        os.close(each)


def test_a_child_that_only_deletes_the_store(root: Path) -> None:
    with SQLiteStore(root) as store:
        store.write("p", "s", "k", b"v")
        before = locks_of(os.getpid(), root)

        def child() -> None:
            database = store._database
            store._database = None
            del database

        BareChild(child).join()
        assert locks_of(os.getpid(), root) == before
        store.write("p", "s", "k", b"w")
        assert content(store) == {("p", "s", "k"): b"w"}


def test_a_child_that_deletes_what_its_parent_had_closed(root: Path) -> None:
    """As the collector may do late: the child's own locks on the same file stay."""
    old = SQLiteStore(root)
    old.write("p", "s", "n", b"0")
    old.read("p", "s", "n")
    kept = [old._database]
    old.close()
    with SQLiteStore(root) as store:

        def child() -> None:
            count_up(store, 1)
            before = locks_of(os.getpid(), root)
            assert before
            kept.clear()
            gc.collect()
            assert locks_of(os.getpid(), root) == before

        BareChild(child).join()


def test_a_fork_waits_for_a_read_of_a_store_that_is_closed_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else SQLite in the child takes the parent's locks for its own."""
    monkeypatch.setattr(connections, "FORK_PATIENCE", 0.5)
    store = SQLiteStore(root)
    store.write("p", "s", "n", b"0")
    reading, over = threading.Event(), threading.Event()
    database = store._database
    assert database is not None

    def read() -> None:
        def pause(value: object) -> object:
            reading.set()
            assert over.wait(30)
            return value

        row = database.connections.row("SELECT value FROM ldk_node_data", ())
        assert row == (b"0",)
        (cursor,) = database.connections._free
        cursor.connection.create_function("pause", 1, pause)
        database.connections.row("SELECT pause(value) FROM ldk_node_data", ())

    thread = threading.Thread(target=read)
    thread.start()
    assert reading.wait(30)
    store.close()

    def child() -> None:
        with pytest.raises(StoreError, match="forked while its parent was in a call"):
            SQLiteStore(root)

    Child(child).join()
    over.set()
    thread.join()

    def opens() -> None:
        with SQLiteStore(root) as own:
            assert own.read("p", "s", "n") == b"0"
            assert locks_of(os.getpid(), root)

    Child(opens).join()


def test_two_stores_of_a_child_on_one_file(root: Path) -> None:
    """All that is inherited is closed before the first is opened anew."""
    with SQLiteStore(root) as one, SQLiteStore(root) as two:
        one.write("p", "s", "n", b"0")
        before = sorted(locks_of(os.getpid(), root))

        def child() -> None:
            count_up(one, 1)
            count_up(two, 1)
            assert sorted(locks_of(os.getpid(), root)) == before
            one.close()
            count_up(two, 1)
            assert locks_of(os.getpid(), root)
            two.close()

        BareChild(child).join()
        assert two.read("p", "s", "n") == b"3"


def test_a_fork_without_hooks_among_calls_is_refused_in_the_child(root: Path) -> None:
    with SQLiteStore(root) as store:
        store.write("p", "s", "k", b"v")
        inside, over = threading.Event(), threading.Event()

        def transact() -> None:
            with store.transaction() as txn:
                txn.write("p", "s", "k", b"w")
                inside.set()
                assert over.wait(30)

        thread = threading.Thread(target=transact)
        thread.start()
        assert inside.wait(30)

        def child() -> None:
            for call in (lambda: store.read("p", "s", "k"), lambda: SQLiteStore(root)):
                with pytest.raises(StoreError, match="forked while its parent was in a call"):
                    call()

        BareChild(child).join()
        over.set()
        thread.join()
        BareChild(lambda: store.read("p", "s", "k")).join()
        assert store.read("p", "s", "k") == b"w"
