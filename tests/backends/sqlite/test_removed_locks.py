"""Lock files that somebody removes while processes use the store, as *stale* ones: no change is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import StoreUnavailableError
from support.sqlite_stores import Process, in_process

LOCK, SHARED = "-kvreplay-lock", "-shm"

WRITER = """
store = SQLiteStore(path, lock_timeout=0.3)
say("ready")
while key := wait():
    try:
        store.write("p", "s", key, b"theirs")
        say("written")
    except StoreError as error:
        say(type(error).__name__)
store.close()
"""
HOLD = """
with SQLiteStore(path) as store, store.transaction() as txn:
    txn.write("p", "s", "held", b"v")
    say("inside")
    wait()
"""


def beside(root: Path, name: str) -> Path:
    return Path(f"{root}{name}")


@pytest.fixture
def kept(root: Path) -> Any:
    with SQLiteStore(root, lock_timeout=0.3) as store:
        store.write("p", "s", "k", b"v")
        yield store


def test_a_removed_lock_file_loses_no_change(kept: SQLiteStore, root: Path) -> None:
    """All take their turn on the new one, and not each on its own."""
    beside(root, LOCK).unlink()
    keys = ["k"]
    with Process(WRITER, root) as other:
        assert other.hear() == "ready"
        for n in range(5):
            other.tell(f"theirs{n}")
            assert other.hear() == "written"
            kept.write("p", "s", f"ours{n}", b"v")
            keys += [f"theirs{n}", f"ours{n}"]
        assert sorted(kept.list("p", "s")) == sorted(keys)
        other.tell()
        other.join()


def test_a_lock_file_that_was_removed_lets_nobody_in(kept: SQLiteStore, root: Path) -> None:
    """Its lock is free, but another process has the turn by the file that is there now."""
    beside(root, LOCK).unlink()
    with Process(HOLD, root) as holder:
        assert holder.hear() == "inside"
        with pytest.raises(StoreUnavailableError, match=f"process {holder.pid} has it"):
            kept.write("p", "s", "new", b"v")
        holder.tell("go")
        holder.join()
    kept.write("p", "s", "new", b"v")
    assert sorted(kept.list("p", "s")) == ["held", "k", "new"]


def test_a_lock_file_that_is_removed_in_a_transaction(kept: SQLiteStore, root: Path) -> None:
    """SQLite's own lock keeps the others out until its end."""
    code = """
try:
    with SQLiteStore(path, lock_timeout=0.3) as store:
        store.write("p", "s", "theirs", b"v")
except StoreUnavailableError as error:
    say(error)
"""
    with kept.transaction() as txn:
        txn.write("p", "s", "txn", b"v")
        beside(root, LOCK).unlink()
        assert "another program holds" in in_process(code, root)
    assert in_process(code, root) == ""
    kept.write("p", "s", "ours", b"v")
    assert sorted(kept.list("p", "s")) == ["k", "ours", "theirs", "txn"]


@pytest.mark.parametrize("how", ["a transaction", "a write"])
@pytest.mark.parametrize("names", [(SHARED,), (SHARED, LOCK)])
def test_a_change_is_refused_whose_lock_files_are_removed_meanwhile(
    kept: SQLiteStore, root: Path, names: tuple[str, ...], how: str
) -> None:
    """Who opens the store then has other locks, so both would write to the log at once."""

    def remove() -> None:
        for name in names:
            beside(root, name).unlink()
        if LOCK in names:  # else it waits for the turn
            in_process(
                'with SQLiteStore(path) as store: store.write("p", "s", "theirs", b"v")', root
            )

    with pytest.raises(StoreUnavailableError, match="no longer the file"):
        if how == "a transaction":
            with kept.transaction() as txn:
                txn.write("p", "s", "lost", b"v")
                remove()
        else:

            def operation(txn: Any) -> None:
                txn.run("SELECT 1")
                remove()

            kept._opened().write(operation)
    with pytest.raises(StoreUnavailableError, match="no longer the file"):
        kept.write("p", "s", "lost", b"v")
    kept.close()
    with SQLiteStore(root) as store:
        theirs = ["theirs"] if LOCK in names else []
        assert sorted(store.list("p", "s")) == ["k", *theirs]
        store.write("p", "s", "new", b"v")
    assert os.path.exists(root)
