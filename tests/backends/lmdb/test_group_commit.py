"""LMDB's group commit: changes that wait share a transaction, and nothing else."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay import (
    AsyncReplay,
    Change,
    InvalidNameError,
    InvalidValueError,
    KeyNotFoundError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    SweepResult,
)
from kvreplay._runtime.batching import Batcher
from kvreplay._runtime.singleflight import flights
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import entries as lmdb_entries
from kvreplay.backends.lmdb import group_commit as lmdb_queue
from kvreplay.backends.lmdb import store as lmdb_backend
from kvreplay.backends.lmdb.environment import Environment
from kvreplay.store import BatchingKVStore
from support.replaying import Caller, Interrupt

KIB = 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[LMDBStore]:
    with LMDBStore(root) as store:
        yield store


def commits(store: LMDBStore) -> int:
    """How many transactions that changed something the environment has seen."""
    return store._opened().read(lambda txn: int(txn.id()))


def until(true: Callable[[], bool]) -> None:
    while not true():
        os.sched_yield()


def waiting(store: LMDBStore) -> int:
    return len(store._opened()._queue._waiting)


def queued(store: LMDBStore, *calls: Callable[[], Any]) -> list[Caller]:
    """Make each call on a thread of its own, and have them wait in this order.

    For a block in which this thread holds the writer's turn.
    """
    callers = []
    for call in calls:
        before = waiting(store)
        callers.append(Caller(call))
        until(lambda before=before: waiting(store) == before + 1)  # type: ignore[misc]
    return callers


def together(store: LMDBStore, *calls: Callable[[], Any]) -> list[Caller]:
    """Make the calls so that one batch holds them all; their results are there afterwards."""
    with store.transaction():
        callers = queued(store, *calls)
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    return callers


def put(store: LMDBStore, key: str, expected: bytes | None, value: bytes | None) -> Any:
    return lambda: store.check_and_put("p", "s", key, expected=expected, value=value)


def found(store: Any, key: str) -> bytes | None:
    try:
        value: bytes = store.read("p", "s", key)
    except KeyNotFoundError:
        return None
    return value


# What is shared.


def test_changes_that_wait_share_one_commit(store: LMDBStore) -> None:
    before = commits(store)
    callers = together(store, *(put(store, f"k{n}", None, b"%d" % n) for n in range(64)))
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
        put(store, "k", None, b"a"),
        put(store, "k", None, b"b"),
        put(store, "k", b"a", b"c"),
        put(store, "k", b"c", None),
        put(store, "k", None, b"d"),
        lambda: store.remove("p", "s", "k"),
        lambda: store.write("p", "s", "k", b"e"),
        put(store, "k", b"x", b"f"),
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
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_backend, "_SWEEP", 10)
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
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_backend, "_SWEEP", 2)
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


def test_a_batch_is_bounded(store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_queue, "_MAX_CHANGES", 4)
    before = commits(store)
    together(store, *(put(store, f"k{n}", None, b"v") for n in range(10)))
    assert commits(store) == before + 3
    monkeypatch.setattr(lmdb_queue, "_MAX_BYTES", 10 * KIB)
    before = commits(store)
    values = [bytes(5 * KIB), bytes(5 * KIB), bytes(30 * KIB), bytes(1)]
    together(store, *(put(store, f"large{n}", None, value) for n, value in enumerate(values)))
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


# Who has landed runs while the next batch is on its way to the disk.


class Course:
    """What happens in a store, in order: changes, commits, and who is woken."""

    def __init__(self, store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store = store
        self.steps: list[str] = []
        self._names: dict[Any, str] = {}
        wake, commit = lmdb_queue.Change.wake, Environment.commit

        def noted_wake(change: Any) -> bool:
            if change.landed and change.bell is not None:
                self.steps.append(f"wake {self._names[change.operation]}")
            return wake(change)

        def noted_commit(*args: Any) -> None:
            self.steps.append("commit")
            commit(*args)

        monkeypatch.setattr(lmdb_queue.Change, "wake", noted_wake)
        monkeypatch.setattr(Environment, "commit", noted_commit)
        monkeypatch.setattr(lmdb_queue, "_LOOK_AGAIN", 1000.0)  # nobody is woken by that

    def change(self, name: str, size: int = 0) -> Callable[[], Any]:
        """Return a call that changes the store, and is known by that name."""

        def operation(txn: Any) -> None:
            self.steps.append(name)

        self._names[operation] = name
        return lambda: self._store._opened().write(operation, size)


def test_who_has_landed_is_woken_when_the_next_batch_is_made(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_queue, "_MAX_CHANGES", 2)
    course = Course(store, monkeypatch)
    together(store, *(course.change(name) for name in ("a", "b", "c", "d")))
    assert course.steps[:2] == ["commit", "a"]  # first that of the transaction before
    assert course.steps[2:] == ["b", "commit", "c", "d", "wake b", "commit", "wake d"]


@pytest.mark.parametrize("next_one", ["a sweep", "a transaction"])
def test_who_has_landed_does_not_wait_for_what_takes_long(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch, next_one: str
) -> None:
    course = Course(store, monkeypatch)

    def transact() -> None:
        with store.transaction():
            course.steps.append("long")

    long = transact if next_one == "a transaction" else course.change("long", lmdb_queue.ALONE)
    together(store, course.change("a"), course.change("b"), long)
    assert course.steps[1:] == ["a", "b", "commit", "wake b", "long", "commit"]


def test_who_has_landed_does_not_wait_for_another_process(
    store: LMDBStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose turn it is, that is; here it is a lock of this process's own."""
    monkeypatch.setattr(lmdb_queue, "_MAX_CHANGES", 2)
    course = Course(store, monkeypatch)
    directory = os.open(root, os.O_RDONLY)
    try:
        take_the_turn = course.change("b")
        commit = Environment.commit

        def taken_away(self: Any, env: Any, txn: Any) -> None:
            commit(self, env, txn)
            if course.steps[-2:] == ["b", "commit"]:
                turn = self._turn
                fcntl.flock(turn._directory, fcntl.LOCK_UN)
                fcntl.flock(directory, fcntl.LOCK_EX)

        with store.transaction():
            callers = queued(store, course.change("a"), take_the_turn, course.change("c"))
            monkeypatch.setattr(Environment, "commit", taken_away)
        callers[1].join(30)
        assert not callers[1].is_alive()
        assert course.steps[1:] == ["a", "b", "commit", "wake b"]
        assert callers[2].is_alive()
    finally:
        os.close(directory)
    for caller in callers:
        caller.join(30)
        assert caller.result() is None
    assert course.steps[5:] == ["c", "commit"]


def test_who_has_landed_does_not_wait_for_changes_that_are_tried_one_by_one(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_queue, "_MAX_CHANGES", 2)
    course = Course(store, monkeypatch)

    def bad(txn: Any) -> None:
        course.steps.append("bad")
        raise LookupError("of the operation")

    callers = together(
        store,
        course.change("a"),
        course.change("b"),
        lambda: store._opened().write(bad),
        course.change("d"),
    )
    with pytest.raises(LookupError):
        callers[2].result()
    assert course.steps[1:] == ["a", "b", "commit", "bad", "wake b", "bad", "d", "commit", "wake d"]


def test_a_thread_with_more_changes_than_a_batch_is_called_for_the_rest(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for its first change, and is the next leader."""
    monkeypatch.setattr(lmdb_queue, "_LOOK_AGAIN", 1000.0)
    monkeypatch.setattr(lmdb_queue, "_MAX_CHANGES", 2)
    changes = [change(f"k{n}", None, b"v") for n in range(5)]
    with store.transaction():
        callers = queued(store, put(store, "first", None, b"v"))
        callers.append(Caller(lambda: store.check_and_put_each(changes)))
        until(lambda: waiting(store) == 6)
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    assert len(store.list("p", "s")) == 6


def test_a_change_that_lands_before_its_thread_waits_is_seen(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has looked, and has no bell yet, when a leader commits for it."""
    monkeypatch.setattr(lmdb_queue, "_LOOK_AGAIN", 1000.0)
    holder, leave = held_turn(store)
    (leader,) = queued(store, put(store, "first", None, b"v"))
    bell = lmdb_queue.Bell

    def late_bell() -> Any:
        leave.set()
        leader.join(30)
        return bell()

    monkeypatch.setattr(lmdb_queue, "Bell", late_bell)
    late = Caller(put(store, "late", None, b"v"))
    assert late.result() is None
    assert leader.result() is None
    holder.join()


def test_no_wake_up_is_lost(store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds of changes at once, of which none looks again by itself."""
    monkeypatch.setattr(lmdb_queue, "_LOOK_AGAIN", 1000.0)
    monkeypatch.setattr(lmdb_queue, "_MAX_CHANGES", 7)

    def mix(own: int) -> None:
        for n in range(12):
            key = f"k{own}-{n}"
            match (own + n) % 4:
                case 0:
                    store.write("p", "s", key, b"v")
                case 1:
                    with store.transaction() as txn:
                        txn.write("p", "s", key, b"v")
                case 2:
                    store.check_and_put("p", "s", key, expected=None, value=b"v", expires_at=1)
                    store.sweep("p", 5, 3)
                case _:
                    store.check_and_put_each(
                        [change(f"{key}-{each}", None, b"v") for each in range(10)]
                    )

    callers = [Caller(lambda own=own: mix(own)) for own in range(16)]  # type: ignore[misc]
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
        assert caller.result() is None
    store.sweep("p", 5, 1000)
    assert len(store.list("p", "s")) == 16 * (3 + 3 + 30)


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
        put(store, "before", None, b"v"),
        put(store, "before2", None, b"v"),
        transact,
        put(store, "after", None, b"v"),
        put(store, "inside", None, b"v"),
    )
    assert seen == [(b"v", None)]
    assert commits(store) == before + 3
    assert store.read("p", "s", "inside") == b"v"


def test_a_transaction_that_raises_hands_over(store: LMDBStore) -> None:
    def fail() -> None:
        with store.transaction():
            raise LookupError("of the block")

    failing, after = together(store, fail, put(store, "after", None, b"v"))
    with pytest.raises(LookupError):
        failing.result()
    assert after.result() is None


# One failure.


def test_one_bad_operation_fails_for_itself(store: LMDBStore) -> None:
    environment = store._opened()

    def refused(txn: Any) -> None:
        txn.put(b"half", b"done", db=environment.entries)
        txn.put(b"", b"an empty key", db=environment.entries)

    def broken(txn: Any) -> None:
        txn.put(b"half", b"done", db=environment.entries)
        raise LookupError("a bug")

    good, bad, worse, last = together(
        store,
        put(store, "good", None, b"v"),
        lambda: environment.write(refused),
        lambda: environment.write(broken),
        put(store, "last", None, b"v"),
    )
    assert good.result() is None
    assert last.result() is None
    with pytest.raises(StoreError, match="nothing was changed") as told:
        bad.result()
    assert isinstance(told.value.__cause__, lmdb.BadValsizeError)
    with pytest.raises(LookupError):
        worse.result()
    assert sorted(store.list("p", "s")) == ["good", "last"]
    assert environment.get(b"half") is None, "no half of a change is kept"


def test_a_full_map_grows_for_the_whole_batch(root: Path) -> None:
    with LMDBStore(root, map_size=256 * KIB) as store:
        before = commits(store)
        callers = together(store, *(put(store, f"k{n}", None, bytes(40 * KIB)) for n in range(32)))
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
        monkeypatch.setattr(Environment, "_resize", cannot)
        small, large, last = together(
            store,
            put(store, "small", None, b"v"),
            put(store, "large", None, bytes(500 * KIB)),
            put(store, "last", None, b"v"),
        )
        assert small.result() is None
        assert last.result() is None
        with pytest.raises(StoreFullError):
            large.result()
        assert sorted(store.list("p", "s")) == ["last", "small"]


def test_an_unknown_outcome_is_everybodys(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Environment.commit

    def fail(self: Any, env: Any, txn: Any) -> None:
        monkeypatch.setattr(Environment, "commit", commit)
        commit(self, env, txn)
        raise OutcomeUnknownError("may or may not") from lmdb.Error("the meta page")

    monkeypatch.setattr(Environment, "commit", fail)
    # The transaction around it changes nothing, but commits too.
    environment = store._opened()
    with environment._queue.turn():
        callers = queued(store, *(put(store, f"k{n}", None, b"v") for n in range(8)))
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
    environment = store._opened()
    with environment._queue.turn():
        callers = queued(store, *(put(store, f"k{n}", None, b"v") for n in range(4)))
        store.close()
    for caller in callers:
        with pytest.raises(StoreError, match="closed"):
            caller.result()
    with LMDBStore(root) as store:
        assert store.list("p", "s") == []


# Interrupts: in the main thread, where they come, or as any exception that is no Exception.


@contextmanager
def interrupted_when(true: Callable[[], bool]) -> Iterator[None]:
    """Send this thread a Ctrl-C as soon as something is true."""

    def send() -> None:
        until(true)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # A run in the background may have been started with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)


def held_turn(store: LMDBStore) -> tuple[threading.Thread, threading.Event]:
    """Hold a transaction on another thread until the event is set."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with store.transaction():
            inside.set()
            assert leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    return thread, leave


@pytest.mark.parametrize("place", ["at the head", "behind others"])
@pytest.mark.parametrize("what", ["a write", "a transaction"])
def test_an_interrupt_while_waiting_withdraws_the_change(
    store: LMDBStore, place: str, what: str
) -> None:
    holder, leave = held_turn(store)
    ahead = queued(store, put(store, "ahead", None, b"v")) if place == "behind others" else []
    mine = len(ahead) + 1
    behind: list[Caller] = []

    def come_behind() -> bool:
        if waiting(store) == mine:
            behind.extend(queued(store, put(store, "behind", None, b"v")))
            return True
        return False

    with pytest.raises(KeyboardInterrupt), interrupted_when(come_behind):
        if what == "a write":
            store.write("p", "s", "interrupted", b"v")
        else:
            with store.transaction():
                pytest.fail("it is not this thread's turn")
    assert waiting(store) == mine
    leave.set()
    holder.join()
    for caller in (*ahead, *behind):
        assert caller.result() is None
    assert "interrupted" not in store.list("p", "s")
    store.write("p", "s", "again", b"v")


def test_an_interrupted_leader_leaves_the_others_to_the_next(store: LMDBStore) -> None:
    environment = store._opened()

    def interrupt(txn: Any) -> None:
        txn.put(b"half", b"done", db=environment.entries)
        raise Interrupt

    leader, *others = together(
        store,
        lambda: environment.write(interrupt),
        *(put(store, f"k{n}", None, b"v") for n in range(4)),
    )
    with pytest.raises(Interrupt):
        leader.result()
    assert [caller.result() for caller in others] == [None] * 4
    assert environment.get(b"half") is None
    assert len(store.list("p", "s")) == 4


def test_an_interrupt_right_after_a_commit_tells_the_others_so(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise they would run again, and meet their own changes."""
    commit = Environment.commit
    environment = store._opened()
    before = commits(store)

    def interrupted(self: Any, env: Any, txn: Any) -> None:
        monkeypatch.setattr(Environment, "commit", commit)
        commit(self, env, txn)
        raise Interrupt

    with environment._queue.turn():
        monkeypatch.setattr(Environment, "commit", interrupted)
        leader, *others = queued(store, *(put(store, f"k{n}", None, b"v") for n in range(5)))
    with pytest.raises(Interrupt):
        leader.result()
    assert [caller.result() for caller in others] == [None] * 4
    assert commits(store) == before + 1


@pytest.mark.parametrize("lost", ["the call of the next head", "the call of who has landed"])
def test_a_call_that_an_interrupt_lost_is_made_up_for(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    environment = store._opened()
    monkeypatch.setattr(lmdb_queue, "_LOOK_AGAIN", 0.01)
    if lost == "the call of the next head":
        monkeypatch.setattr(environment._queue, "_call_next", lambda: None)
        monkeypatch.setattr(lmdb_queue, "_MAX_CHANGES", 2)
    else:
        monkeypatch.setattr(lmdb_queue.Bell, "ring", lambda self: None)
    callers = together(store, *(put(store, f"k{n}", None, b"v") for n in range(6)))
    assert [caller.result() for caller in callers] == [None] * 6


def test_a_forked_child_starts_with_an_empty_queue(store: LMDBStore, fork: Any) -> None:
    with store.transaction():
        callers = queued(store, put(store, "parents", None, b"v"))

        def child() -> None:
            assert waiting(store) == 0

        fork(child).join()
    assert callers[0].result() is None
    fork(lambda: store.write("p", "s", "childs", b"v")).join()
    assert sorted(store.list("p", "s")) == ["childs", "parents"]


# Many changes of one caller.


def change(key: str, expected: bytes | None, value: bytes | None) -> Change:
    return Change("p", "s", key, expected, value)


def test_each_of_many_changes_has_its_own_outcome(store: LMDBStore) -> None:
    assert isinstance(store, BatchingKVStore)
    before = commits(store)
    outcomes = store.check_and_put_each(
        [
            change("a", None, b"1"),
            change("a", None, b"2"),
            change("not legal", None, b"v"),
            change("a", b"1", b"3"),
            Change("p", "s", "b", None, "text"),  # type: ignore[arg-type]
            change("c", None, b"v"),
        ]
    )
    assert commits(store) == before + 1
    assert [type(each) for each in outcomes] == [
        *(type(None), bytes, InvalidNameError, bytes, InvalidValueError, type(None))
    ]
    assert (outcomes[1], outcomes[3]) == (b"1", b"1")
    assert {key: found(store, key) for key in store.list("p", "s")} == {"a": b"3", "c": b"v"}
    assert store.check_and_put_each([]) == []


def test_many_changes_are_refused_inside_a_transaction(store: LMDBStore) -> None:
    with store.transaction(), pytest.raises(StoreError, match="holds a transaction"):
        store.check_and_put_each([change("a", None, b"1")])


def test_more_changes_than_a_batch_holds(store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_queue, "_MAX_CHANGES", 3)
    outcomes = store.check_and_put_each([change(f"k{n}", None, b"v") for n in range(10)])
    assert list(outcomes) == [None] * 10
    assert len(store.list("p", "s")) == 10


# A thousand tasks without a thousand threads.


class Counting:
    """The store, with the batches that came counted; ``hold`` keeps the first one on its way."""

    reads_are_local = True

    def __init__(self, store: LMDBStore, *, held: bool = False) -> None:
        self._store = store
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.under_way, self._go = threading.Event(), threading.Event()
        if not held:
            self._go.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def let_go(self) -> None:
        self._go.set()

    def check_and_put_each(self, changes: Sequence[Change]) -> Any:
        self.batches.append(len(changes))
        self.threads.add(threading.get_ident())
        self.under_way.set()
        assert self._go.wait(30)
        return self._store.check_and_put_each(changes)


def test_a_thousand_tasks_share_their_trips(store: LMDBStore) -> None:
    counting = Counting(store)
    replay = AsyncReplay(counting, "ns", ttl=60)  # type: ignore[arg-type]
    before = threading.active_count()

    async def main() -> list[Any]:
        runs = (replay.execute(("s", f"{n}"), n, lambda n=n: n) for n in range(1000))
        outcomes = await asyncio.gather(*runs)
        assert threading.active_count() - before <= 2  # one for the trips, at a time
        return [outcome.response for outcome in outcomes]

    commits_before = commits(store)
    assert asyncio.run(main()) == list(range(1000))
    assert counting.batches == [1000, 1000]
    assert commits(store) - commits_before == 2
    assert len(flights) == 0


def test_a_change_cancelled_before_its_trip_does_not_happen(store: LMDBStore) -> None:
    counting = Counting(store, held=True)
    batcher = Batcher(counting)  # type: ignore[arg-type]

    async def main() -> None:
        first = asyncio.create_task(batcher.check_and_put(change("first", None, b"v")))
        while not counting.under_way.is_set():
            await asyncio.sleep(0)
        second, third = (
            asyncio.create_task(batcher.check_and_put(change(key, None, b"v")))
            for key in ("second", "third")
        )
        await asyncio.sleep(0)
        second.cancel()
        counting.let_go()
        assert (await first, await third) == (None, None)
        with pytest.raises(asyncio.CancelledError):
            await second

    asyncio.run(main())
    assert sorted(store.list("p", "s")) == ["first", "third"]


def test_a_change_cancelled_on_its_way_happens_and_harms_nobody(store: LMDBStore) -> None:
    counting = Counting(store, held=True)
    batcher = Batcher(counting)  # type: ignore[arg-type]

    async def main() -> None:
        first, second = (
            asyncio.create_task(batcher.check_and_put(change(key, None, b"v")))
            for key in ("first", "second")
        )
        while not counting.under_way.is_set():
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        counting.let_go()
        assert await second is None
        assert await batcher.check_and_put(change("first", b"v", None)) == b"v"

    asyncio.run(main())
    assert counting.batches == [2, 1]


def test_a_trip_that_fails_as_a_whole_fails_everybody_with_their_own(store: LMDBStore) -> None:
    batcher = Batcher(store)

    async def main() -> None:
        store.close()
        errors = await asyncio.gather(
            *(batcher.check_and_put(change(f"k{n}", None, b"v")) for n in range(3)),
            return_exceptions=True,
        )
        assert [type(error) for error in errors] == [StoreError] * 3
        assert len({id(error) for error in errors}) == 3

    asyncio.run(main())


def test_an_executor_that_is_gone_is_told(store: LMDBStore) -> None:
    batcher = Batcher(store)

    async def main() -> None:
        await asyncio.get_running_loop().shutdown_default_executor()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="shutdown"):
                await batcher.check_and_put(change("k", None, b"v"))

    asyncio.run(main())
    assert store.list("p", "s") == []
