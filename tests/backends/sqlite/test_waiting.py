"""Waiting for other writers: bounded, and what has waited in vain never happens."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import ConfigError, StoreUnavailableError
from kvreplay.store import Change
from kvreplay.testing.entries import content
from support.replaying import Caller
from support.sqlite_stores import Process, locks_of
from support.waiting import HeldTransaction, until, until_somebody_waits_for

SHORT = 0.4  # seconds

HOLD = """
with SQLiteStore(path) as store, store.transaction() as txn:
    txn.write("p", "s", "held", b"v")
    say("inside")
    wait()
"""


def calls_of(store: Any) -> list[Any]:
    return [
        lambda: store.write("p", "s", "late", b"v"),
        lambda: store.check_and_put("p", "s", "late", expected=None, value=b"v"),
        lambda: store.remove("p", "s", "k"),
        lambda: store.sweep("p", 5, 5),
        lambda: store.transaction().__enter__(),
    ]


def test_another_process_that_holds_the_turn_is_named(root: Path) -> None:
    """Even if it is stopped; readers go on; what was refused never happens."""
    with SQLiteStore(root, lock_timeout=SHORT) as store:
        store.write("p", "s", "k", b"v")
        with Process(HOLD, root) as process:
            assert process.hear() == "inside"
            for call in calls_of(store):
                began = time.monotonic()
                with pytest.raises(StoreUnavailableError, match=f"process {process.pid} has it"):
                    call()
                assert SHORT <= time.monotonic() - began < SHORT + 5
            assert store.read("p", "s", "k") == b"v"
            outcomes = store.check_and_put_each([Change("p", "s", "late", None, b"v")] * 2)
            assert [type(each) for each in outcomes] == [StoreUnavailableError] * 2
            process.tell("go")
            process.join()
        store.write("p", "s", "after", b"v")
        assert set(content(store)) == {("p", "s", key) for key in ("k", "held", "after")}


def test_a_thread_of_this_process_that_holds_it(root: Path) -> None:
    with SQLiteStore(root, lock_timeout=SHORT) as store:
        held = HeldTransaction(store, b"held")
        for call in calls_of(store):
            with pytest.raises(StoreUnavailableError, match="lock_timeout"):
                call()
        with pytest.raises(StoreUnavailableError, match="lock_timeout"):
            store.close()
        held.end()
        assert content(store) == {("p", "s", "k"): b"held"}
        store.write("p", "s", "after", b"v")


def test_many_that_wait_are_refused_together_and_none_happens(root: Path) -> None:
    with SQLiteStore(root, lock_timeout=SHORT) as store:
        held = HeldTransaction(store)
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(store.write, "p", "s", f"k{n}", b"v") for n in range(8)]
            errors = [each.exception(30) for each in waiting]
        assert all(isinstance(error, StoreUnavailableError) for error in errors)
        held.end()
        assert content(store) == {}
        store.write("p", "s", "after", b"v")
        assert content(store) == {("p", "s", "after"): b"v"}


def test_who_waits_long_enough_gets_it(root: Path) -> None:
    with SQLiteStore(root) as store:
        held = HeldTransaction(store, b"held")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.check_and_put, "p", "s", "k", expected=b"held", value=b"w")
            until(lambda: len(store._opened()._queue._waiting) == 1)
            held.end()
            assert waiting.result(30) == b"held"
        assert store.read("p", "s", "k") == b"w"


def test_another_program_that_writes_is_waited_for(root: Path) -> None:
    """It knows nothing of turns, and has SQLite's own lock."""
    with SQLiteStore(root, lock_timeout=SHORT) as store:
        other = sqlite3.connect(root, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="another program"):
            store.write("p", "s", "k", b"v")
        with pytest.raises(StoreUnavailableError, match="another program"):
            store.transaction().__enter__()
        other.execute("COMMIT")
        store.write("p", "s", "k", b"w")
        assert content(store) == {("p", "s", "k"): b"w"}
        other.close()


def test_a_warning_comes_before_the_error(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with SQLiteStore(root, lock_timeout=SHORT) as store, Process(HOLD, root) as process:
        assert process.hear() == "inside"
        with (
            caplog.at_level(logging.WARNING, "kvreplay"),
            pytest.raises(StoreUnavailableError),
        ):
            store.write("p", "s", "k", b"v")
        assert any(f"process {process.pid}" in each.getMessage() for each in caplog.records)
        process.tell("go")
        process.join()


def test_opening_has_a_bound_and_stops_no_other_store(root: Path, tmp_path: Path) -> None:
    with Process(HOLD, root) as process:
        assert process.hear() == "inside"
        with pytest.raises(StoreUnavailableError, match=f"process {process.pid} has it"):
            SQLiteStore(root, lock_timeout=SHORT)
        assert locks_of(os.getpid(), root) == []
        opening = Caller(lambda: SQLiteStore(root))
        until_somebody_waits_for(Path(f"{root}-kvreplay-lock"))
        with SQLiteStore(tmp_path / "another.db") as another:
            another.write("p", "s", "k", b"v")
        assert opening.is_alive()
        process.tell("go")
        process.join()
        with opening.result() as store:
            assert store.list("p", "s") == ["held"]


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), True, "10 x", None])
def test_a_wrong_bound(root: Path, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="lock_timeout"):
        SQLiteStore(root, lock_timeout=wrong)
    assert not root.exists()


def test_the_bound_in_a_url(root: Path) -> None:
    with open_store(f"sqlite:{root}?lock_timeout=200ms") as store:
        held = HeldTransaction(store, b"v")
        with pytest.raises(StoreUnavailableError, match=r"within 0\.2 s"):
            store.write("p", "s", "k", b"v")
        held.end()
