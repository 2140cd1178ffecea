"""A fork that runs none of Python's hooks, as a C library makes it: the child goes on."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvreplay import InFlightError, InProcessAtomicStore, Replay, StoreError
from kvreplay._runtime.singleflight import flights
from kvreplay.backends.memory import MemoryStore
from kvreplay.store import TransactionalKVStore, locks
from kvreplay.testing import forking
from kvreplay.testing.entries import content, count_up, put
from support.engines import SHARED
from support.forking import BareChild

KEY = ("s", "i")


Fork = Callable[[Callable[[], object]], BareChild]


@pytest.fixture
def bare_fork() -> Fork:
    return BareChild


def test_no_hook_runs(bare_fork: Fork) -> None:
    ran = []
    os.register_at_fork(after_in_child=lambda: ran.append("hook"))

    def child() -> None:
        assert ran == []

    bare_fork(child).join()


@pytest.mark.parametrize("child", [forking.Child, BareChild])
@pytest.mark.parametrize("wiped", [True, False])
def test_a_mark_tells_a_child(child: Any, wiped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the kernel cannot wipe a page: then the pid is compared."""
    if not wiped:
        monkeypatch.setattr(locks, "_MADV_WIPEONFORK", 99)
    mark = locks.process_mark()
    assert isinstance(mark, mmap.mmap) is wiped

    def look() -> None:
        assert not mark[0]
        assert locks.process_mark()[0]

    child(look).join()
    assert mark[0]


def test_a_child_goes_on_and_so_does_its_parent(engine: Any, store: Any, bare_fork: Fork) -> None:
    store.write("p", "s", "n", b"0")
    put(store, "due", b"v", 5)

    def grandchild() -> None:
        count_up(store, 1)

    def child() -> None:
        bare_fork(grandchild).join()
        count_up(store, 1)
        assert store.sweep("p", 5, 10).removed == 1
        assert sorted(store.list("p", "s")) == ["n"]
        if isinstance(store, TransactionalKVStore):
            with store.transaction() as txn:
                txn.write("p", "s", "more", b"v")
        store.close()

    bare_fork(child).join()
    count_up(store, 1)
    if engine.durable:
        assert store.read("p", "s", "n") == b"3"
        assert content(store).keys() - {("p", "s", "more")} == {("p", "s", "n")}


@pytest.mark.parametrize("engine", SHARED, indirect=True)
def test_a_new_store_of_a_child(engine: Any, store: Any, bare_fork: Fork) -> None:
    """It is opened beside the inherited one, which the child never uses."""
    store.write("p", "s", "n", b"0")

    def child() -> None:
        with engine.open() as own:
            count_up(own, 1)
        store.close()

    bare_fork(child).join()
    count_up(store, 1)
    assert store.read("p", "s", "n") == b"2"


def test_a_child_is_another_owner(store: Any, bare_fork: Fork) -> None:
    """The parent's handler runs on: no flight of it is in the child's table, but its claim is."""
    replay = Replay(store, "ns", ttl=60, wait_timeout=0)
    started, over = threading.Event(), threading.Event()

    def handler() -> int:
        started.set()
        assert over.wait(30)
        return 1

    def child() -> None:
        assert len(flights) == 0
        with pytest.raises(InFlightError, match="another owner"):
            replay.execute(KEY, 1, lambda: 2)
        with pytest.raises(InFlightError):
            replay.release(KEY)
        assert replay.execute(("s", "own"), 1, lambda: 2).response == 2

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(replay.execute, KEY, 1, handler)
        assert started.wait(30)
        bare_fork(child).join()
        over.set()
        assert leader.result(30).response == 1
    assert replay.execute(KEY, 1, lambda: 2).replayed


@pytest.mark.parametrize("make", [MemoryStore, lambda: InProcessAtomicStore(MemoryStore())])
def test_a_lock_that_another_thread_holds_is_free(make: Any, bare_fork: Fork) -> None:
    store = make()
    lock = store._writer if isinstance(store, MemoryStore) else store._lock
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert over.wait(30)

    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(hold)
        assert held.wait(30)
        bare_fork(lambda: store.write("p", "s", "k", b"v")).join()
        over.set()
        holder.result(30)
    store.write("p", "s", "k", b"v")


def test_a_child_forked_in_its_parents_transaction(transactional: Any, bare_fork: Fork) -> None:
    def child(block: Any, txn: Any) -> None:
        for call in (
            lambda: txn.write("p", "s", "k", b"child"),
            lambda: block.__exit__(None, None, None),
        ):
            with pytest.raises(StoreError, match="forked child"):
                call()

    block = transactional.transaction()
    with block as txn:
        txn.write("p", "s", "k", b"parent")
        bare_fork(lambda: child(block, txn)).join()
    assert content(transactional) == {("p", "s", "k"): b"parent"}


def test_lmdb_says_so_if_another_thread_was_in_a_call(new_engine: Any, bare_fork: Fork) -> None:
    """Such a fork waits for nobody; the child is refused, and does not hang."""
    engine = new_engine("lmdb")
    store = engine.open()
    store.write("p", "s", "k", b"v")
    inside, over = threading.Event(), threading.Event()

    def stay(txn: Any) -> None:
        inside.set()
        assert over.wait(30)

    def child() -> None:
        for call in (lambda: store.read("p", "s", "k"), engine.open):
            with pytest.raises(StoreError, match="forked while its parent was in a transaction"):
                call()

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(store._opened().handle.read, stay)
        assert inside.wait(30)
        bare_fork(child).join()
        over.set()
        reader.result(30)
    bare_fork(lambda: store.read("p", "s", "k")).join()


def test_a_child_does_not_keep_a_lock_of_its_parents(new_engine: Any, bare_fork: Fork) -> None:
    """Of a change that another thread was in the middle of, once the child has used a store."""
    from kvreplay.backends.filesystem.locks import flocked, lock_file

    store = new_engine("filesystem").open()
    locked = lock_file(store._sidecar, 7)
    reader, writer = os.pipe()
    looked, ended = os.pipe()

    def child() -> None:
        store.write("p", "s", "k", b"v")
        os.write(writer, b"1")
        os.read(looked, 1)

    with flocked(locked):
        forked = bare_fork(child)
        os.read(reader, 1)
        (fd,) = [fd for fd in _open_lock_files() if os.path.samestat(os.fstat(fd), os.stat(locked))]
        os.close(fd)  # as if the parent died here, without giving its lock back
    with flocked(locked, wait=False):
        pass
    os.write(ended, b"1")
    forked.join()
    for each in (reader, writer, looked, ended):
        os.close(each)


def _open_lock_files() -> list[int]:
    from kvreplay.backends import file_lock

    return list(file_lock._opened.files)
