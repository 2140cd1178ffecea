"""Opening and closing: stores of one process share the files, and the last one closes them."""

from __future__ import annotations

import errno
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import environment as lmdb_environment
from kvreplay.backends.lmdb import files as lmdb_files
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from support.interrupts import interrupted_when
from support.lmdb_stores import (
    KIB,
    MARKER,
    environment_of,
    in_process,
    nothing_is_open,
    open_files_of,
    users_of,
)
from support.waiting import PATIENCE, HeldTransaction, until


def test_a_closed_store_keeps_no_file_open(root: Path) -> None:
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
        assert str(root.resolve() / "kvreplay.lock") in open_files_of(root)
    assert open_files_of(root) == []


@pytest.mark.parametrize("first", [True, False])
def test_a_store_that_another_process_makes_meanwhile_misses_nothing(
    root: Path, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before, or after, this one looks whether it had a store before."""
    look = lmdb_files._marked_id

    def looking(path: Path) -> bytes | None:
        monkeypatch.undo()
        seen = None if first else look(path)
        assert in_process('LMDBStore(path).close(); say("made")', path) == "made\n"
        return look(path) if first else seen

    monkeypatch.setattr(lmdb_files, "_marked_id", looking)
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"v"


def test_a_change_that_comes_after_the_end_keeps_no_file_open(root: Path) -> None:
    """It takes its turn, and learns only then that the store was closed."""
    store = LMDBStore(root)
    environment = environment_of(store)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        environment.write(lambda txn: None)
    del environment
    gc.collect()
    assert open_files_of(root) == []


def test_opened_twice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    link = root.with_name("link")
    link.symlink_to(root)
    monkeypatch.chdir(root.parent)
    stores = [LMDBStore(root), LMDBStore(link), LMDBStore("store"), LMDBStore(str(root) + "/.")]
    assert len({store.identity for store in stores}) == 1
    assert len({id(environment_of(store)) for store in stores}) == 1
    stores[0].write("p", "s", "k", b"v")
    while stores:
        assert [store.read("p", "s", "k") for store in stores] == [b"v"] * len(stores)
        assert open_files_of(root)
        closing = stores.pop(0)
        closing.close()
        closing.close()
        with pytest.raises(StoreError, match="closed"):
            closing.read("p", "s", "k")
    assert open_files_of(root) == []
    assert nothing_is_open()
    with LMDBStore(link) as store:
        assert store.read("p", "s", "k") == b"v"


def test_a_relative_path_does_not_follow_a_chdir(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    with LMDBStore("store") as store:
        monkeypatch.chdir("/")
        environment_of(store).handle.gate.alone(lambda env: env and env.close())
        store.write("p", "s", "k", b"v")
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"v"


def test_another_durability_is_refused(root: Path) -> None:
    with LMDBStore(root, durability="process") as store:
        with pytest.raises(ConfigError, match="durability=process"):
            LMDBStore(root)
        store.write("p", "s", "k", b"v")
        with LMDBStore(root, durability="process", map_size=64 * KIB, max_readers=3) as same:
            assert same.read("p", "s", "k") == b"v"
    with LMDBStore(root, durability="full") as store:
        assert store.read("p", "s", "k") == b"v"


def test_open_without_kvreplay_in_this_process(root: Path) -> None:
    LMDBStore(root).close()
    with (
        lmdb.open(str(root), max_dbs=8, lib_version=0),
        pytest.raises(StoreError, match="open already") as caught,
    ):
        LMDBStore(root)
    assert not isinstance(caught.value, CorruptStoreError)
    LMDBStore(root).close()


def test_the_files_are_replaced_while_open(root: Path, tmp_path: Path) -> None:
    with LMDBStore(tmp_path / "backup") as backup:
        backup.write("p", "s", "k", b"backup")
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
        os.replace(tmp_path / "backup" / "data.mdb", root / "data.mdb")
        with pytest.raises(StoreError, match="replaced"):
            LMDBStore(root)
        assert store.read("p", "s", "k") == b"v"
    with pytest.raises(CorruptStoreError, match="another store's"):
        LMDBStore(root)
    (root / MARKER).unlink()  # as the message says, to go on with it
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"backup"


def test_a_marker_that_cannot_be_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_files, "replace_file", fail)
        with pytest.raises(StoreFullError) as caught:
            LMDBStore(root)
        assert caught.value.__cause__ is not None  # while its traceback lives, too
        assert open_files_of(root) == []
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")
    assert (root / MARKER).exists()


def test_a_failed_opening_leaves_nothing_open(root: Path) -> None:
    root.mkdir()
    (root / MARKER).write_bytes(b"kvreplay lmdb 3\n")
    for _ in range(2):
        with pytest.raises(CorruptStoreError):
            LMDBStore(root)
    assert open_files_of(root) == []
    assert nothing_is_open()


def test_files_that_vanish_while_they_are_opened_are_not_left_open(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LMDB would refuse every later opening in this process."""

    def vanished(handle: Any) -> None:
        raise StoreError("cannot be looked at")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_environment, "GroupCommit", vanished)
        with pytest.raises(StoreError, match="looked at") as kept:
            LMDBStore(root)
    assert kept.value
    with LMDBStore(root) as store:
        store.write("p", "s", "k", b"v")


def test_opened_while_the_last_one_closes(root: Path) -> None:
    """Closing waits for another thread's transaction; a store that is opened meanwhile is usable."""
    first = LMDBStore(root)
    transaction = HeldTransaction(first, b"v")
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(first.close)
        until(lambda: "closed" in repr(first) and not users_of(root))
        second = LMDBStore(root)
        transaction.end()
        closing.result(30)
        assert second.read("p", "s", "k") == b"v"
        second.write("p", "s", "k", b"w")
        second.close()
    assert nothing_is_open()
    assert open_files_of(root) == []


def test_opened_inside_a_transaction_while_another_thread_closes(root: Path) -> None:
    """No deadlock: the transaction's thread is told to end it first."""
    first = LMDBStore(root)
    environment = environment_of(first)
    with ThreadPoolExecutor(1) as pool:
        with first.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            closing = pool.submit(first.close)
            until(lambda: environment.handle.gate.handle is None)
            with LMDBStore(root) as second:
                with pytest.raises(StoreUnavailableError, match="end it first"):
                    second.read("p", "s", "k")
                with pytest.raises(StoreError, match="transaction"):
                    second.write("p", "s", "k", b"w")
                assert txn.read("p", "s", "k") == b"v"
                third = LMDBStore(root)
        closing.result(30)
    assert third.read("p", "s", "k") == b"v"
    third.close()


def test_a_close_that_is_refused_counts_nothing(root: Path) -> None:
    store = LMDBStore(root)
    for _ in range(3):
        with store.transaction() as txn:
            txn.write("p", "s", "k", b"v")
            with pytest.raises(StoreError, match="transaction"):
                store.close()
            with LMDBStore(root) as other:  # not the last one: may close
                assert other.list("p", "s") in ([], ["k"])
    assert store.read("p", "s", "k") == b"v"
    store.close()
    assert nothing_is_open()


def test_an_interrupt_during_the_last_close(root: Path) -> None:
    """The files stay open; the next store shares them, and closes them."""
    store = LMDBStore(root)
    environment = environment_of(store)
    handle = environment.handle.gate.handle
    inside, over = threading.Event(), threading.Event()

    def stay_inside() -> None:
        with environment.handle.gate.own():
            inside.set()
            assert over.wait(PATIENCE)

    stayer = threading.Thread(target=stay_inside)
    stayer.start()
    assert inside.wait(PATIENCE)

    def gate_is_closed() -> bool:
        return environment.handle.gate.handle is None

    with pytest.raises(KeyboardInterrupt), interrupted_when(gate_is_closed):
        store.close()
    assert environment.handle.gate.handle is handle, "who is inside goes on with it"
    over.set()
    stayer.join()
    with LMDBStore(root) as again:
        again.write("p", "s", "k", b"v")
    assert nothing_is_open()
    assert open_files_of(root) == []
