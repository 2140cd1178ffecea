"""Turns: one round of a node's messages and events is one commit, and what it says leaves after it."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay import (
    OutcomeUnknownError,
    Replay,
)
from kvreplay.backends.memory import MemoryStore
from kvreplay.errors import (
    ConfigError,
    InvalidNameError,
    InvalidValueError,
    KeyNotFoundError,
    StoreError,
)
from kvreplay.ldk import TurnStore
from kvreplay.store import KVStoreSync, TransactionalKVStore
from kvreplay.testing.entries import content
from kvreplay.testing.threads import elsewhere
from support.engines import Engine
from support.waiting import PATIENCE, HeldTransaction

KEY = ("payment_claimed", "hash")
PARAMS = {"amount_msat": 1000}


@pytest.fixture
def store(transactional: Any) -> TurnStore:
    return TurnStore(transactional)


@pytest.fixture
def replay(store: TurnStore) -> Replay:
    return Replay(store, "events", ttl=60, wait_timeout=0)


class Said:
    """What a node has said, with what was stored when it said it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.words: list[str] = []
        self.stored: list[dict[Any, bytes]] = []

    def action(self, word: str, error: BaseException | None = None) -> Callable[[], None]:
        def say() -> None:
            self.words.append(word)
            self.stored.append(elsewhere(lambda: content(self._inner)))
            if error is not None:
                raise error

        return say


@pytest.fixture
def said(transactional: Any) -> Said:
    return Said(transactional)


def write(store: Any, key: str, value: bytes = b"v") -> None:
    store.write("p", "s", key, value)


def keys(store: Any) -> list[str]:
    return sorted(store.list("p", "s"))


def test_it_is_what_it_says(store: TurnStore, transactional: Any) -> None:
    typed: TransactionalKVStore = store
    plain: KVStoreSync = store
    assert isinstance(typed, TransactionalKVStore)
    assert isinstance(plain, KVStoreSync)
    assert repr(store) == f"<TurnStore over {type(transactional).__name__}>"


def test_a_store_without_transactions_is_refused(new_engine: Callable[[str], Engine]) -> None:
    with pytest.raises(ConfigError, match="FilesystemStore has no transaction$"):
        TurnStore(new_engine("filesystem").open())


def test_what_the_wrapped_store_says_of_itself(store: TurnStore, transactional: Any) -> None:
    for name in ("owners_file", "reads_are_local", "identity"):
        if hasattr(transactional, name):
            assert getattr(store, name) == getattr(transactional, name)
    assert store.identity == TurnStore(transactional).identity
    assert not hasattr(store, "read_entry")
    assert not hasattr(store, "list_paginated")
    assert not hasattr(store, "check_and_put_each")


def test_a_wrapped_store_that_says_nothing_of_itself() -> None:
    class Bare(MemoryStore):
        reads_are_local = False

    stores = [TurnStore(Bare()), TurnStore(Bare())]
    assert not stores[0].reads_are_local
    assert stores[0].owners_file is None
    assert stores[0].identity != stores[1].identity


# A turn.


def test_a_turn_is_one_commit(store: TurnStore, transactional: Any) -> None:
    with store.turn():
        write(store, "monitor")
        write(store, "gone")
        store.remove("p", "s", "gone")
        store.remove("p", "s", "absent", lazy=True)
        put = store.check_and_put("p", "s", "expires", expected=None, value=b"v", expires_at=5)
        assert put is None
        assert store.read("p", "s", "monitor") == b"v"
        assert keys(store) == ["expires", "monitor"]
        assert elsewhere(lambda: content(transactional)) == {}
    assert keys(store) == ["expires", "monitor"]
    assert store.sweep("p", 5, 5).removed == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, StoreError])
def test_a_turn_that_raises_is_undone(
    store: TurnStore, said: Said, error: type[BaseException]
) -> None:
    with pytest.raises(error), store.turn():
        write(store, "monitor")
        store.after_commit(said.action("never"))
        raise error
    assert said.words == []
    assert content(store) == {}
    with store.turn():
        write(store, "monitor")
        store.after_commit(said.action("now"))
    assert said.words == ["now"]
    assert keys(store) == ["monitor"]


def test_what_is_said_leaves_after_the_commit_and_in_order(store: TurnStore, said: Said) -> None:
    with store.turn():
        store.after_commit(said.action("first"))
        write(store, "monitor")
        store.after_commit(said.action("second"))
        assert said.words == []
    assert said.words == ["first", "second"]
    assert said.stored == [{("p", "s", "monitor"): b"v"}] * 2


def test_an_action_is_outside_of_the_turn_and_the_lock_is_free(store: TurnStore) -> None:
    """It may begin a turn of its own, whose actions run inside it."""
    order: list[str] = []

    def reply() -> None:
        with pytest.raises(StoreError, match="no turn"):
            store.after_commit(lambda: None)
        with pytest.raises(StoreError, match="no turn"):
            write(store, "x")
        elsewhere(lambda: _turn_that_writes(store, "another-thread"))
        with store.turn():
            write(store, "reply")
            store.after_commit(lambda: order.append("inner"))
        order.append("outer")

    with store.turn():
        store.after_commit(reply)
    assert order == ["inner", "outer"]
    assert keys(store) == ["another-thread", "reply"]


def _turn_that_writes(store: TurnStore, key: str) -> None:
    with store.turn():
        write(store, key)


def test_all_actions_run_even_if_one_raises(store: TurnStore, said: Said) -> None:
    first, second = ZeroDivisionError(), OSError()
    with pytest.raises(ZeroDivisionError) as one, store.turn():
        write(store, "a")
        store.after_commit(said.action("a", first))
        store.after_commit(said.action("b"))
    assert one.value is first
    with pytest.raises(ExceptionGroup, match="2 of 3") as several, store.turn():
        write(store, "b")
        store.after_commit(said.action("c", first))
        store.after_commit(said.action("d"))
        store.after_commit(said.action("e", second))
    assert several.value.exceptions == (first, second)
    assert said.words == ["a", "b", "c", "d", "e"]
    assert keys(store) == ["a", "b"], "the commit has happened"


def test_what_is_no_exception_ends_the_actions_at_once(store: TurnStore, said: Said) -> None:
    with pytest.raises(KeyboardInterrupt), store.turn():
        write(store, "a")
        store.after_commit(said.action("a", ZeroDivisionError()))
        store.after_commit(said.action("b", KeyboardInterrupt()))
        store.after_commit(said.action("c"))
    assert said.words == ["a", "b"]
    assert keys(store) == ["a"]
    _turn_that_writes(store, "next")


@pytest.mark.parametrize("error", [StoreError("full"), OutcomeUnknownError("maybe")])
def test_a_commit_that_fails_says_nothing(
    transactional: Any, said: Said, error: StoreError
) -> None:
    store = TurnStore(_Failing(transactional, error))
    with pytest.raises(type(error)) as caught, store.turn():
        write(store, "a")
        store.after_commit(said.action("never"))
    assert caught.value is error
    assert said.words == []
    with pytest.raises(StoreError, match="no turn"):
        write(store, "outside")


class _Failing:
    """A store whose commits are undone, or made, and then fail; or that fails in a write."""

    def __init__(self, inner: Any, error: StoreError | None = None) -> None:
        self._inner, self._error = inner, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextlib.contextmanager
    def transaction(self) -> Any:
        with contextlib.ExitStack() as stack:
            txn = stack.enter_context(self._inner.transaction())
            yield _FailsToWrite(txn)
            if isinstance(self._error, OutcomeUnknownError):
                stack.close()
            if self._error is not None:
                raise self._error


class _FailsToWrite:
    def __init__(self, txn: Any) -> None:
        self._txn = txn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._txn, name)

    def write(self, primary: str, secondary: str, key: str, value: bytes) -> None:
        if key == "interrupted":
            raise KeyboardInterrupt
        self._txn.write(primary, secondary, key, value)


def test_a_turn_inside_a_turn_is_refused(store: TurnStore) -> None:
    with store.turn():
        write(store, "a")
        with pytest.raises(StoreError, match="in a turn already"), store.turn():
            pass
        with store.transaction(), pytest.raises(StoreError, match="in a turn already"):
            store.turn().__enter__()
        write(store, "b")
    assert keys(store) == ["a", "b"]


def test_outside_of_a_turn_changes_are_refused(store: TurnStore, transactional: Any) -> None:
    write(transactional, "there")
    for call in (
        lambda: write(store, "k"),
        lambda: store.remove("p", "s", "there"),
        lambda: store.remove("p", "s", "there", lazy=True),
        lambda: store.after_commit(lambda: None),
    ):
        with pytest.raises(StoreError, match="store.turn") as caught:
            call()
        assert not isinstance(caught.value, KeyNotFoundError)
    assert content(store) == {("p", "s", "there"): b"v"}
    assert store.read("p", "s", "there") == b"v"
    assert keys(store) == ["there"]
    with pytest.raises(KeyNotFoundError):
        store.read("p", "s", "absent")
    with pytest.raises(InvalidNameError):
        store.read("p", "s", "a/b")
    put = store.check_and_put("p", "s", "there", expected=b"v", value=b"w")
    assert put == b"v"
    assert transactional.read("p", "s", "there") == b"w"


def test_other_threads_are_outside(store: TurnStore, transactional: Any) -> None:
    with store.turn() as turn:
        write(store, "k")
        with store.transaction() as part:
            write(part, "k")
            for call in (
                lambda: write(store, "x"),
                lambda: store.remove("p", "s", "k"),
                lambda: store.after_commit(lambda: None),
                lambda: write(turn, "x"),
                lambda: turn.read("p", "s", "k"),
                lambda: write(part, "x"),
                lambda: part.read("p", "s", "k"),
                lambda: part.check_and_put("p", "s", "x", expected=None, value=b"v"),
            ):
                with pytest.raises(StoreError) as caught:
                    elsewhere(call)
                assert not isinstance(caught.value, KeyNotFoundError)
            assert elsewhere(lambda: keys(store)) == []
            with pytest.raises(KeyNotFoundError):
                elsewhere(lambda: store.read("p", "s", "k"))
    assert keys(store) == ["k"]


def test_what_has_commits_of_its_own_is_refused_inside(
    store: TurnStore, transactional: Any
) -> None:
    transactional.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=1)
    with store.turn():
        for call in (
            lambda: store.sweep("p", 5, 5),
            lambda: store.list_all_keys(),
            lambda: store.check_and_put("p", "s", "claim", expected=None, value=b"v"),
            lambda: store.close(),
        ):
            with pytest.raises(StoreError):
                call()
        assert store.check_and_put("p", "s", "due", expected=b"v", value=None) == b"v"
        assert store.check_and_put("p", "s", "due", expected=b"v", value=None) is None
    assert list(store.list_all_keys()) == []
    assert store.sweep("p", 5, 5).removed == 0
    assert store.check_and_put("p", "s", "claim", expected=None, value=b"v") is None
    assert keys(store) == ["claim"]


def test_closing_closes_this_object_only(store: TurnStore, transactional: Any) -> None:
    with store:
        _turn_that_writes(store, "k")
    for call in (
        lambda: store.read("p", "s", "k"),
        lambda: write(store, "k"),
        lambda: store.list("p", "s"),
        lambda: store.list_all_keys(),
        lambda: store.sweep("p", 5, 5),
        lambda: store.check_and_put("p", "s", "k", expected=None, value=None),
        lambda: store.turn().__enter__(),
        lambda: store.transaction().__enter__(),
        lambda: store.after_commit(lambda: None),
    ):
        with pytest.raises(StoreError, match="closed"):
            call()
    store.close()
    assert transactional.read("p", "s", "k") == b"v"


def test_a_turn_of_another_thread_outlives_the_closing(
    store: TurnStore, transactional: Any
) -> None:
    with store.turn():
        elsewhere(store.close)
        write(store, "k")
    assert keys(transactional) == ["k"]


# Parts of a turn.


def test_a_part_is_undone_alone(store: TurnStore, said: Said) -> None:
    with store.turn():
        write(store, "before")
        with pytest.raises(ZeroDivisionError), store.transaction() as part:
            part.write("p", "s", "before", b"changed")
            part.write("p", "s", "new", b"v")
            write(store, "by-the-store")
            store.remove("p", "s", "before")
            store.after_commit(said.action("never"))
            raise ZeroDivisionError
        assert keys(store) == ["before"]
        assert store.read("p", "s", "before") == b"v"
        with store.transaction() as part:
            part.write("p", "s", "kept", b"v")
            store.after_commit(said.action("kept"))
        store.after_commit(said.action("after"))
        assert keys(store) == ["before", "kept"]
    assert keys(store) == ["before", "kept"]
    assert said.words == ["kept", "after"]


def test_a_part_goes_with_its_turn(store: TurnStore, said: Said) -> None:
    with pytest.raises(ZeroDivisionError), store.turn():
        with store.transaction() as part:
            part.write("p", "s", "k", b"v")
            store.after_commit(said.action("never"))
        raise ZeroDivisionError
    assert content(store) == {}
    assert said.words == []


def test_a_part_reads_its_own_changes(store: TurnStore, transactional: Any) -> None:
    for key in ("a", "b"):
        write(transactional, key, b"old")
    with store.turn() as turn:
        turn.write("p", "s", "turn", b"1")
        with store.transaction() as part:
            assert part.read("p", "s", "turn") == store.read("p", "s", "turn") == b"1"
            part.write("p", "s", "a", b"new")
            part.remove("p", "s", "b")
            assert part.read("p", "s", "a") == store.read("p", "s", "a") == b"new"
            with pytest.raises(KeyNotFoundError):
                part.read("p", "s", "b")
            assert keys(part) == keys(store) == ["a", "turn"]
            assert part.check_and_put("p", "s", "b", expected=b"old", value=b"x") is None
            assert part.check_and_put("p", "s", "b", expected=None, value=b"2") is None
            assert part.check_and_put("p", "s", "a", expected=b"new", value=None) == b"new"
            part.remove("p", "s", "turn")
            assert part.list("p", "s") == ["b"]
            assert part.list("q", "s") == []
            part.write("q", "s", "a", b"v")
            assert part.list("q", "s") == ["a"]
        assert turn.list("p", "s") == ["b"]
    assert content(store) == {("p", "s", "b"): b"2", ("q", "s", "a"): b"v"}


def test_what_a_part_refuses(store: TurnStore) -> None:
    with store.turn(), store.transaction() as part:
        for call in (
            lambda: part.read("p", "s", "a/b"),
            lambda: part.write("p", "s", "", b"v"),
            lambda: part.remove("", "s", "k"),
            lambda: part.list("", "s"),
            lambda: part.check_and_put("p", "s", "k" * 121, expected=None, value=None),
        ):
            with pytest.raises(InvalidNameError):
                call()
        for wrong in (
            lambda: part.write("p", "s", "k", "text"),  # type: ignore[arg-type]
            lambda: part.check_and_put("p", "s", "k", expected=None, value=b"v", expires_at=-1),
        ):
            with pytest.raises(InvalidValueError):
                wrong()
        write(store, "k")
    assert keys(store) == ["k"]


def test_expiry_and_creation_in_a_part_are_as_in_the_store(
    store: TurnStore, transactional: Any
) -> None:
    for key in ("a", "b", "c"):
        write(transactional, key)
    with store.turn(), store.transaction() as part:
        part.check_and_put("p", "s", "due", expected=None, value=b"v", expires_at=5)
        part.check_and_put("p", "s", "kept", expected=None, value=b"v", expires_at=5)
        part.write("p", "s", "kept", b"v")
        part.remove("p", "s", "a")
        part.write("p", "s", "a", b"again")
        part.write("p", "s", "b", b"updated")
    page = transactional.list_paginated("p", "s")
    assert page.keys == ["a", "kept", "due", "c", "b"]
    assert store.sweep("p", 5, 5).removed == 1
    assert keys(store) == ["a", "b", "c", "kept"]


def test_parts_of_parts(store: TurnStore) -> None:
    with store.turn():
        with store.transaction() as outer:
            write(store, "outer")
            with store.transaction() as inner:
                write(store, "inner")
                for call in (
                    lambda: outer.write("p", "s", "x", b"v"),
                    lambda: outer.read("p", "s", "outer"),
                ):
                    with pytest.raises(StoreError, match="part of this transaction is open"):
                        call()
            with pytest.raises(StoreError, match="has ended"):
                inner.write("p", "s", "x", b"v")
            with pytest.raises(ZeroDivisionError), store.transaction():
                write(store, "undone")
                raise ZeroDivisionError
            outer.write("p", "s", "last", b"v")
        with pytest.raises(StoreError, match="has ended"):
            outer.read("p", "s", "outer")
    assert keys(store) == ["inner", "last", "outer"]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_part_that_is_only_half_in_its_turn_is_not_committed(
    transactional: Any, said: Said, depth: int
) -> None:
    """Whatever catches the error."""
    store = TurnStore(_Failing(transactional))
    with pytest.raises(StoreError, match="could not be joined"), store.turn() as turn:
        write(store, "before")
        store.after_commit(said.action("never"))
        with pytest.raises(KeyboardInterrupt), contextlib.ExitStack() as parts:
            for _ in range(depth):
                parts.enter_context(store.transaction())
            for key in ("a", "interrupted", "b"):
                write(store, key)
        for call in (
            lambda: write(store, "x"),
            lambda: store.read("p", "s", "before"),
            lambda: store.list("p", "s"),
            lambda: turn.write("p", "s", "x", b"v"),
            lambda: store.after_commit(lambda: None),
            lambda: store.transaction().__enter__(),
        ):
            with pytest.raises(StoreError, match="could not be joined"):
                call()
    assert content(store) == {}
    assert said.words == []
    _turn_that_writes(store, "next")
    assert keys(store) == ["next"]


def test_parts_that_do_not_end_in_order_are_not_committed(store: TurnStore) -> None:
    with pytest.raises(StoreError, match="could not be joined"), store.turn():
        outer, inner = store.transaction(), store.transaction()
        outer.__enter__().write("p", "s", "outer", b"v")
        inner.__enter__().write("p", "s", "inner", b"v")
        with pytest.raises(StoreError, match="is open"):
            outer.__exit__(None, None, None)
        with pytest.raises(StoreError):
            inner.__exit__(None, None, None)
    with pytest.raises(StoreError, match="is open"), store.turn():
        left_open = store.transaction()
        left_open.__enter__().write("p", "s", "inner", b"v")
    assert content(store) == {}
    _turn_that_writes(store, "next")


def test_a_block_that_is_dropped_is_undone(store: TurnStore) -> None:
    block = store.turn()
    block.__enter__().write("p", "s", "k", b"v")
    del block
    with store.turn():
        part = store.transaction()
        part.__enter__().write("p", "s", "k", b"v")
        del part
        write(store, "kept")
    assert keys(store) == ["kept"]


@pytest.mark.parametrize("method", ["turn", "transaction"])
def test_a_turn_that_the_collector_ends_is_undone(store: TurnStore, method: str) -> None:
    """It is part of a cycle, and so is the transaction that it holds."""

    def left_open(cycle: list[Any]) -> Iterator[None]:
        with getattr(store, method)():
            write(store, "k")
            yield

    cycle: list[Any] = []
    cycle.append(left_open(cycle))
    next(cycle[0])
    del cycle
    gc.collect()
    _turn_that_writes(store, "next")
    assert keys(store) == ["next"]


def test_a_turn_waits_for_another_one(store: TurnStore) -> None:
    held = HeldTransaction(store, b"1")
    read: list[bytes] = []
    began = threading.Event()

    def turn() -> None:
        began.set()
        with store.turn():
            read.append(store.read("p", "s", "k"))

    thread = threading.Thread(target=turn)
    thread.start()
    assert began.wait(PATIENCE)
    assert read == []
    held.end()
    thread.join(PATIENCE)
    assert read == [b"1"]
