"""LMDB's group commit: changes that wait share a transaction, and nothing else."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay import OutcomeUnknownError, StoreError, StoreFullError, SweepResult
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import entries as lmdb_entries
from kvreplay.backends.lmdb.handle import Handle
from support.group_commits import found, leading, putting, queued, together, waiting
from support.lmdb_stores import KIB, commits, environment_of
from support.replaying import Caller


def test_changes_that_wait_share_one_commit(store: LMDBStore) -> None:
    before = commits(store)
    callers = together(store, *(putting(store, f"k{n}", None, b"%d" % n) for n in range(64)))
    assert [caller.result() for caller in callers] == [None] * 64
    assert commits(store) == before + 1
    assert [store.read("p", "s", f"k{n}") for n in range(64)] == [b"%d" % n for n in range(64)]


def test_alone_each_change_has_a_commit(store: LMDBStore) -> None:
    before = commits(store)
    for n in range(3):
        store.write("p", "s", f"k{n}", b"v")
    assert commits(store) == before + 3


def test_the_batch_is_in_the_order_of_arrival(store: LMDBStore) -> None:
    """Each change sees those before it, and of two that expect the same the first one wins."""
    callers = together(
        store,
        putting(store, "k", None, b"a"),
        putting(store, "k", None, b"b"),
        putting(store, "k", b"a", b"c"),
        putting(store, "k", b"c", None),
        putting(store, "k", None, b"d"),
        lambda: store.remove("p", "s", "k"),
        lambda: store.write("p", "s", "k", b"e"),
        putting(store, "k", b"x", b"f"),
    )
    results = [caller.result() for caller in callers]
    assert results == [None, b"a", b"a", b"c", None, None, None, b"e"]
    assert store.read("p", "s", "k") == b"e"


def test_a_sweep_sees_a_refresh_before_it(store: LMDBStore) -> None:
    store.check_and_put("p", "s", "k", expected=None, value=b"old", expires_at=5)
    store.check_and_put("p", "s", "due", expected=None, value=b"old", expires_at=5)
    refresh, sweep = together(
        store,
        lambda: store.check_and_put("p", "s", "k", expected=b"old", value=b"new", expires_at=100),
        lambda: store.sweep("p", 50, 10),
    )
    assert refresh.result() == b"old"
    assert (sweep.result().visited, sweep.result().removed) == (1, 1)
    assert (found(store, "k"), found(store, "due")) == (b"new", None)


def test_a_writer_does_not_wait_for_the_sweep_behind_it(store: LMDBStore) -> None:
    store.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
    store.write("p", "s", "there", b"v")
    store.write("p", "s", "last", b"v")
    before = commits(store)
    together(
        store,
        lambda: store.remove("p", "s", "there"),
        lambda: store.sweep("p", 50, 10),
        lambda: store.remove("p", "s", "last"),
    )
    assert commits(store) == before + 3  # each of them alone
    assert store.list("p", "s") == []


def test_a_large_sweep_lets_writers_in_between(
    store: LMDBStore, limits: Callable[..., None]
) -> None:
    limits(sweep=10)
    for n in range(35):
        store.check_and_put("p", "s", f"k{n}", expected=None, value=b"v", expires_at=n)
    before = commits(store)
    result = store.sweep("p", 29, 25)
    assert (result.visited, result.removed, result.more) == (25, 25, True)
    assert commits(store) == before + 3
    result = store.sweep("p", 29, 25)
    assert (result.visited, result.removed, result.more) == (5, 5, False)
    assert len(store.list("p", "s")) == 5


def test_a_sweep_that_breaks_off_says_that_some_are_gone(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch, limits: Callable[..., None]
) -> None:
    limits(sweep=2)
    for n in range(6):
        store.check_and_put("p", "s", f"k{n}", expected=None, value=b"v", expires_at=n)
    sweep, calls = lmdb_entries.sweep, []

    def failing(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == failing_call:
            raise lmdb.CorruptedError("of the second transaction")
        return sweep(*args)

    monkeypatch.setattr(lmdb_entries, "sweep", failing)
    failing_call = 2
    with pytest.raises(OutcomeUnknownError, match="removed 2 entries"):
        store.sweep("p", 10, 6)
    assert len(store.list("p", "s")) == 4
    failing_call = len(calls) + 1
    with pytest.raises(StoreError, match="nothing was changed"):
        store.sweep("p", 10, 6)
    assert store.sweep("p", 10, 6) == SweepResult(4, 4, more=False)


def test_a_batch_is_bounded(store: LMDBStore, limits: Callable[..., None]) -> None:
    limits(changes=4)
    before = commits(store)
    together(store, *(putting(store, f"k{n}", None, b"v") for n in range(10)))
    assert commits(store) == before + 3
    limits(size=10 * KIB)
    before = commits(store)
    values = [bytes(5 * KIB), bytes(5 * KIB), bytes(30 * KIB), bytes(1)]
    together(store, *(putting(store, f"large{n}", None, value) for n, value in enumerate(values)))
    assert commits(store) == before + 3  # two, then the large one alone, then the rest
    assert len(store.list("p", "s")) == 14


def test_many_threads_are_answered_each_with_their_own(store: LMDBStore) -> None:
    """Everybody counts the same counter, and a counter of their own."""

    def count(own: str) -> None:
        for _ in range(20):
            for key in ("shared", own):
                while True:
                    old = found(store, key)
                    new = b"%d" % (int(old or b"0") + 1)
                    if store.check_and_put("p", "s", key, expected=old, value=new) == old:
                        break

    with ThreadPoolExecutor(12) as executor:
        list(executor.map(count, (f"own{n}" for n in range(12))))
    assert store.read("p", "s", "shared") == b"240"
    assert all(store.read("p", "s", f"own{n}") == b"20" for n in range(12))
    assert waiting(store) == 0


# Transactions take their turn.


def test_a_transaction_takes_its_turn(store: LMDBStore) -> None:
    seen = []

    def transact() -> None:
        with store.transaction() as txn:
            seen.append((found(txn, "before"), found(txn, "after")))
            txn.write("p", "s", "inside", b"v")

    before = commits(store)
    together(
        store,
        putting(store, "before", None, b"v"),
        putting(store, "before2", None, b"v"),
        transact,
        putting(store, "after", None, b"v"),
        putting(store, "inside", None, b"v"),
    )
    assert seen == [(b"v", None)]
    assert commits(store) == before + 3
    assert store.read("p", "s", "inside") == b"v"


def test_a_transaction_that_raises_hands_over(store: LMDBStore) -> None:
    def fail() -> None:
        with store.transaction():
            raise LookupError("of the block")

    failing, after = together(store, fail, putting(store, "after", None, b"v"))
    with pytest.raises(LookupError):
        failing.result()
    assert after.result() is None


# One failure.


def test_one_bad_operation_fails_for_itself(store: LMDBStore) -> None:
    environment = environment_of(store)

    def refused(txn: Any) -> None:
        txn.put(b"half", b"done", db=environment.handle.entries)
        txn.put(b"", b"an empty key", db=environment.handle.entries)

    def broken(txn: Any) -> None:
        txn.put(b"half", b"done", db=environment.handle.entries)
        raise StoreError("of its own")

    good, bad, worse, last = together(
        store,
        putting(store, "good", None, b"v"),
        lambda: environment.write(refused),
        lambda: environment.write(broken),
        putting(store, "last", None, b"v"),
    )
    assert good.result() is None
    assert last.result() is None
    with pytest.raises(StoreError, match="nothing was changed") as told:
        bad.result()
    assert isinstance(told.value.__cause__, lmdb.BadValsizeError)
    with pytest.raises(StoreError, match="of its own"):
        worse.result()
    assert sorted(store.list("p", "s")) == ["good", "last"]
    assert environment.handle.get(b"half") is None, "no half of a change is kept"


def test_a_full_map_grows_for_the_whole_batch(root: Path) -> None:
    with LMDBStore(root, map_size=256 * KIB) as store:
        before = commits(store)
        callers = together(
            store, *(putting(store, f"k{n}", None, bytes(40 * KIB)) for n in range(32))
        )
        assert [caller.result() for caller in callers] == [None] * 32
        assert commits(store) == before + 1
        assert len(store.list("p", "s")) == 32


def test_a_map_that_cannot_grow_fails_only_what_has_no_room(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(self: Any, env: Any, *, grow: bool) -> Any:
        env.close()  # as the real one, which has lost the map
        raise StoreFullError("the map cannot grow")

    with LMDBStore(root, map_size=256 * KIB) as store:
        monkeypatch.setattr(Handle, "_resize", cannot)
        small, large, last = together(
            store,
            putting(store, "small", None, b"v"),
            putting(store, "large", None, bytes(500 * KIB)),
            putting(store, "last", None, b"v"),
        )
        assert small.result() is None
        assert last.result() is None
        with pytest.raises(StoreFullError):
            large.result()
        assert sorted(store.list("p", "s")) == ["last", "small"]


def test_an_unknown_outcome_is_everybodys(store: LMDBStore, unknown: Callable[[], None]) -> None:
    unknown()
    with leading(store):
        callers = queued(store, *(putting(store, f"k{n}", None, b"v") for n in range(8)))
    errors = []
    for caller in callers:
        with pytest.raises(OutcomeUnknownError, match="may or may not") as told:
            caller.result()
        assert isinstance(told.value.__cause__, lmdb.Error)
        errors.append(told.value)
    assert len({id(error) for error in errors}) == 8, "an exception belongs to one thread"
    assert len(store.list("p", "s")) == 8
    store.write("p", "s", "later", b"v")


def test_a_closed_store_fails_everybody_who_waits(root: Path) -> None:
    store = LMDBStore(root)
    with leading(store):
        callers = queued(store, *(putting(store, f"k{n}", None, b"v") for n in range(4)))
        Caller(store.close).result()
    for caller in callers:
        with pytest.raises(StoreError, match="closed"):
            caller.result()
    with LMDBStore(root) as store:
        assert store.list("p", "s") == []


def test_a_forked_child_starts_with_an_empty_queue(store: LMDBStore, fork: Any) -> None:
    with store.transaction():
        callers = queued(store, putting(store, "parents", None, b"v"))

        def child() -> None:
            assert waiting(store) == 0

        forked = fork(child)  # it opens the files, which waits for the end of this block
    forked.join()
    assert callers[0].result() is None
    fork(lambda: store.write("p", "s", "childs", b"v")).join()
    assert sorted(store.list("p", "s")) == ["childs", "parents"]


def test_a_process_lock_that_cannot_be_given_back_does_not_deny_the_write(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed instead, which gives it back too, and the next write opens it anew."""
    flock = fcntl.flock

    def fail(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_UN:
            raise OSError(errno.EIO, "injected")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", fail)
    for value in (b"a", b"b"):
        store.write("p", "s", "k", value)
    with store.transaction() as txn:
        txn.write("p", "s", "k", b"c")
    monkeypatch.undo()
    assert store.read("p", "s", "k") == b"c"
    store.write("p", "s", "k", b"d")
