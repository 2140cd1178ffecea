"""Interrupts: in the main thread, where they come, or as any exception that is no Exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvreplay.backends.lmdb import LMDBStore
from support.group_commits import leading, putting, queued, together, waiting
from support.interrupts import interrupted_when
from support.lmdb_stores import commits, environment_of
from support.replaying import Caller, Interrupt
from support.waiting import HeldTransaction


@pytest.mark.parametrize("place", ["at the head", "behind others"])
@pytest.mark.parametrize("what", ["a write", "a transaction"])
def test_an_interrupt_while_waiting_withdraws_the_change(
    store: LMDBStore, place: str, what: str
) -> None:
    holder = HeldTransaction(store)
    ahead = queued(store, putting(store, "ahead", None, b"v")) if place == "behind others" else []
    mine = len(ahead) + 1
    behind: list[Caller] = []

    def come_behind() -> bool:
        if waiting(store) == mine:
            behind.extend(queued(store, putting(store, "behind", None, b"v")))
            return True
        return False

    with pytest.raises(KeyboardInterrupt), interrupted_when(come_behind):
        if what == "a write":
            store.write("p", "s", "interrupted", b"v")
        else:
            with store.transaction():
                pytest.fail("it is not this thread's turn")
    assert waiting(store) == mine
    holder.end()
    for caller in (*ahead, *behind):
        assert caller.result() is None
    assert "interrupted" not in store.list("p", "s")
    store.write("p", "s", "again", b"v")


def test_an_interrupted_leader_leaves_the_others_to_the_next(store: LMDBStore) -> None:
    environment = environment_of(store)

    def interrupt(txn: Any) -> None:
        txn.put(b"half", b"done", db=environment.handle.entries)
        raise Interrupt

    leader, *others = together(
        store,
        lambda: environment.write(interrupt),
        *(putting(store, f"k{n}", None, b"v") for n in range(4)),
    )
    with pytest.raises(Interrupt):
        leader.result()
    assert [caller.result() for caller in others] == [None] * 4
    assert environment.handle.get(b"half") is None
    assert len(store.list("p", "s")) == 4


def test_an_interrupt_right_after_a_commit_tells_the_others_so(
    store: LMDBStore, after_the_next_commit: Callable[[BaseException], None]
) -> None:
    """Otherwise they would run again, and meet their own changes."""
    before = commits(store)
    with leading(store):
        after_the_next_commit(Interrupt())
        leader, *others = queued(store, *(putting(store, f"k{n}", None, b"v") for n in range(5)))
    with pytest.raises(Interrupt):
        leader.result()
    assert [caller.result() for caller in others] == [None] * 4
    assert commits(store) == before + 1
