"""Forking: a child goes on with the store object that it inherits, and so does its parent."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable

from kvreplay.errors import KeyNotFoundError
from kvreplay.store import AtomicKVStore, ExpiringKVStore, KVStoreSync, TransactionalKVStore
from kvreplay.testing.entries import content, count_up, put
from kvreplay.testing.threads import PATIENCE, Running

__all__ = ["Child", "ForkingTests"]


class Child:
    """A forked child that runs an action. Join it once."""

    def __init__(self, action: Callable[[], object]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            self.pid = self._fork()
        if self.pid == 0:
            code = 1
            try:
                signal.alarm(math.ceil(PATIENCE))
                action()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def _fork(self) -> int:
        return os.fork()

    def join(self) -> None:
        """Wait for its end; fail if the child failed."""
        code = self.wait()
        assert code != -signal.SIGALRM, "the forked child has not come back: a deadlock"
        assert code == 0, "the forked child failed, as standard error shows"

    def wait(self) -> int:
        """Return its exit code, or the negative of the signal that ended it."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


Fork = Callable[[Callable[[], object]], Child]


class ForkingTests:
    """If processes share the entries, the child shares them too; if not, it has a copy."""

    def test_a_forked_child_goes_on(self, store: KVStoreSync, fork: Fork, shared: bool) -> None:
        store.write("p", "s", "k", b"v")

        def child() -> None:
            assert store.read("p", "s", "k") == b"v"
            store.write("p", "s", "k", b"child")
            assert store.read("p", "s", "k") == b"child"
            assert store.list("p", "s") == ["k"]
            store.close()  # type: ignore[attr-defined]  # every store has it

        fork(child).join()
        if shared:
            assert store.read("p", "s", "k") == b"child"
        store.write("p", "s", "k", b"parent")
        assert store.read("p", "s", "k") == b"parent"
        assert content(store) == {("p", "s", "k"): b"parent"}

    def test_a_forked_child_checks_puts_and_sweeps(
        self, expiring: ExpiringKVStore, fork: Fork, shared: bool
    ) -> None:
        put(expiring, "k", b"v", 500)

        def child() -> None:
            found = expiring.check_and_put("p", "s", "k", expected=b"v", value=b"w", expires_at=500)
            assert found == b"v"
            put(expiring, "due", b"v", 5)
            assert expiring.sweep("p", 5, 5).removed == 1
            assert content(expiring) == {("p", "s", "k"): b"w"}

        fork(child).join()
        if shared:
            assert content(expiring) == {("p", "s", "k"): b"w"}
        assert expiring.sweep("p", 500, 5).removed == 1

    def test_children_forked_among_busy_threads_go_on(
        self, expiring: ExpiringKVStore, fork: Fork
    ) -> None:
        expiring.write("p", "s", "n", b"0")
        done = threading.Event()

        def work() -> None:
            name = f"k{threading.get_ident()}"
            while not done.is_set():
                found = expiring.check_and_put(
                    "p", "s", name, expected=None, value=b"v", expires_at=5
                )
                expiring.check_and_put("p", "s", name, expected=found, value=b"v", expires_at=600)
                assert "n" in expiring.list("p", "s")
                expiring.read("p", "s", "n")

        def child() -> None:
            count_up(expiring, 3)
            put(expiring, "child", b"v", 5)
            put(expiring, "child", b"v", 6)
            assert expiring.sweep("p", 600, 1000).removed >= 1
            assert "child" not in expiring.list("p", "s")
            for key in expiring.list("p", "s"):
                with contextlib.suppress(KeyNotFoundError):  # the parent may have removed it
                    expiring.read("p", "s", key)

        workers = [Running(work) for _ in range(3)]
        try:
            for _ in range(10):
                fork(child).join()
        finally:
            done.set()
        for worker in workers:
            worker.result()
        count_up(expiring, 1)

    def test_a_fork_inside_a_transaction(
        self, transactional: TransactionalKVStore, fork: Fork
    ) -> None:
        """The transaction stays the parent's, and the parent goes on with it."""
        transactional.write("p", "s", "k", b"old")

        def child() -> None:
            assert transactional.read("p", "s", "k") in (b"old", b"new")
            transactional.list("p", "s")

        with transactional.transaction() as txn:
            txn.write("p", "s", "k", b"new")
            forked = fork(child)
            assert txn.read("p", "s", "k") == b"new"
            txn.write("p", "s", "more", b"new")
        forked.join()
        assert content(transactional) == {("p", "s", "k"): b"new", ("p", "s", "more"): b"new"}
        transactional.write("p", "s", "k", b"later")

    def test_a_child_of_a_child(self, atomic: AtomicKVStore, fork: Fork, shared: bool) -> None:
        """The child has not used the store yet when it forks."""
        atomic.write("p", "s", "n", b"0")

        def grandchild() -> None:
            count_up(atomic, 1)

        def child() -> None:
            fork(grandchild).join()
            count_up(atomic, 1)
            fork(grandchild).join()

        fork(child).join()
        count_up(atomic, 1)
        if shared:
            assert atomic.read("p", "s", "n") == b"4"
