"""Several processes: a change that returned survives a kill, and each sees what others did."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from kvreplay.store import AtomicKVStore, ExpiringKVStore, KVStoreSync, TransactionalKVStore
from kvreplay.testing.entries import content, count_up, put
from kvreplay.testing.threads import PATIENCE

__all__ = ["Process", "ProcessTests"]


class Process:
    """A spawned process that opens the store itself, and acts on it when it is told to.

    After its action it keeps the store open until it is told to end, or is killed.
    """

    def __init__(self, opens: Callable[..., Any], path: Path, action: Callable[..., Any]) -> None:
        try:
            pickle.dumps(opens)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            pytest.fail(
                f"open cannot be sent to another process ({error}): define it, and the class of the"
                " tests, at the top of a module that can be imported"
            )
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, opens, path, action), daemon=True
        )
        self._process.start()
        theirs.close()

    def go(self) -> None:
        """Wait until it has opened the store, and let it act."""
        assert self._hear() == "opened"
        self._pipe.send("go")

    def result(self) -> Any:
        """What its action returned; the store is still open."""
        return self._hear()

    def end(self) -> None:
        """Let it close the store, and wait for its end."""
        self._pipe.send("end")
        assert self._hear() == "closed"
        self._process.join(PATIENCE)
        assert self._process.exitcode == 0

    def kill(self) -> None:
        """Kill it, whatever it is doing."""
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(PATIENCE)
        self._pipe.close()

    def _hear(self) -> Any:
        if not self._pipe.poll(PATIENCE):
            pytest.fail(f"the process has said nothing for {PATIENCE:g} s: a deadlock")
        try:
            failed, said = self._pipe.recv()
        except EOFError:
            self._process.join(PATIENCE)
            pytest.fail(f"the process ended, with exit code {self._process.exitcode}")
        if failed:
            pytest.fail(f"the process failed:\n{said}")
        return said


def _serve(pipe: Connection, opens: Any, path: Path, action: Callable[[Any], Any]) -> None:
    try:
        with opens(path) as store:
            pipe.send((False, "opened"))
            pipe.recv()
            pipe.send((False, action(store)))
            pipe.recv()
        pipe.send((False, "closed"))
    except BaseException:
        pipe.send((True, traceback.format_exc()))


Spawn = Callable[[Callable[[Any], Any]], Process]


class ProcessTests:
    """``spawn(action)`` starts a process; ``beside(action)`` one that shares the store."""

    def test_what_returned_survives_a_kill(
        self, store: KVStoreSync, reopen: Callable[[], Any], spawn: Spawn
    ) -> None:
        """A process that is killed before it closes its store keeps every change that returned."""
        store.write("p", "s", "changes", b"before")
        store.write("p", "s", "goes", b"before")
        store.close()  # type: ignore[attr-defined]  # every store has it
        process = spawn(_change_by_writing)
        process.go()
        process.result()
        process.kill()
        assert content(reopen()) == {("p", "s", "changes"): b"after", ("p", "s", "comes"): b"after"}

    def test_what_was_checked_and_put_survives_a_kill(
        self, atomic: AtomicKVStore, reopen: Callable[[], Any], spawn: Spawn
    ) -> None:
        atomic.write("p", "s", "changes", b"before")
        atomic.write("p", "s", "goes", b"before")
        atomic.close()  # type: ignore[attr-defined]  # every store has it
        process = spawn(_change_by_checking)
        process.go()
        process.result()
        process.kill()
        assert content(reopen()) == {("p", "s", "changes"): b"after", ("p", "s", "comes"): b"after"}

    def test_what_was_swept_survives_a_kill(
        self, expiring: ExpiringKVStore, reopen: Callable[[], Any], spawn: Spawn
    ) -> None:
        put(expiring, "due", b"v", 5)
        put(expiring, "refreshed", b"v", 5)
        expiring.close()  # type: ignore[attr-defined]  # every store has it
        process = spawn(_refresh_and_sweep)
        process.go()
        assert process.result() == 1
        process.kill()
        again = reopen()
        assert again.list("p", "s") == ["refreshed"]
        assert again.sweep("p", 499, 10).removed == 0
        assert again.sweep("p", 500, 10).removed == 1

    def test_a_kill_inside_a_transaction_undoes_it(
        self, transactional: TransactionalKVStore, reopen: Callable[[], Any], spawn: Spawn
    ) -> None:
        transactional.write("p", "s", "changes", b"before")
        transactional.close()  # type: ignore[attr-defined]  # every store has it
        process = spawn(_commit_and_begin_another)
        process.go()
        process.result()
        process.kill()
        again = reopen()
        assert content(again) == {("p", "s", "changes"): b"committed"}
        with again.transaction() as txn:
            txn.write("p", "s", "changes", b"after")
        assert content(again) == {("p", "s", "changes"): b"after"}

    def test_processes_see_what_the_others_did(self, store: KVStoreSync, beside: Spawn) -> None:
        store.write("p", "s", "changes", b"before")
        store.write("p", "s", "goes", b"before")
        process = beside(_change_by_writing)
        process.go()
        assert process.result() == sorted(["changes", "comes"])
        assert content(store) == {("p", "s", "changes"): b"after", ("p", "s", "comes"): b"after"}
        process.end()
        assert content(store) == {("p", "s", "changes"): b"after", ("p", "s", "comes"): b"after"}
        later = beside(content)
        later.go()
        assert later.result() == content(store)
        later.end()

    def test_processes_that_count(self, atomic: AtomicKVStore, beside: Spawn) -> None:
        """A check-and-put is one step against every other process."""
        atomic.write("p", "s", "n", b"0")
        processes = [beside(_count) for _ in range(2)]
        for process in processes:
            process.go()
        count_up(atomic, 50)
        for process in processes:
            process.result()
            process.end()
        assert atomic.read("p", "s", "n") == b"150"

    def test_a_process_refreshes_what_another_sweeps(
        self, expiring: ExpiringKVStore, beside: Spawn
    ) -> None:
        """Each entry is either swept or refreshed: none is refreshed and then gone."""
        for n in range(30):
            put(expiring, f"k{n}", b"v", 5)
        process = beside(_refresh_thirty)
        process.go()
        removed = sum(expiring.sweep("p", 5, 1).removed for _ in range(35))
        kept = process.result()
        removed += expiring.sweep("p", 5, 100).removed
        process.end()
        assert len(kept) + removed == 30
        assert sorted(expiring.list("p", "s")) == sorted(kept)
        assert all(expiring.read("p", "s", key) == b"w" for key in kept)

    def test_processes_that_transact(
        self, transactional: TransactionalKVStore, beside: Spawn
    ) -> None:
        transactional.write("p", "s", "n", b"0")
        process = beside(_transact)
        process.go()
        _transact(transactional)
        process.result()
        process.end()
        assert transactional.read("p", "s", "n") == b"50"

    def test_a_kill_inside_a_transaction_frees_the_others(
        self, transactional: TransactionalKVStore, beside: Spawn
    ) -> None:
        transactional.write("p", "s", "changes", b"before")
        process = beside(_commit_and_begin_another)
        process.go()
        process.result()
        assert transactional.read("p", "s", "changes") == b"committed"
        process.kill()
        with transactional.transaction() as txn:
            assert txn.read("p", "s", "changes") == b"committed"
            txn.write("p", "s", "changes", b"after")
        assert content(transactional) == {("p", "s", "changes"): b"after"}


def _change_by_writing(store: Any) -> list[str]:
    store.write("p", "s", "comes", b"after")
    store.write("p", "s", "changes", b"after")
    store.remove("p", "s", "goes")
    return sorted(store.list("p", "s"))


def _change_by_checking(store: Any) -> None:
    assert store.check_and_put("p", "s", "comes", expected=None, value=b"after") is None
    assert store.check_and_put("p", "s", "changes", expected=b"before", value=b"after") == b"before"
    assert store.check_and_put("p", "s", "goes", expected=b"before", value=None) == b"before"


def _refresh_and_sweep(store: Any) -> int:
    put(store, "refreshed", b"w", 500)
    return int(store.sweep("p", 5, 10).removed)


# Without this reference to it, the transaction would end.
_held: list[tuple[AbstractContextManager[Any], Any]] = []


def _commit_and_begin_another(store: Any) -> None:
    with store.transaction() as txn:
        txn.write("p", "s", "changes", b"committed")
    block = store.transaction()
    txn = block.__enter__()
    _held.append((block, txn))
    txn.write("p", "s", "changes", b"never")
    txn.write("p", "s", "comes", b"never")


def _count(store: Any) -> None:
    count_up(store, 50)


def _refresh_thirty(store: Any) -> list[str]:
    kept = []
    for n in reversed(range(30)):
        found = store.check_and_put("p", "s", f"k{n}", expected=b"v", value=b"w", expires_at=500)
        if found == b"v":
            kept.append(f"k{n}")
    return kept


def _transact(store: Any) -> None:
    for _ in range(25):
        with store.transaction() as txn:
            txn.write("p", "s", "n", str(int(txn.read("p", "s", "n")) + 1).encode())
