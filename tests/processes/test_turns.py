"""Turns and processes: killed anywhere, and forked inside."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from interrupts.points import Ended, Points
from kvreplay import InFlightError, Replay
from kvreplay.backends.memory import MemoryStore
from kvreplay.errors import KeyNotFoundError, StoreError
from kvreplay.ldk import TurnStore
from kvreplay.testing.threads import at_once, elsewhere
from support.engines import Engine
from support.forking import Child
from support.waiting import PATIENCE

STRIDE = 41  # of the points at which a turn is killed,
LAST = 48  # and of the last ones more


class _Killed(BaseException):
    """Nobody catches it: whoever raises it is killed."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def take_turn(store: TurnStore, number: int, said: int) -> None:
    """A turn as a node's: a monitor, an event of LDK's, the manager; then it tells its peer."""
    replay = Replay(store, "events", ttl=600)
    value = str(number).encode()

    def handle(txn: Any) -> int:
        txn.write("ledger", "", "balance", value)
        store.write("monitor_updates", "funding", value.decode(), b"update")
        return number

    with store.turn():
        store.write("monitors", "", "funding", value)
        store.after_commit(partial(os.write, said, value))
        replay.execute_in_transaction(("payment_claimed", str(number)), {}, handle)
        store.write("", "", "manager", value)


def stored(store: Any) -> set[int]:
    """The numbers of the turns that the store shows: one, if no turn is there by half."""
    numbers = {
        int(store.read(*address))
        for address in (("monitors", "", "funding"), ("", "", "manager"), ("ledger", "", "balance"))
    }
    numbers.add(len(store.list("monitor_updates", "funding")))
    numbers.add(len(store.list("events", "payment_claimed")))
    return numbers


@pytest.mark.parametrize("name", ["lmdb", "sqlite"])
def test_a_turn_that_is_killed_anywhere_is_there_or_not(
    name: str, new_engine: Callable[[str], Engine]
) -> None:
    """And what the node has told its peer is always there."""
    engine = new_engine(name)
    hears, said = os.pipe()

    def turn(number: int, at: int) -> Ended:
        with engine.open() as store:
            ended = Points(_Killed).run(lambda: take_turn(TurnStore(store), number, said), at)
        assert ended.error is None
        return ended

    def count() -> None:
        os.write(said, b" %d" % turn(2, 0).points)

    turn(1, 0)
    Child(count).join()  # a child has more points than its parent
    told, points = map(int, os.read(hears, 100).split())
    assert told == 12
    done, ends = 2, list[bool]()
    for at in (*range(1, points, STRIDE), *range(points - LAST, points, 4)):
        code = Child(partial(turn, done + 1, at)).wait()
        assert code in (0, -signal.SIGKILL)  # it may have had fewer points
        os.write(said, b".")
        heard = os.read(hears, 100)[:-1]
        with engine.open() as store:
            (number,) = stored(store)
            assert number in (done, done + 1)
            assert not heard or int(heard) == number, "it told of what is not stored"
            lookup = partial(Replay(store, "events", ttl=600).lookup, params={})
            assert lookup(("payment_claimed", str(number))).response == number
            assert lookup(("payment_claimed", str(number + 1))) is None
        if code:
            ends.append(number > done)
        done = number
    assert {*ends} == {False, True}, "it was killed on one side of the commit only"
    for end in (hears, said):
        os.close(end)


# A forked child is outside of its parent's turn.


def test_a_fork_inside_a_turn(transactional_engine: Engine, fork: type[Child]) -> None:
    store = TurnStore(transactional_engine.open())
    said: list[str] = []

    def child() -> None:
        assert not store.in_transaction
        for call in (
            lambda: turn.write("p", "s", "child", b"v"),
            lambda: part.read("p", "s", "part"),
            lambda: part.write("p", "s", "child", b"v"),
            lambda: store.write("p", "s", "child", b"v"),
            lambda: store.after_commit(lambda: None),
            lambda: blocks[1].__exit__(None, None, None),
            lambda: blocks[0].__exit__(None, None, None),
        ):
            with pytest.raises(StoreError) as caught:
                call()
            assert not isinstance(caught.value, KeyNotFoundError)
        assert said == []

    blocks = [store.turn(), store.transaction()]
    turn = blocks[0].__enter__()
    turn.write("p", "s", "turn", b"v")
    store.after_commit(partial(said.append, "said"))
    part = blocks[1].__enter__()
    part.write("p", "s", "part", b"v")
    fork(child).join()
    for block in reversed(blocks):
        block.__exit__(None, None, None)
    assert sorted(store.list("p", "s")) == ["part", "turn"]
    assert said == ["said"]


def test_a_child_has_turns_of_its_own(transactional_engine: Engine, fork: type[Child]) -> None:
    store = TurnStore(transactional_engine.open())

    def child() -> None:
        refused()
        elsewhere(refused)
        _take(store, "child")  # its parent's turn has ended by then
        elsewhere(partial(_take, store, "thread"))
        refused()
        assert {"child", "thread"} <= {*store.list("p", "s")}

    def refused() -> None:
        with pytest.raises(StoreError, match="no turn"):
            store.write("p", "s", "refused", b"v")

    with store.turn():
        store.write("p", "s", "parent", b"v")
        forked = fork(child)
        store.write("p", "s", "parent", b"w")
    forked.join()
    _take(store, "later")
    of_child = ["child", "thread"] if transactional_engine.durable else []
    assert sorted(store.list("p", "s")) == sorted([*of_child, "later", "parent"])


def test_a_thread_of_a_child_has_no_turn_of_a_parents_thread(fork: type[Child]) -> None:
    """Even if it has the number of that thread."""
    store = TurnStore(MemoryStore())

    def child() -> None:
        assert holder in at_once(*[refused] * 50), "the number is not given again"

    def refused() -> int:
        with pytest.raises(StoreError, match="no turn"):
            store.write("p", "s", "refused", b"v")
        return threading.get_ident()

    def hold() -> None:
        with store.turn():
            inside.set()
            assert leave.wait(PATIENCE)

    inside, leave = threading.Event(), threading.Event()
    holding = threading.Thread(target=hold)
    holding.start()
    assert inside.wait(PATIENCE)
    holder = holding.ident
    fork(child).join()
    leave.set()
    holding.join(PATIENCE)


@pytest.mark.parametrize("name", ["lmdb", "sqlite"])
def test_a_turn_does_not_wait_for_a_run_of_another_process(
    name: str, new_engine: Callable[[str], Engine], fork: type[Child]
) -> None:
    """It has the write lock, without which that process cannot store its answer."""
    key, told = ("peer", "session"), list[str]()
    with new_engine(name).open() as store:
        turns = TurnStore(store)
        replay = Replay(turns, "ns", ttl=60, on_event=lambda event: told.append(event.kind))
        (runs, run), (goes_on, go_on) = os.pipe(), os.pipe()

        def handler() -> str:
            os.write(run, b".")
            os.read(goes_on, 1)
            return "theirs"

        child = fork(lambda: replay.execute(key, {}, handler))
        os.read(runs, 1)
        with turns.turn():
            turns.write("p", "s", "kept", b"v")
            with pytest.raises(InFlightError):
                replay.execute_in_transaction(key, {}, lambda txn: "ours")
        assert told == ["in_flight"], "it was refused, and has not waited"
        assert turns.list("p", "s") == ["kept"]
        os.write(go_on, b".")
        child.join()
        with turns.turn():
            outcome = replay.execute_in_transaction(key, {}, lambda txn: "ours")
        assert outcome.response == "theirs"
    for end in (runs, run, goes_on, go_on):
        os.close(end)


def _take(store: TurnStore, key: str) -> None:
    with store.turn():
        store.write("p", "s", key, b"v")
