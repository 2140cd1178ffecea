"""Forking. That a child goes on, idle or forked among busy threads, is in the contract."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvreplay.backends.lmdb import LMDBStore, gate
from kvreplay.backends.lmdb import files as lmdb_files
from kvreplay.backends.lmdb.entries import HEAD
from kvreplay.errors import StoreError
from kvreplay.testing.entries import content
from support.lmdb_stores import Process, environment_of, in_process
from support.waiting import until


def test_a_child_cannot_commit_its_parents_transaction(store: LMDBStore, fork: Any) -> None:
    def child(block: Any, txn: Any) -> None:
        for call in (
            lambda: txn.write("p", "s", "k", b"child"),
            lambda: txn.read("p", "s", "k"),
            lambda: txn.list("p", "s"),
            lambda: txn.remove("p", "s", "k"),
            lambda: txn.check_and_put("p", "s", "k", expected=None, value=b"child"),
        ):
            with pytest.raises(StoreError, match="forked"):
                call()
        with pytest.raises(StoreError, match="forked child"):
            block.__exit__(None, None, None)
        with pytest.raises(StoreError, match="ended"):
            txn.write("p", "s", "k", b"child")

    block = store.transaction()
    with block as txn:
        txn.write("p", "s", "k", b"parent")
        fork(lambda: child(block, txn)).join()
        fork(lambda: child(block, txn)).join()
        assert txn.read("p", "s", "k") == b"parent"
        txn.write("p", "s", "more", b"parent")
    assert content(store) == {("p", "s", "k"): b"parent", ("p", "s", "more"): b"parent"}


def test_a_child_that_raises_inside_its_parents_transaction(store: LMDBStore, fork: Any) -> None:
    def child(block: Any) -> None:
        assert not block.__exit__(ZeroDivisionError, ZeroDivisionError(), None)

    block = store.transaction()
    with block as txn:
        txn.write("p", "s", "k", b"parent")
        fork(lambda: child(block)).join()
        assert txn.read("p", "s", "k") == b"parent"
    assert store.read("p", "s", "k") == b"parent"


def test_a_child_waits_for_its_parents_transaction(store: LMDBStore, root: Path, fork: Any) -> None:
    """It closes the parent's handle, and so must not free the parent's lock or spoil its pages."""
    reader, writer = os.pipe()

    def child() -> None:
        os.write(writer, b"1")
        store.write("p", "s", "child", b"v")  # opens, and waits for the lock
        assert store.read("p", "s", "k") == b"parent"
        store.close()

    with store.transaction() as txn:
        txn.write("p", "s", "k", b"parent")
        forked = fork(child)
        os.read(reader, 1)
        for n in range(200):
            txn.write("p", "s", f"k{n}", bytes(3000))
        assert os.waitpid(forked.pid, os.WNOHANG) == (0, 0)
        with Process('with LMDBStore(path) as store: say(store.list("p", "s"))', root) as other:
            assert other.popen.poll() is None
    forked.join()
    os.close(reader)
    os.close(writer)
    assert len(store.list("p", "s")) == 202
    assert all(store.read("p", "s", f"k{n}") == bytes(3000) for n in range(200))


STRANDED = """
import threading
from kvreplay.backends.lmdb import shared
shared.FORK_PATIENCE = 0.05
store = LMDBStore(path)
store.write("p", "s", "k", b"old")
inside, over = threading.Event(), threading.Event()
def transact():
    with store.transaction() as txn:
        txn.write("p", "s", "k", b"new")
        inside.set()
        over.wait()
thread = threading.Thread(target=transact)
thread.start()
inside.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    def refused(call):
        try:
            call()
        except StoreError as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError
    def use():
        refused(lambda: store.read("p", "s", "k"))
        refused(lambda: store.write("p", "s", "k", b"child"))
        refused(lambda: store.transaction().__enter__())
        refused(lambda: LMDBStore(path))
    use()
    grandchild = os.fork()
    if grandchild == 0:
        use()
        sys.exit(0)
    assert os.waitpid(grandchild, 0)[1] == 0
    use()
    store.close()
    store.close()
    sys.exit(7)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
assert store.read("p", "s", "k") == b"old"
over.set()
thread.join()
assert store.read("p", "s", "k") == b"new"
pid = os.fork()
if pid == 0:
    store.write("p", "s", "k", b"child")
    store.close()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert store.read("p", "s", "k") == b"child"
store.close()
"""


def test_a_child_forked_in_another_threads_long_transaction(root: Path) -> None:
    """The fork does not wait for ever, and the child says what is wrong instead of hanging."""
    code = STRANDED
    if sys.version_info >= (3, 12):  # it warns, rightly, of forking with threads
        code = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + code
    in_process(code, root)


def test_a_fork_while_another_thread_closes(
    root: Path, fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closing waits for the transaction, whose thread forks: no deadlock."""
    monkeypatch.setattr("kvreplay.backends.lmdb.shared.FORK_PATIENCE", 0.05)
    store = LMDBStore(root)
    store.write("p", "s", "k", b"v")

    environment = environment_of(store)

    def child() -> None:
        with pytest.raises(StoreError, match="forked"):
            LMDBStore(root)

    with ThreadPoolExecutor(1) as pool:
        with store.transaction() as txn:
            closing = pool.submit(store.close)
            until(lambda: environment.handle.gate.handle is None)
            fork(child).join()
            txn.write("p", "s", "k", b"w")
        closing.result(30)
    with LMDBStore(root) as store:
        assert store.read("p", "s", "k") == b"w"


def test_a_fork_while_another_thread_opens(
    root: Path, tmp_path: Path, fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another store's opening takes its time; the fork waits in reason, and this one is usable."""
    monkeypatch.setattr("kvreplay.backends.lmdb.shared.FORK_PATIENCE", 0.05)
    opening, over = threading.Event(), threading.Event()
    places = lmdb_files._places

    def slowly(path: Path) -> Any:
        if path.name == "slow":
            opening.set()
            assert over.wait(30)
        return places(path)

    monkeypatch.setattr(lmdb_files, "_places", slowly)
    with LMDBStore(root) as store, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(LMDBStore, tmp_path / "slow")
        assert opening.wait(30)

        def child() -> None:
            store.write("p", "s", "k", b"child")
            over.set()
            with LMDBStore(tmp_path / "other") as other:
                other.write("p", "s", "k", b"child")

        fork(child).join()
        assert store.read("p", "s", "k") == b"child"
        over.set()
        with slow.result(30) as other:
            other.write("p", "s", "k", b"v")


def test_a_child_leaves_the_parents_readers_alone(store: LMDBStore, fork: Any) -> None:
    """It does not free their slots when it closes the parent's handle: their pages are safe."""
    store.write("p", "s", "k", b"old" * 1000)
    fork(lambda: (store.read("p", "s", "k"), store.close())).join()

    def stay(txn: Any) -> bytes:
        environment = environment_of(store)
        first = txn.get(b"p\0s\0k", None, environment.handle.entries)
        for n in range(300):
            store.write("p", "s", "k", bytes([n % 256]) * 3000)
        return first if first == txn.get(b"p\0s\0k", None, environment.handle.entries) else b""

    with ThreadPoolExecutor(1) as pool:
        assert (
            pool.submit(environment_of(store).handle.read, stay).result(60)[HEAD:] == b"old" * 1000
        )


def test_a_fork_has_one_patience_for_all_threads(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here each of three threads is inside for six more seconds, of ten."""
    waited = 0.0

    class Busy:
        def acquire(self, blocking: bool, timeout: float) -> bool:
            nonlocal waited
            taken = min(6, timeout) if blocking else 0
            waited += taken
            return taken == 6

        def release(self) -> None:
            pass

    waits = environment_of(store).handle.gate
    monkeypatch.setattr(gate, "time", SimpleNamespace(monotonic=lambda: waited))
    monkeypatch.setattr(waits, "locks", {-number: Busy() for number in range(1, 4)})
    waits.hold_for_fork(10)
    waits.go_on()
    assert waited == 10
