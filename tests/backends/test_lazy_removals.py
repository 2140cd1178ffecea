"""Lazy removals on LMDB and SQLite: they cost no commit, and the next one makes them.

What every engine promises of them is in the kit.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvreplay.backends import lazy_removals
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import KeyNotFoundError, OutcomeUnknownError, StoreError, StoreUnavailableError
from kvreplay.store import Change
from kvreplay.testing.entries import content, put
from kvreplay.testing.forking import Child
from kvreplay.testing.threads import PATIENCE, Running
from support import lmdb_stores, sqlite_stores
from support.waiting import HeldTransaction, until

V = b"value"


@pytest.fixture(params=[LMDBStore, SQLiteStore], ids=["lmdb", "sqlite"])
def opens(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def store(opens: Any, root: Path) -> Iterator[Any]:
    with opens(root) as store:
        yield store


class Commits:
    """How many commits there have been since it was asked last."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._statements: list[str] = []
        if isinstance(store, SQLiteStore):
            writer = store._opened().connections.writer
            writer.set_trace_callback(self._statements.append)
        self._before = self._all()

    def _all(self) -> int:
        if isinstance(self._store, SQLiteStore):
            return self._statements.count("COMMIT")
        info = self._store._opened().handle.files.env.info()
        return int(info["last_txnid"])

    def more(self) -> int:
        before, self._before = self._before, self._all()
        return self._before - before


def pending(store: Any) -> dict[Any, bytes]:
    found: dict[Any, bytes] = store._opened().removals.pending
    return found


def process(opens: Any, code: str, root: Path) -> Any:
    stores = lmdb_stores if opens is LMDBStore else sqlite_stores
    return stores.Process(f"Store = {opens.__name__}\n{code}", root)


def in_process(opens: Any, code: str, root: Path) -> str:
    with process(opens, code, root) as running:
        return str(running.join())


def seen_elsewhere(opens: Any, root: Path) -> list[str]:
    """The keys that another process finds."""
    said = in_process(opens, "with Store(path) as s: say(' '.join(s.list('p', 's')))", root)
    return sorted(said.split())


# What they cost.


def test_a_wave_costs_no_commit_of_its_own(store: Any, opens: Any, root: Path) -> None:
    for n in range(101):
        store.write("p", "s", f"k{n}", V)
    commits = Commits(store)
    for n in range(101):
        store.remove("p", "s", f"k{n}", lazy=True)
    assert store.list("p", "s") == []
    assert commits.more() == 0
    assert len(pending(store)) == 101
    store.write("p", "s", "next", V)
    assert commits.more() == 1
    assert not pending(store)
    assert seen_elsewhere(opens, root) == ["next"]


@pytest.mark.parametrize("how", ["remove", "transaction", "sweep", "check_and_put_each"])
def test_any_commit_makes_them(store: Any, opens: Any, root: Path, how: str) -> None:
    store.write("p", "s", "goes", V)
    commits = Commits(store)
    store.remove("p", "s", "goes", lazy=True)
    if how == "remove":
        store.remove("p", "s", "absent")
    elif how == "transaction":
        with store.transaction():
            pass
    elif how == "sweep":
        store.sweep("p", 5, 5)
    else:
        store.check_and_put_each([])
        assert pending(store), "it has committed nothing"
        assert store.check_and_put_each([Change("p", "s", "goes", None, None)]) == [None]
    assert commits.more() == 1
    assert not pending(store)
    assert seen_elsewhere(opens, root) == []


def test_one_that_finds_nothing_is_not_remembered(store: Any) -> None:
    store.remove("p", "s", "absent", lazy=True)
    assert not pending(store)


def test_they_are_bounded(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is made at once, and its commit makes the others."""
    assert lazy_removals.MOST == 1000
    monkeypatch.setattr(lazy_removals, "MOST", 10)
    with store.transaction() as txn:
        for n in range(25):
            txn.write("p", "s", f"k{n:02}", V)
    commits = Commits(store)
    left = []
    for n in range(25):
        store.remove("p", "s", f"k{n:02}", lazy=True)
        left.append((len(pending(store)), commits.more()))
    assert left == [*((n, 0) for n in range(1, 11)), (0, 1)] * 2 + [(1, 0), (2, 0), (3, 0)]
    assert store.list("p", "s") == []


# What ends them.


def test_closing_makes_them_by_one_commit(opens: Any, root: Path) -> None:
    store = opens(root)
    store.write("p", "s", "goes", V)
    store.write("p", "s", "goes-too", V)
    store.remove("p", "s", "goes", lazy=True)
    store.remove("p", "s", "goes-too", lazy=True)
    assert seen_elsewhere(opens, root) == ["goes", "goes-too"], "they were no lazy removals"
    with opens(root) as other:  # it counts them while the store is closed
        commits = Commits(store if opens is SQLiteStore else other)
        store.close()
        assert commits.more() == 1
    assert seen_elsewhere(opens, root) == []


def test_closing_commits_nothing_where_nothing_is_pending(opens: Any, root: Path) -> None:
    with opens(root) as store:
        store.write("p", "s", "k", V)
        store.remove("p", "s", "k", lazy=True)
        store.write("p", "s", "l", V)
        other = opens(root)
        commits = Commits(other)
        other.close()
        commits._store = store
        assert commits.more() == 0


def test_a_store_that_is_dropped_makes_them(opens: Any, root: Path) -> None:
    store = opens(root)
    store.write("p", "s", "k", V)
    store.remove("p", "s", "k", lazy=True)
    with pytest.warns(ResourceWarning, match="not closed"):
        del store
    assert seen_elsewhere(opens, root) == []


HOLD = """
with Store(path) as store, store.transaction():
    say("held")
    wait()
"""


def test_a_close_that_cannot_make_them_says_so(opens: Any, root: Path) -> None:
    store = opens(root, lock_timeout=0.2)
    store.write("p", "s", "k", V)
    store.remove("p", "s", "k", lazy=True)
    with process(opens, HOLD, root) as holder:
        assert holder.hear() == "held"
        with pytest.raises(StoreUnavailableError, match="closed, but 1 entries that were removed"):
            store.close()
        with pytest.raises(StoreError, match="closed"):
            store.read("p", "s", "k")
        store.close()
        holder.tell("go")
        holder.join()
    with opens(root) as again:
        assert content(again) == {("p", "s", "k"): V}
        again.remove("p", "s", "k", lazy=True)
    assert seen_elsewhere(opens, root) == []


@pytest.mark.parametrize("committed", [False, True])
def test_a_kill_loses_at_most_the_removals(opens: Any, root: Path, committed: bool) -> None:
    """The entries are then simply still there."""
    code = f"""
s = Store(path)
s.write('p', 's', 'goes', b'v')
s.write('p', 's', 'stays', b'v')
s.remove('p', 's', 'goes', lazy=True)
assert s.list('p', 's') == ['stays']
if {committed}: s.write('p', 's', 'later', b'v')
say('done')
wait()
"""
    with process(opens, code, root) as killed:
        assert killed.hear() == "done"
        killed.kill()
    with opens(root) as store:
        expected = {"stays", "later"} if committed else {"goes", "stays"}
        assert set(store.list("p", "s")) == expected
        store.write("p", "s", "goes", b"w")
        assert store.read("p", "s", "goes") == b"w"


def test_a_forked_child_has_none_of_them(store: Any) -> None:
    """And they are not lost in the parent."""
    store.write("p", "s", "k", V)
    store.remove("p", "s", "k", lazy=True)

    def child() -> None:
        assert store.read("p", "s", "k") == V
        store.write("p", "s", "l", V)
        assert store.read("p", "s", "k") == V
        store.close()

    Child(child).join()
    assert store.list("p", "s") == ["l"]
    assert len(pending(store)) == 1
    store.write("p", "s", "m", V)
    assert not pending(store)
    assert set(store.list("p", "s")) == {"l", "m"}


def test_an_environment_that_is_opened_anew_keeps_them(root: Path) -> None:
    with LMDBStore(root) as store:
        store.write("p", "s", "k", V)
        store.remove("p", "s", "k", lazy=True)
        handle = store._opened().handle
        handle._change(handle._forget)
        assert handle.gate.handle is None, "it is still open"
        assert store.list("p", "s") == []
        assert len(pending(store)) == 1
        store.write("p", "s", "l", V)
        assert list(store.list_all_keys()) == [("p", "s", "l")]
        assert not pending(store)


def test_another_store_in_the_same_place_loses_nothing(opens: Any, root: Path) -> None:
    store = opens(root)
    store.write("p", "s", "k", V)
    store.remove("p", "s", "k", lazy=True)
    place, away = root.parent, root.parent / "away"
    files = [path for path in place.iterdir() if path.name.startswith(root.name)]
    away.mkdir()
    for path in files:
        path.rename(away / path.name)
    in_process(opens, "with Store(path) as s: s.write('p', 's', 'k', b'value')", root)
    with pytest.raises(StoreError):
        store.write("p", "s", "l", V)
    with pytest.raises(StoreError, match="1 entries that were removed lazily"):
        store.close()
    with opens(root) as other:
        assert content(other) == {("p", "s", "k"): V}
        other.write("p", "s", "l", V)
        assert set(other.list("p", "s")) == {"k", "l"}


# What comes at the same time.


class Held:
    """A write to an entry, on a thread of its own, that stays in its transaction until let go."""

    def __init__(self, store: Any, key: str) -> None:
        opened, names = store._opened(), ("p", "s", key)
        self._inside, self._leave = threading.Event(), threading.Event()
        address = "\0".join(names).encode() if isinstance(store, LMDBStore) else names

        def operation(txn: object) -> None:
            self._inside.set()
            assert self._leave.wait(PATIENCE)

        self._running = Running(lambda: opened.write(operation, address=address))
        assert self._inside.wait(PATIENCE)

    def end(self) -> None:
        self._leave.set()
        self._running.result()


def test_one_whose_entry_no_write_changes_waits_for_none(store: Any) -> None:
    store.write("p", "s", "k", V)
    held = Held(store, "other")
    store.remove("p", "s", "k", lazy=True)
    with pytest.raises(KeyNotFoundError):
        store.read("p", "s", "k")
    held.end()
    assert len(pending(store)) == 1
    assert store.check_and_put("p", "s", "k", expected=None, value=b"w") is None


def test_one_whose_entry_a_write_changes_comes_after_it(store: Any) -> None:
    store.write("p", "s", "k", V)
    held = Held(store, "k")
    removal = Running(lambda: store.remove("p", "s", "k", lazy=True))
    until(lambda: len(store._opened()._queue._waiting) == 2)
    assert not removal.over
    assert not pending(store)
    held.end()
    removal.result()
    assert store.list("p", "s") == []


def test_one_that_comes_while_a_thread_is_in_a_transaction(store: Any) -> None:
    """That may read the entry at any moment, so the removal comes after it."""
    store.write("p", "s", "k", V)
    held = HeldTransaction(store, b"new")
    removal = Running(lambda: store.remove("p", "s", "k", lazy=True))
    until(lambda: len(store._opened()._queue._waiting) == 1)
    held.end()
    removal.result()
    assert store.list("p", "s") == []


def test_a_transaction_that_begins_while_it_looks_turns_it_away(store: Any) -> None:
    """Else that might change the entry, and the removal would come too late to remove it."""
    store.write("p", "s", "k", V)
    removals = store._opened().removals
    address = next(iter(looked_at(store)))

    def look(address: Any) -> Any:
        put(store, "k", b"new")
        return "identity"

    assert not removals.remember(address, look, [])
    assert not pending(store)
    assert removals.remember(address, lambda address: None, [])
    assert not removals.remember(address, lambda address: "identity", [True]), "it is being closed"


def looked_at(store: Any) -> Iterator[Any]:
    store.remove("p", "s", "k", lazy=True)
    yield from pending(store)
    store.write("p", "s", "k", V)


def test_nothing_of_them_is_left_behind(store: Any) -> None:
    store.write("p", "s", "k", V)
    store.remove("p", "s", "k", lazy=True)
    with store.transaction() as txn:
        txn.write("p", "s", "k", V)
    removals = store._opened().removals
    assert (removals.pending, removals.flying, removals._coming) == ({}, {}, {})


# No write fails because of one.


@pytest.fixture
def stuck(store: Any, root: Path) -> Iterator[Any]:
    """A store with an entry that cannot be removed, and whose lazy removal is pending."""
    store.write("p", "s", "stuck", V)
    store.write("p", "s", "goes", V)
    if isinstance(store, SQLiteStore):
        with closing(sqlite3.connect(root)) as raw:
            raw.execute(
                "CREATE TRIGGER no BEFORE DELETE ON ldk_node_data WHEN old.key = 'stuck'"
                " BEGIN SELECT raise(ABORT, 'stuck'); END"
            )
            raw.commit()
    else:
        removals = store._opened().removals
        make = removals._make

        def fail(entry: bytes, identity: bytes, txn: Any) -> None:
            if entry.endswith(b"stuck"):
                raise lmdb.CorruptedError("stuck")
            make(entry, identity, txn)

        removals._make = fail  # a damaged page, for which LMDB might end the process
    store.remove("p", "s", "stuck", lazy=True)
    store.remove("p", "s", "goes", lazy=True)
    yield store
    if isinstance(store, SQLiteStore):
        with closing(sqlite3.connect(root)) as raw:
            raw.execute("DROP TRIGGER no")
            raw.commit()
    else:
        removals._make = make


def test_a_removal_that_fails_fails_no_write(stuck: Any) -> None:
    stuck.write("p", "s", "k", b"w")
    with stuck.transaction() as txn:
        txn.write("p", "s", "l", b"w")
    assert stuck.check_and_put("p", "s", "m", expected=None, value=b"w") is None
    assert set(stuck.list("p", "s")) == {"k", "l", "m"}
    assert len(pending(stuck)) == 2, "they were forgotten"


def test_a_close_tells_of_a_removal_that_fails(stuck: Any) -> None:
    with pytest.raises(StoreError, match="2 entries that were removed lazily are still there"):
        stuck.close()


def test_a_refused_write_leaves_them_pending(store: Any) -> None:
    store.write("p", "s", "k", V)
    store.remove("p", "s", "k", lazy=True)
    opened = store._opened()

    def fail(txn: object) -> None:
        raise OutcomeUnknownError("nobody knows")

    with pytest.raises(OutcomeUnknownError):
        opened.write(fail)
    assert len(pending(store)) == 1
    assert store.list("p", "s") == []
    store.write("p", "s", "l", V)
    assert content(store) == {("p", "s", "l"): V}


# SQLite alone.


def test_the_others_are_told_by_a_file(root: Path) -> None:
    told = Path(f"{root}-kvreplay-lazy")
    with SQLiteStore(root) as store:
        store.write("p", "s", "k", V)
        store.remove("p", "s", "absent")
        assert not told.exists(), "an update takes longer where it is"
        store.remove("p", "s", "k", lazy=True)
        assert told.exists()
        assert os.stat(told).st_mode & 0o777 == 0o600


def test_nothing_is_told_where_the_store_is_gone(root: Path) -> None:
    store = SQLiteStore(root)
    store.write("p", "s", "k", V)
    away = root.parent / "away"
    away.mkdir()
    for path in [path for path in root.parent.iterdir() if path != away]:
        path.rename(away / path.name)
    with pytest.raises(StoreUnavailableError):
        store.remove("p", "s", "k", lazy=True)
    store.close()
    assert list(root.parent.iterdir()) == [away]


def test_a_file_that_cannot_be_seen_counts_as_there(root: Path) -> None:
    told = Path(f"{root}-kvreplay-lazy")
    told.symlink_to(told)
    with SQLiteStore(root) as store:
        store.write("p", "s", "k", V)
        store.write("p", "s", "k", b"w")
        store.remove("p", "s", "k", lazy=True)
        assert store.list("p", "s") == []
