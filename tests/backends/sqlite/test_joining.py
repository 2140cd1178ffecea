"""The caller's own transaction on an sqlite3 connection, joined: its rows and the answer commit together."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import (
    ClaimLostError,
    ConfigError,
    InDoubtError,
    InFlightError,
    InvalidResponseError,
    NotStored,
    Replay,
    StoreError,
    StoreUnavailableError,
    open_store,
)
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import KeyNotFoundError
from support.final_failures import Declined
from support.replaying import Caller, Interrupt
from support.sqlite_stores import Process
from support.waiting import PATIENCE, until

KEY = ("payer", "payment-1")
PARAMS = {"msat": 1000}
LEDGER = "CREATE TABLE IF NOT EXISTS ledger (payment TEXT, msat INTEGER)"


@pytest.fixture
def store(root: Path) -> Iterator[Any]:
    with SQLiteStore(root, lock_timeout=0.3) as store:
        yield store


@pytest.fixture
def replay(store: Any) -> Any:
    return Replay(store, "pay", ttl=60, store_errors=(Declined,))


@pytest.fixture
def connect(store: Any, root: Path) -> Iterator[Callable[..., sqlite3.Connection]]:
    """``connect()``: a connection of the caller's own, with a ledger."""
    opened: list[sqlite3.Connection] = []

    def connect(**options: Any) -> sqlite3.Connection:
        options = {"isolation_level": None, "timeout": 0.0, **options}
        connection = sqlite3.connect(root, check_same_thread=False, **options)
        opened.append(connection)
        return connection

    connect().execute(LEDGER)
    yield connect
    for each in opened:
        each.close()


@pytest.fixture
def connection(connect: Callable[..., sqlite3.Connection]) -> sqlite3.Connection:
    connection = connect()
    connection.execute("BEGIN IMMEDIATE")
    return connection


def paying(end: Any = "r") -> Callable[[sqlite3.Connection], Any]:
    def pay(connection: sqlite3.Connection) -> Any:
        connection.execute("INSERT INTO ledger VALUES ('payment-1', 1000)")
        if isinstance(end, BaseException):
            raise end
        return end

    return pay


def joined(replay: Any, connection: Any, handler: Any = None, **options: Any) -> Any:
    return replay.execute_in_transaction(
        KEY, PARAMS, handler or paying(), connection=connection, **options
    )


def never(connection: object) -> Any:
    raise AssertionError("the handler ran")


def rows(connect: Callable[..., sqlite3.Connection]) -> int:
    count: int = connect().execute("SELECT count(*) FROM ledger").fetchone()[0]
    return count


# Together or not at all.


def test_the_row_and_the_answer_commit_together(
    replay: Any, connect: Any, connection: sqlite3.Connection
) -> None:
    assert not joined(replay, connection).replayed
    assert (rows(connect), replay.lookup(KEY, PARAMS)) == (0, None)
    connection.execute("COMMIT")
    assert (rows(connect), replay.lookup(KEY, PARAMS).response) == (1, "r")


def test_a_rollback_undoes_both(replay: Any, connect: Any, connection: sqlite3.Connection) -> None:
    joined(replay, connection)
    connection.execute("ROLLBACK")
    assert (rows(connect), replay.record(KEY)) == (0, None)
    assert replay.execute(KEY, PARAMS, lambda: "anew").response == "anew"


def test_the_same_key_twice_in_one_transaction_runs_once(
    replay: Any, connect: Any, connection: sqlite3.Connection
) -> None:
    assert not joined(replay, connection).replayed
    assert joined(replay, connection, never).replayed
    connection.execute("COMMIT")
    assert rows(connect) == 1


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (ValueError("no"), ValueError),
        (TimeoutError(), TimeoutError),
        (Interrupt(), Interrupt),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (object(), InvalidResponseError),
        ("r" * 2_000_000, InvalidResponseError),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_error_that_is_swallowed_commits_neither(
    replay: Any, connect: Any, connection: sqlite3.Connection, end: Any, error: Any
) -> None:
    with pytest.raises(error):
        joined(replay, connection, paying(end))
    connection.execute("INSERT INTO ledger VALUES ('of the caller', 0)")
    connection.execute("COMMIT")
    assert (rows(connect), replay.record(KEY)) == (1, None)
    connection.execute("BEGIN IMMEDIATE")
    assert not joined(replay, connection).replayed


def test_a_final_failure_and_an_answer_that_is_not_kept(
    replay: Any, connect: Any, connection: sqlite3.Connection
) -> None:
    for _ in range(2):
        with pytest.raises(Declined):
            joined(replay, connection, paying(Declined("funds")))
    connection.execute("COMMIT")
    assert rows(connect) == 0
    with pytest.raises(Declined):
        replay.lookup(KEY, PARAMS)
    assert replay.forget(KEY)
    connection.execute("BEGIN IMMEDIATE")
    assert joined(replay, connection, paying(NotStored("r"))).expires_at is None
    connection.execute("COMMIT")
    assert (rows(connect), replay.record(KEY)) == (1, None)


def test_an_answer_can_take_the_place_of_an_old_one_and_expires(
    store: Any, connect: Any, connection: sqlite3.Connection
) -> None:
    replay = Replay(store, "pay", ttl=0, on_expired="rerun")
    for _ in range(3):
        assert not joined(replay, connection).replayed
    connection.execute("COMMIT")
    assert rows(connect) == 3
    assert replay.sweep().removed == 1
    assert list(replay.records()) == []


def test_no_creation_number_is_given_twice(
    store: Any, replay: Any, connection: sqlite3.Connection
) -> None:
    """Even by a request that is made inside the handler of another."""
    connection.execute("ROLLBACK")
    store.write("p", "s", "before", b"v")
    connection.execute("BEGIN IMMEDIATE")

    def pay(connection: sqlite3.Connection) -> Any:
        return replay.execute_in_transaction(("s", "inner"), 1, paying(), connection=connection)

    def outer(connection: sqlite3.Connection) -> Any:
        pay(connection)
        return "r"

    joined(replay, connection, outer)
    connection.execute("COMMIT")
    store.write("p", "s", "after", b"v")
    select = "SELECT sort_order FROM ldk_node_data ORDER BY 1"
    assert connection.execute(select).fetchall() == [(1,), (2,), (3,), (4,)]


# The handler ends the transaction itself.


@pytest.mark.parametrize("end", ["r", ValueError("no"), Declined("no")])
@pytest.mark.parametrize("begin_anew", [False, True])
def test_a_handler_that_commits(
    replay: Any, connect: Any, connection: sqlite3.Connection, end: Any, begin_anew: bool
) -> None:
    def commits(connection: sqlite3.Connection) -> Any:
        connection.execute("INSERT INTO ledger VALUES ('payment-1', 1000)")
        connection.execute("COMMIT")
        if begin_anew:
            connection.execute("BEGIN IMMEDIATE")
        if isinstance(end, Exception):
            raise end
        return end

    with pytest.raises(ClaimLostError, match="what was committed there stands"):
        joined(replay, connection, commits)
    assert connection.in_transaction is begin_anew
    assert rows(connect) == 1
    if begin_anew:
        connection.execute("ROLLBACK")
    with pytest.raises(InDoubtError):
        replay.execute(KEY, PARAMS, lambda: "never")
    assert replay.resolve(KEY, response="r")


@pytest.mark.parametrize("end", ["r", ValueError("no"), KeyboardInterrupt()])
def test_a_handler_that_rolls_back_or_closes(
    replay: Any, connect: Any, connection: sqlite3.Connection, end: Any
) -> None:
    def rolls_back(connection: sqlite3.Connection) -> Any:
        connection.execute("ROLLBACK")
        return paying(end)(connection)  # by itself, which commits at once

    def closes(connection: sqlite3.Connection) -> Any:
        connection.close()
        if isinstance(end, BaseException):
            raise end
        return end

    error = KeyboardInterrupt if isinstance(end, KeyboardInterrupt) else ClaimLostError
    with pytest.raises(error) as raised:
        joined(replay, connection, rolls_back)
    said = [str(raised.value), *getattr(raised.value, "__notes__", [])]
    assert any("what was committed there stands" in each for each in said)
    assert (rows(connect), replay.record(KEY)) == (1, None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(error):
        joined(replay, connection, closes)
    assert (rows(connect), replay.record(KEY)) == (1, None)


def test_a_handler_that_goes_back_to_a_savepoint_from_before(
    replay: Any, connect: Any, connection: sqlite3.Connection
) -> None:
    def goes_back(connection: sqlite3.Connection) -> Any:
        connection.execute("ROLLBACK TO before")
        return "r"

    connection.execute("SAVEPOINT before")
    with pytest.raises(ClaimLostError):
        joined(replay, connection, goes_back)
    connection.execute("COMMIT")
    assert replay.record(KEY) is None


def test_a_handler_with_a_savepoint_of_its_own(
    replay: Any, connect: Any, connection: sqlite3.Connection
) -> None:
    def tries(connection: sqlite3.Connection) -> Any:
        connection.execute("SAVEPOINT own")
        paying()(connection)
        connection.execute("ROLLBACK TO own")
        return paying()(connection)

    assert joined(replay, connection, tries).response == "r"
    connection.execute("COMMIT")
    assert rows(connect) == 1


# What is refused before the handler.


def refused(replay: Any, connection: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        joined(replay, connection, never)


def test_what_is_no_connection_or_a_closed_one(replay: Any, connect: Any) -> None:
    refused(replay, object(), "is a object, and this store joins transactions of an sqlite3")
    closed = connect()
    closed.close()
    refused(replay, closed, "closed")


def test_a_connection_without_a_transaction(replay: Any, connect: Any) -> None:
    for options in ({}, {"isolation_level": ""}, {"isolation_level": "IMMEDIATE"}):
        refused(replay, connect(**options), "no transaction open")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs sqlite3's autocommit")
def test_the_autocommit_attribute(replay: Any, connect: Any) -> None:
    by_hand = connect(autocommit=True)
    refused(replay, by_hand, "no transaction open")
    by_hand.execute("BEGIN IMMEDIATE")
    assert not joined(replay, by_hand).replayed
    by_hand.execute("COMMIT")
    always = connect(autocommit=False)  # a transaction is always open
    assert joined(replay, always, never).replayed
    always.commit()
    assert replay.forget(KEY)
    assert not joined(replay, always).replayed
    always.commit()
    assert (rows(connect), replay.lookup(KEY, PARAMS).response) == (2, "r")


def test_the_transactions_that_the_module_begins(replay: Any, connect: Any) -> None:
    connection = connect(isolation_level="DEFERRED")
    connection.execute("INSERT INTO ledger VALUES ('of the caller', 0)")
    assert not joined(replay, connection).replayed
    connection.commit()
    assert (rows(connect), replay.lookup(KEY, PARAMS).response) == (2, "r")


def test_another_database(
    replay: Any, store: Any, connect: Any, root: Path, tmp_path: Path
) -> None:
    in_memory = sqlite3.connect(":memory:", isolation_level=None)
    with SQLiteStore(tmp_path / "other"):
        other = sqlite3.connect(tmp_path / "other", isolation_level=None)
        copy = sqlite3.connect(shutil.copy(root, tmp_path / "copy"), isolation_level=None)
        attached = sqlite3.connect(":memory:", isolation_level=None)
        attached.execute("ATTACH ? AS payments", (str(root),))
        for each in (in_memory, other, copy, attached):
            each.execute("BEGIN")
            refused(replay, each, "another database")
            each.close()
    link = tmp_path / "link"
    link.symlink_to(root)
    by_link = sqlite3.connect(link, isolation_level=None)
    by_link.execute("BEGIN IMMEDIATE")
    assert not joined(replay, by_link).replayed
    by_link.close()


def test_a_database_that_was_replaced_under_the_connection(root: Path, tmp_path: Path) -> None:
    """Its path leads to the store's file; the connection still has the one before."""
    SQLiteStore(root).close()
    before = sqlite3.connect(root, isolation_level=None)
    before.execute("PRAGMA journal_mode")
    root.rename(tmp_path / "moved")
    with contextlib.suppress(FileNotFoundError):
        Path(f"{root}-kvreplay-lock").unlink()
    with SQLiteStore(root) as store:
        before.execute("BEGIN")
        refused(Replay(store, "pay", ttl=60), before, "another database")
    before.close()


def test_a_connection_that_only_reads(replay: Any, store: Any, connect: Any, root: Path) -> None:
    store.write("p", "s", "k", b"v")
    read_only = sqlite3.connect(f"file:{root}?mode=ro", uri=True, isolation_level=None)
    query_only = connect()
    query_only.execute("PRAGMA query_only = ON")
    for each in (read_only, query_only):
        each.execute("BEGIN")
        refused(replay, each, "can only read")
        each.execute("ROLLBACK")
    read_only.close()
    query_only.execute("PRAGMA query_only = OFF")
    query_only.execute("BEGIN")
    assert not joined(replay, query_only).replayed


def test_a_connection_of_another_thread(replay: Any, root: Path, connect: Any) -> None:
    with contextlib.closing(sqlite3.connect(root, isolation_level=None)) as mine:
        mine.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="cannot be used here"):
            Caller(joined, replay, mine, never).result()
        assert not joined(replay, mine).replayed


def test_a_transaction_of_the_store_itself(replay: Any, store: Any, connect: Any) -> None:
    connection = connect()
    connection.execute("BEGIN")
    with store.transaction(), pytest.raises(StoreError, match="holds a transaction of this store"):
        joined(replay, connection, never)
    assert not joined(replay, connection).replayed


def test_files_that_are_gone(replay: Any, store: Any, connection: Any, root: Path) -> None:
    moved = root.rename(f"{root}.moved")
    with pytest.raises(StoreUnavailableError, match="no longer the file that was opened"):
        joined(replay, connection, never)
    moved.rename(root)
    assert not joined(replay, connection).replayed


# Waiting for the write lock.


@pytest.mark.parametrize("wait_timeout", [0, 0.2])
def test_the_time_to_wait_for_the_write_lock_ends(
    replay: Any, connect: Any, connection: sqlite3.Connection, wait_timeout: float
) -> None:
    joined(replay, connection)
    second = connect(timeout=7.0)
    second.execute("BEGIN")
    began = time.monotonic()
    with pytest.raises(InFlightError, match="holds the write lock"):
        joined(replay, second, never, wait_timeout=wait_timeout)
    assert wait_timeout <= time.monotonic() - began < wait_timeout + 5
    assert second.execute("PRAGMA busy_timeout").fetchone() == (7000,)
    connection.execute("COMMIT")
    assert joined(replay, second, never).replayed


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_a_duplicate_waits_for_the_others_end(
    replay: Any, connect: Any, connection: sqlite3.Connection, end: str
) -> None:
    joined(replay, connection)

    def call() -> Any:
        mine = connect()
        mine.execute("BEGIN")
        try:
            return joined(replay, mine, wait_timeout=None).replayed
        finally:
            mine.execute("COMMIT")

    callers = [Caller(call) for _ in range(3)]
    connection.execute(end)
    expected = [True] * 3 if end == "COMMIT" else [False, True, True]
    assert sorted(caller.result() for caller in callers) == expected
    assert rows(connect) == 1


def test_a_transaction_that_has_read_an_older_state_can_write_no_more(
    replay: Any, store: Any, connect: Any
) -> None:
    connection = connect()
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM ledger").fetchall()
    store.write("p", "s", "k", b"v")
    with pytest.raises(StoreUnavailableError, match="begin it by BEGIN IMMEDIATE"):
        joined(replay, connection, never, wait_timeout=None)
    connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    assert not joined(replay, connection).replayed


def test_the_stores_own_writes_wait_only_so_long(
    replay: Any, store: Any, connection: sqlite3.Connection
) -> None:
    """By the same thread too: a handler that asks plainly for a key is refused in the end."""
    joined(replay, connection)
    with pytest.raises(StoreUnavailableError):
        store.write("p", "s", "late", b"v")
    for key in (KEY, ("payer", "another")):
        with pytest.raises(StoreUnavailableError):
            replay.execute(key, PARAMS, lambda: "r")
    connection.execute("COMMIT")
    assert store.list("p", "s") == []
    assert replay.execute(KEY, PARAMS, lambda: "never").replayed


def test_a_claim_of_another_run_is_not_waited_for(
    replay: Any, connection: sqlite3.Connection, connect: Any
) -> None:
    """While this transaction holds the write lock, nobody could answer."""
    connection.execute("ROLLBACK")
    began, go = threading.Event(), threading.Event()

    def held() -> str:
        began.set()
        assert go.wait(PATIENCE)
        return "plain"

    caller = Caller(replay.execute, KEY, PARAMS, held)
    assert began.wait(PATIENCE)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(InFlightError):
        joined(replay, connection, never, wait_timeout=None)
    connection.execute("ROLLBACK")
    go.set()
    assert caller.result().response == "plain"


# The connection is left as it was.


def test_its_factories_do_not_matter_and_stay(
    replay: Any, store: Any, connection: sqlite3.Connection
) -> None:
    connection.row_factory = dict_of = lambda cursor, row: dict(enumerate(row))
    connection.text_factory = bytes
    joined(replay, connection)
    with store.join(connection, lock_timeout=0) as txn:
        txn.write("p", "s", "k", b"v")
        assert txn.list("p", "s") == ["k"]
    assert (connection.row_factory, connection.text_factory) == (dict_of, bytes)
    connection.execute("COMMIT")
    assert replay.lookup(KEY, PARAMS).response == "r"
    assert store.read("p", "s", "k") == b"v"


def test_no_statement_stays_open(replay: Any, connect: Any, connection: sqlite3.Connection) -> None:
    """It would keep the log from being shortened."""
    joined(replay, connection)
    connection.execute("COMMIT")
    busy, *_ = connect().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0


# The calls of the block.


def test_the_block_has_all_calls_of_a_transaction(
    store: Any, connection: sqlite3.Connection
) -> None:
    with store.join(connection, lock_timeout=0) as txn:
        txn.write("p", "s", "kept", b"v")
        txn.write("p", "s", "gone", b"v")
        txn.remove("p", "s", "gone")
        assert txn.check_and_put("p", "s", "kept", expected=b"v", value=b"w", expires_at=5) == b"v"
        assert (txn.read("p", "s", "kept"), txn.list("p", "s")) == (b"w", ["kept"])
        assert txn.sees_commits is False
    with store.join(connection, lock_timeout=0) as txn:
        txn.write("p", "s", "undone", b"v")
        txn.undo()
        with pytest.raises(KeyNotFoundError):
            txn.read("p", "s", "undone")
        txn.write("p", "s", "after", b"v")
    with pytest.raises(StoreError, match="has ended"):
        txn.read("p", "s", "kept")
    connection.execute("COMMIT")
    assert sorted(store.list("p", "s")) == ["after", "kept"]
    assert store.sweep("p", 5, 5).removed == 1


def test_a_lazy_removal_that_was_promised_comes_first(
    store: Any, connection: sqlite3.Connection
) -> None:
    connection.execute("ROLLBACK")
    store.write("p", "s", "k", b"v")
    store.write("p", "s", "other", b"v")
    store.remove("p", "s", "k", lazy=True)
    connection.execute("BEGIN IMMEDIATE")
    with store.join(connection, lock_timeout=0) as txn:
        assert txn.list("p", "s") == ["other"]
        txn.write("p", "s", "undone", b"v")
        txn.undo()
        assert txn.check_and_put("p", "s", "k", expected=None, value=b"v") is None
    assert store.list("p", "s") == ["other"], "not committed"
    connection.execute("COMMIT")
    store.write("p", "s", "last", b"v")  # which makes what is pending
    assert (store.read("p", "s", "k"), len(store.list("p", "s"))) == (b"v", 3)


def test_a_lazy_removal_meanwhile_is_of_what_was_committed_then(
    store: Any, connection: sqlite3.Connection
) -> None:
    connection.execute("ROLLBACK")
    store.write("p", "s", "k", b"v")
    connection.execute("BEGIN IMMEDIATE")
    with store.join(connection, lock_timeout=0) as txn:
        txn.write("p", "s", "k", b"new")
    store.remove("p", "s", "k", lazy=True)
    connection.execute("COMMIT")
    store.write("p", "s", "last", b"v")
    assert store.read("p", "s", "k") == b"new"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_the_handler_ends_nothing(
    replay: Any, connect: Any, connection: sqlite3.Connection
) -> None:
    def forks(connection: sqlite3.Connection) -> Any:
        paying()(connection)
        child = os.fork()
        if not child:
            return "the child comes out"
        assert os.waitpid(child, 0)[1] == 0
        return "r"

    parent = os.getpid()
    try:
        outcome = joined(replay, connection, forks)
    except BaseException as error:
        if os.getpid() != parent:
            os._exit(0 if isinstance(error, InFlightError) else 1)
        raise
    if os.getpid() != parent:
        os._exit(2)
    assert outcome.response == "r"
    connection.execute("COMMIT")
    assert rows(connect) == 1


# Killed at any moment.

PAYS = """
import sqlite3
from kvreplay import Replay
store = SQLiteStore(path)
replay = Replay(store, "pay", ttl=60)
connection = sqlite3.connect(path, isolation_level=None, timeout=10)
n = int(wait())
say("begun")
while True:
    n += 1
    def pay(connection):
        connection.execute("INSERT INTO ledger VALUES (?, 1)", (str(n),))
        return n
    connection.execute("BEGIN IMMEDIATE")
    replay.execute_in_transaction(("s", str(n)), n, pay, connection=connection)
    connection.execute("ROLLBACK" if n % 5 == 0 else "COMMIT")
    say(str(n))
"""


def test_rows_and_answers_are_equal_after_any_kill(root: Path) -> None:
    with SQLiteStore(root):
        connection = sqlite3.connect(root, isolation_level=None)
        connection.execute(LEDGER)
        connection.close()
    chance, last = random.Random(7), 0
    for _ in range(8):
        with Process(PAYS, root) as process:
            process.tell(str(last))
            assert process.hear() == "begun"
            for _ in range(chance.randrange(30)):
                last = int(process.hear())
            process.kill()
        with open_store(f"sqlite://{root}") as store:
            replay = Replay(store, "pay", ttl=60)
            answered = sorted(int(record.key.id) for record in replay.records())
            assert list(replay.records(in_doubt=True)) == []
            connection = sqlite3.connect(root, isolation_level=None)
            paid = [int(n) for (n,) in connection.execute("SELECT payment FROM ledger")]
            connection.close()
        assert sorted(paid) == answered
        assert set(answered) >= {n for n in range(1, last + 1) if n % 5}
        last = max([last, *answered])
    assert len(answered) > 20


def test_who_waits_on_a_killed_owner_goes_on(replay: Any, root: Path, connect: Any) -> None:
    code = PAYS.replace("say(str(n))", "say(str(n)); wait()").replace(
        '"ROLLBACK" if', '"SELECT 1" if'
    )
    with Process(code, root) as process:
        process.tell("4")  # its transaction for 5 stays open
        assert (process.hear(), process.hear()) == ("begun", "5")
        mine = connect()
        mine.execute("BEGIN")
        with pytest.raises(InFlightError):
            joined(replay, mine, never, wait_timeout=0)
        caller = Caller(joined, replay, mine, wait_timeout=None)
        process.kill()
        assert not caller.result().replayed
    until(lambda: mine.in_transaction)
    mine.execute("COMMIT")
    assert rows(connect) == 1
