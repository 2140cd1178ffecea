"""A thread whose change has landed runs while the next batch is written; nobody waits for ever."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends import group_commit, pending
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb.handle import Handle
from kvreplay.errors import StoreError
from support.group_commits import change, putting, queue_of, queued, together, waiting
from support.lmdb_stores import environment_of
from support.replaying import Caller
from support.waiting import HeldTransaction, until


class Course:
    """What happens in a store, in order: changes, commits, and who is woken."""

    def __init__(self, store: LMDBStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store = store
        self.steps: list[str] = []
        self._names: dict[Any, str] = {}
        wake, commit = pending.PendingWrite.wake, Handle.commit

        def noted_wake(change: Any) -> bool:
            if change.landed and change.bell is not None:
                self.steps.append(f"wake {self._names[change.operation]}")
            return wake(change)

        def noted_commit(*args: Any) -> None:
            self.steps.append("commit")
            commit(*args)

        monkeypatch.setattr(pending.PendingWrite, "wake", noted_wake)
        monkeypatch.setattr(Handle, "commit", noted_commit)

    def change(self, name: str, size: int = 0) -> Callable[[], Any]:
        """Return a call that changes the store, and is known by that name."""

        def operation(txn: Any) -> None:
            self.steps.append(name)

        self._names[operation] = name
        return lambda: environment_of(self._store).write(operation, size)


@pytest.fixture
def course(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch, limits: Callable[..., None]
) -> Course:
    limits(look_again=1000.0)  # so that nobody is woken by that
    return Course(store, monkeypatch)


def test_who_has_landed_is_woken_when_the_next_batch_is_made(
    store: LMDBStore, limits: Callable[..., None], course: Course
) -> None:
    limits(changes=2)
    together(store, *(course.change(name) for name in ("a", "b", "c", "d")))
    assert course.steps[:2] == ["commit", "a"]  # first that of the transaction before
    assert course.steps[2:] == ["b", "commit", "c", "d", "wake b", "commit", "wake d"]


@pytest.mark.parametrize("next_one", ["a sweep", "a transaction"])
def test_who_has_landed_does_not_wait_for_what_takes_long(
    store: LMDBStore, course: Course, next_one: str
) -> None:
    def transact() -> None:
        with store.transaction():
            course.steps.append("long")

    long = transact if next_one == "a transaction" else course.change("long", pending.ALONE)
    together(store, course.change("a"), course.change("b"), long)
    assert course.steps[1:] == ["a", "b", "commit", "wake b", "long", "commit"]


def test_who_has_landed_does_not_wait_for_another_process(
    store: LMDBStore,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: Callable[..., None],
    course: Course,
) -> None:
    """Whose turn it is, that is; here it is a lock of this process's own."""
    limits(changes=2)
    theirs = os.open(root / "kvreplay.lock", os.O_RDWR)
    try:
        take_the_turn = course.change("b")
        commit = Handle.commit

        def taken_away(self: Any, txn: Any) -> None:
            commit(self, txn)
            if course.steps[-2:] == ["b", "commit"]:
                environment_of(store)._committer.give_back()
                fcntl.flock(theirs, fcntl.LOCK_EX)

        with store.transaction():
            callers = queued(store, course.change("a"), take_the_turn, course.change("c"))
            monkeypatch.setattr(Handle, "commit", taken_away)
        callers[1].end()
        assert course.steps[1:] == ["a", "b", "commit", "wake b"]
        assert callers[2].is_alive()
    finally:
        os.close(theirs)
    for caller in callers:
        assert caller.result() is None
    assert course.steps[5:] == ["c", "commit"]


def test_who_has_landed_does_not_wait_for_changes_that_are_tried_one_by_one(
    store: LMDBStore, limits: Callable[..., None], course: Course
) -> None:
    limits(changes=2)

    def bad(txn: Any) -> None:
        course.steps.append("bad")
        raise StoreError("of the operation")

    callers = together(
        store,
        course.change("a"),
        course.change("b"),
        lambda: environment_of(store).write(bad),
        course.change("d"),
    )
    with pytest.raises(StoreError, match="of the operation"):
        callers[2].result()
    assert course.steps[1:] == ["a", "b", "commit", "bad", "wake b", "bad", "d", "commit", "wake d"]


def test_a_thread_with_more_changes_than_a_batch_is_called_for_the_rest(
    store: LMDBStore, limits: Callable[..., None]
) -> None:
    """It waits for its first change, and is the next leader."""
    limits(look_again=1000.0, changes=2)
    changes = [change(f"k{n}", None, b"v") for n in range(5)]
    with store.transaction():
        callers = queued(store, putting(store, "first", None, b"v"))
        callers.append(Caller(lambda: store.check_and_put_each(changes)))
        until(lambda: waiting(store) == 6)
    for caller in callers:
        caller.end()
    assert len(store.list("p", "s")) == 6


def test_a_change_that_lands_before_its_thread_waits_is_seen(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch, limits: Callable[..., None]
) -> None:
    """It has looked, and has no bell yet, when a leader commits for it."""
    limits(look_again=1000.0)
    holder = HeldTransaction(store)
    (leader,) = queued(store, putting(store, "first", None, b"v"))
    bell = group_commit.Bell

    def late_bell() -> Any:
        holder.let_go()
        leader.end()
        return bell()

    monkeypatch.setattr(group_commit, "Bell", late_bell)
    late = Caller(putting(store, "late", None, b"v"))
    assert late.result() is None
    assert leader.result() is None
    holder.end()


def test_no_wake_up_is_lost(store: LMDBStore, limits: Callable[..., None]) -> None:
    """All kinds of changes at once, of which none looks again by itself."""
    limits(look_again=1000.0, changes=7)

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
        assert caller.result() is None
    store.sweep("p", 5, 1000)
    assert len(store.list("p", "s")) == 16 * (3 + 3 + 30)


@pytest.mark.parametrize("lost", ["the call of the next head", "the call of who has landed"])
def test_a_call_that_an_interrupt_lost_is_made_up_for(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch, limits: Callable[..., None], lost: str
) -> None:
    limits(look_again=0.01)
    if lost == "the call of the next head":
        monkeypatch.setattr(queue_of(store), "_call_next", lambda: None)
        limits(changes=2)
    else:
        monkeypatch.setattr(group_commit.Bell, "ring", lambda self: None)
    callers = together(store, *(putting(store, f"k{n}", None, b"v") for n in range(6)))
    assert [caller.result() for caller in callers] == [None] * 6
