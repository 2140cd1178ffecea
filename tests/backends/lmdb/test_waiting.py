"""Every wait for somebody else has a bound; what has waited for too long never happens later."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import Change, open_store
from kvreplay.backends import pending
from kvreplay.backends.group_commit import GroupCommit
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb.handle import Handle
from kvreplay.errors import ConfigError, StoreError, StoreUnavailableError
from support.group_commits import queued, waiting
from support.lmdb_stores import Process, in_process, open_files_of
from support.replaying import Caller
from support.waiting import HeldTransaction, until, until_somebody_waits_for

HOLD = """
store = LMDBStore(path)
with store.transaction() as txn:
    txn.write("p", "s", "theirs", b"v")
    say("inside")
    wait()
store.close()
say("over")
"""
BOUND = 0.2  # seconds, where a test waits for it to pass


@pytest.fixture
def impatient(root: Path) -> Iterator[LMDBStore]:
    with LMDBStore(root, lock_timeout=BOUND) as store:
        yield store


@pytest.fixture
def stopped(impatient: LMDBStore, root: Path) -> Iterator[Process]:
    """A process that is stopped inside a transaction."""
    with Process(HOLD, root) as process:
        assert process.hear() == "inside"
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: state_of(process.pid) == "T")
        assert turn_is_taken(root)
        yield process


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def turn_is_taken(root: Path) -> bool:
    file = os.open(root / "kvreplay.lock", os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def go_on(process: Process) -> None:
    os.kill(process.pid, signal.SIGCONT)
    process.tell()
    assert process.hear() == "over"


def test_a_stopped_process_stops_nobody_for_ever(
    impatient: LMDBStore, stopped: Process, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "kvreplay"):
        for change in (
            lambda: impatient.write("p", "s", "k", b"v"),
            lambda: impatient.remove("p", "s", "k"),
            lambda: impatient.check_and_put("p", "s", "k", expected=None, value=b"v"),
            lambda: impatient.sweep("p", 5, 5),
            lambda: impatient.transaction().__enter__(),
        ):
            began = time.monotonic()
            with pytest.raises(
                StoreUnavailableError, match=rf"0\.2 s .*the process {stopped.pid} has it"
            ):
                change()
            assert BOUND <= time.monotonic() - began < 5
    assert len(caplog.records) == 5
    assert all(f"process {stopped.pid} has it" in record.message for record in caplog.records)
    results = impatient.check_and_put_each([Change("p", "s", f"k{n}", None, b"v") for n in (1, 2)])
    assert [type(each) for each in results] == [StoreUnavailableError] * 2
    assert impatient.list("p", "s") == []  # a read does not wait
    go_on(stopped)
    impatient.write("p", "s", "later", b"v")
    assert sorted(impatient.list("p", "s")) == ["later", "theirs"]  # and nothing that timed out


def test_a_queue_behind_a_stopped_process_is_withdrawn(
    impatient: LMDBStore, stopped: Process
) -> None:
    """The one that leads, and those that would have been in its batch."""
    callers = [
        Caller(lambda n=n: impatient.write("p", "s", f"k{n}", b"v"))  # type: ignore[misc]
        for n in range(6)
    ]
    for caller in callers:
        with pytest.raises(StoreUnavailableError, match=f"{stopped.pid} has it"):
            caller.result()
    assert waiting(impatient) == 0
    go_on(stopped)
    assert impatient.list("p", "s") == ["theirs"]
    impatient.write("p", "s", "later", b"v")
    assert sorted(impatient.list("p", "s")) == ["later", "theirs"]


def test_the_next_leader_goes_on_after_one_that_timed_out(root: Path) -> None:
    """Who came later, or waits for longer, commits as soon as the turn is free."""
    with LMDBStore(root, lock_timeout=0.3) as store, LMDBStore(root) as patient:
        with Process(HOLD, root) as holder:
            assert holder.hear() == "inside"
            leader = Caller(lambda: store.write("p", "s", "first", b"v"))
            until_somebody_waits_for(root / "kvreplay.lock")
            follower = Caller(lambda: patient.write("p", "s", "second", b"v"))
            until(lambda: waiting(store) == 2)
            with pytest.raises(StoreUnavailableError):
                leader.result()
            until_somebody_waits_for(root / "kvreplay.lock")
            holder.tell()
            assert holder.hear() == "over"
            assert follower.result() is None
        assert sorted(store.list("p", "s")) == ["second", "theirs"]


def test_a_long_transaction_of_this_process_stops_nobody_for_ever(impatient: LMDBStore) -> None:
    transaction = HeldTransaction(impatient, b"held")
    callers = queued(
        impatient,
        lambda: impatient.write("p", "s", "a", b"v"),
        lambda: impatient.transaction().__enter__(),
        lambda: impatient.write("p", "s", "b", b"v"),
    )
    for caller in callers:
        with pytest.raises(StoreUnavailableError, match="of this process"):
            caller.result()
    transaction.end()
    assert impatient.list("p", "s") == ["k"]
    with impatient.transaction() as txn:
        txn.write("p", "s", "later", b"v")
    assert sorted(impatient.list("p", "s")) == ["k", "later"]


def test_a_change_that_is_being_committed_does_not_time_out(
    store: LMDBStore, monkeypatch: pytest.MonkeyPatch, limits: Any
) -> None:
    """However long its commit takes: nobody could say that it does not happen."""
    commit, give_up = Handle.commit, GroupCommit._give_up
    slow, over = threading.Event(), threading.Event()
    commits, gave_up = [], []
    ahead = 0.0  # how far the clock has jumped

    def slowly(self: Any, txn: Any) -> None:
        commits.append(txn)
        if len(commits) == 2:  # after the transaction's own
            slow.set()
            assert over.wait(60)
        commit(self, txn)

    def giving_up(self: Any, write: Any) -> None:
        gave_up.append(write)
        give_up(self, write)

    limits(look_again=0.01)
    monkeypatch.setattr(Handle, "commit", slowly)
    monkeypatch.setattr(GroupCommit, "_give_up", giving_up)
    monkeypatch.setattr(pending, "monotonic", lambda: time.monotonic() + ahead)
    with store.transaction():
        callers = queued(
            store,
            *(lambda n=n: store.write("p", "s", f"k{n}", b"v") for n in range(3)),  # type: ignore[misc]
        )
    assert slow.wait(60)
    ahead = 1000.0
    until(lambda: len(set(gave_up)) == 2)  # those that follow
    over.set()
    for caller in callers:
        assert caller.result() is None
    assert len(store.list("p", "s")) == 3


def test_a_lock_file_that_was_removed_lets_nobody_in(impatient: LMDBStore, root: Path) -> None:
    """Its lock is free, but another process has the turn by the file that is there now."""
    impatient.write("p", "s", "k", b"v")  # with the file that is removed
    (root / "kvreplay.lock").unlink()
    with Process(HOLD, root) as holder:
        assert holder.hear() == "inside"
        assert turn_is_taken(root)
        with pytest.raises(StoreUnavailableError, match=f"{holder.pid} has it"):
            impatient.write("p", "s", "new", b"v")
        holder.tell()
        assert holder.hear() == "over"
    impatient.write("p", "s", "new", b"v")


def test_opening_has_a_bound(impatient: LMDBStore, stopped: Process, root: Path) -> None:
    impatient.close()
    with pytest.raises(StoreUnavailableError, match=f"{stopped.pid} has it"):
        LMDBStore(root, lock_timeout=BOUND)
    assert open_files_of(root) == []
    go_on(stopped)
    LMDBStore(root).close()


def test_an_opening_that_waits_stops_no_other_store_and_no_thread(
    impatient: LMDBStore, stopped: Process, root: Path, tmp_path: Path
) -> None:
    impatient.close()
    another = LMDBStore(tmp_path / "another")
    opening = Caller(lambda: LMDBStore(root))
    until_somebody_waits_for(root / "kvreplay.lock")
    with LMDBStore(tmp_path / "new") as new:
        new.write("p", "s", "k", b"v")
    another.close()
    with pytest.raises(StoreUnavailableError, match="another thread opens it"):
        LMDBStore(root, lock_timeout=0.01)
    assert opening.is_alive()
    go_on(stopped)
    with opening.result() as store:
        assert store.list("p", "s") == ["theirs"]


def test_a_fork_does_not_wait_for_an_opening_that_waits(
    impatient: LMDBStore, stopped: Process, root: Path, tmp_path: Path, fork: Any
) -> None:
    impatient.close()
    opening = Caller(lambda: LMDBStore(root))
    until_somebody_waits_for(root / "kvreplay.lock")
    began = time.monotonic()
    fork(lambda: LMDBStore(tmp_path / "childs").close()).join()
    assert time.monotonic() - began < 5
    go_on(stopped)
    opening.result().close()


def test_who_may_only_open_the_folder_stops_nobody(impatient: LMDBStore, root: Path) -> None:
    """As any user could once: a folder that others may read can be locked by them."""
    folder = os.open(root, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    impatient.write("p", "s", "k", b"v")
    with impatient.transaction() as txn:
        txn.write("p", "s", "k", b"w")
    in_process("LMDBStore(path, lock_timeout=5).close()", root)
    os.close(folder)


@pytest.mark.parametrize("wrong", [0, -1, 0.0, float("nan"), float("inf"), True, "10 x", None])
def test_a_wrong_bound(root: Path, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="lock_timeout"):
        LMDBStore(root, lock_timeout=wrong)
    assert not root.exists()


def test_the_bound_in_a_url(root: Path) -> None:
    with open_store(f"lmdb:{root}?lock_timeout=200ms") as store:
        transaction = HeldTransaction(store, b"v")
        with pytest.raises(StoreError, match=r"within 0\.2 s"):
            store.write("p", "s", "k", b"v")
        transaction.end()
