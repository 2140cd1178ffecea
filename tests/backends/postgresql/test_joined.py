"""The caller's own transaction on PostgreSQL, joined: its rows and the answer commit together, by each library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("sqlalchemy")

from kvreplay import (  # noqa: E402
    ClaimLostError,
    ConfigError,
    InDoubtError,
    InFlightError,
    InvalidResponseError,
    NotStored,
)
from kvreplay._runtime.singleflight import flights  # noqa: E402
from support.final_failures import Declined  # noqa: E402
from support.own_transactions import (  # noqa: E402
    ASYNC_KINDS,
    KINDS,
    Own,
    Replays,
    driver_error,
)
from support.replaying import Caller, Interrupt  # noqa: E402
from support.waiting import PATIENCE, until  # noqa: E402

KEY = ("payer", "payment-1")
PARAMS = 1000


@attrs.frozen
class Receipt:
    msat: int


@pytest.fixture
def store(ledger_store: Any) -> Any:
    return ledger_store


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def replays(store: Any, events: list[str]) -> Replays:
    told = lambda event: events.append(event.kind)  # noqa: E731
    return Replays(store, store_errors=(Declined,), on_event=told, wait_timeout=30)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(postgres: Any, store: Any, kind: str) -> Iterator[Callable[..., Own]]:
    """``connect()``: one more connection of the test's kind."""
    opened: list[Own] = []

    def connect(url: str = postgres.server.url, **options: Any) -> Own:
        opened.append(Own(kind, url, **options))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.fixture
def own(connect: Any) -> Own:
    connection: Own = connect()
    return connection


@pytest.fixture
def rows(postgres: Any) -> Callable[[], int]:
    """``rows()``: how many rows of the ledger are committed."""

    def rows() -> int:
        [(count,)] = postgres.server.execute(f"SELECT count(*) FROM {postgres.name}.ledger")
        return int(count)

    return rows


@pytest.fixture
def paying(postgres: Any) -> Callable[..., Any]:
    """``paying(end)``: a handler that inserts a row, and ends so."""

    def paying(end: Any = "r") -> Any:
        async def pay(own: Own) -> Any:
            await own.ask(f"INSERT INTO {postgres.name}.ledger VALUES ('payment-1', 1000)")
            if isinstance(end, BaseException):
                raise end
            return end

        return pay

    return paying


async def never(own: Own) -> Any:
    raise AssertionError("the handler ran")


# Together or not at all.


def test_the_row_and_the_answer_commit_together(
    replays: Replays, own: Own, rows: Any, paying: Any, events: list[str]
) -> None:
    outcome = own.joined(replays, paying())
    assert (outcome.response, outcome.replayed) == ("r", False)
    assert (rows(), replays.plain.lookup(KEY, PARAMS), flights.table) == (0, None, {})
    own.commit()
    assert (rows(), replays.plain.lookup(KEY, PARAMS).response) == (1, "r")
    assert events == ["started", "joined", "replayed"]


def test_a_rollback_undoes_both(replays: Replays, own: Own, rows: Any, paying: Any) -> None:
    own.joined(replays, paying())
    own.rollback()
    assert (rows(), replays.plain.record(KEY)) == (0, None)
    assert replays.plain.execute(KEY, PARAMS, lambda: "anew").response == "anew"


def test_the_same_key_twice_in_one_transaction_runs_once(
    replays: Replays, own: Own, rows: Any, paying: Any
) -> None:
    first = own.joined(replays, paying())
    second = own.joined(replays, never)
    assert (second.replayed, second.created_at) == (True, first.created_at)
    own.commit()
    assert rows() == 1


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (ValueError("no"), ValueError),
        (TimeoutError(), TimeoutError),
        (Interrupt(), Interrupt),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (asyncio.CancelledError(), asyncio.CancelledError),
        (object(), InvalidResponseError),
        ("r" * 2_000_000, InvalidResponseError),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_error_that_is_swallowed_commits_neither(
    replays: Replays, own: Own, rows: Any, paying: Any, end: Any, error: Any, postgres: Any
) -> None:
    with pytest.raises(error) as raised:
        own.joined(replays, paying(end))
    if isinstance(end, Exception):
        assert raised.value.__cause__ is None
    own.execute(f"INSERT INTO {postgres.name}.ledger VALUES ('of the caller', 0)")
    own.commit()
    assert (rows(), replays.plain.record(KEY)) == (1, None)
    assert not own.joined(replays, paying()).replayed


def test_a_statement_of_the_handler_that_fails(
    replays: Replays, own: Own, rows: Any, paying: Any, postgres: Any
) -> None:
    """Whether the handler lets the driver's error out, or swallows it."""

    async def fails(own: Own) -> Any:
        await paying()(own)
        await own.ask("SELECT 1 / 0")

    async def swallows(own: Own) -> Any:
        with pytest.raises(Exception, match="division by zero"):
            await fails(own)
        return "r"

    with pytest.raises(Exception, match="division by zero") as raised:
        own.joined(replays, fails)
    assert isinstance(driver_error(raised.value), psycopg.errors.DivisionByZero)
    with pytest.raises(Exception, match="aborted"):
        own.joined(replays, swallows)
    assert not own.joined(replays, paying()).replayed
    own.commit()
    assert rows() == 1


def test_a_final_failure_and_an_answer_that_is_not_kept(
    replays: Replays, own: Own, rows: Any, paying: Any
) -> None:
    for _ in range(2):
        with pytest.raises(Declined):
            own.joined(replays, paying(Declined("funds")))
    own.commit()
    assert rows() == 0
    with pytest.raises(Declined):
        replays.plain.lookup(KEY, PARAMS)
    assert replays.plain.forget(KEY)
    assert own.joined(replays, paying(NotStored("r"))).expires_at is None
    own.commit()
    assert (rows(), replays.plain.record(KEY)) == (1, None)


def test_a_typed_answer(replays: Replays, own: Own, paying: Any) -> None:
    for handler in (paying(Receipt(5)), never):
        assert own.joined(replays, handler, returns=Receipt).response == Receipt(5)
    own.commit()
    assert replays.plain.lookup(KEY, PARAMS, returns=Receipt).response == Receipt(5)


def test_savepoints_of_the_caller_and_of_the_handler(
    replays: Replays, own: Own, rows: Any, paying: Any
) -> None:
    async def tries(own: Own) -> Any:
        with pytest.raises(LookupError):
            async with own.savepoint():
                await paying()(own)
                raise LookupError
        async with own.savepoint():
            return await paying()(own)

    async def inside(own: Own) -> None:
        async with own.savepoint():
            options = {"connection": own.given}
            if own.kind in ASYNC_KINDS:
                own_face = lambda given: tries(own)  # noqa: E731
                await replays.awaited.execute_in_transaction(KEY, PARAMS, own_face, **options)
            else:
                own.joined(replays, tries)
            if undone:
                raise LookupError

    for undone in (True, False):
        if undone:
            with pytest.raises(LookupError):
                own.run(inside(own))
        else:
            own.run(inside(own))
    own.commit()
    assert (rows(), replays.plain.lookup(KEY, PARAMS).response) == (1, "r")


def test_a_request_inside_the_handler_of_another(
    replays: Replays, own: Own, rows: Any, paying: Any
) -> None:
    async def outer(own: Own) -> Any:
        await paying()(own)
        inner = {"key": ("payer", "inner"), "params": 1}
        if own.kind in ASYNC_KINDS:
            pay = lambda given: paying(end)(own)  # noqa: E731
            asked = replays.awaited.execute_in_transaction
            await asked(*inner.values(), pay, connection=own.given)
        else:
            own.joined(replays, paying(end), **inner)  # type: ignore[arg-type]
        return "outer"

    end: Any = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        own.joined(replays, outer)
    end = "inner"
    assert own.joined(replays, outer).response == "outer"
    own.commit()
    assert rows() == 2
    assert replays.plain.lookup(("payer", "inner"), 1).response == "inner"


# The handler ends the transaction itself.


@pytest.mark.parametrize("end", ["r", ValueError("no"), Declined("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK", "by the library"])
@pytest.mark.parametrize("begin_anew", [False, True])
def test_a_handler_that_ends_the_transaction(
    replays: Replays, own: Own, rows: Any, paying: Any, end: Any, how: str, begin_anew: bool
) -> None:
    async def ends(own: Own) -> Any:
        await paying()(own)
        await (own.commits() if how == "by the library" else own.ask(how))
        if begin_anew:
            await own.ask("SELECT 1")
        if isinstance(end, BaseException):
            raise end
        return end

    error = KeyboardInterrupt if isinstance(end, KeyboardInterrupt) else ClaimLostError
    with pytest.raises(error) as raised:
        own.joined(replays, ends)
    said = [str(raised.value), *getattr(raised.value, "__notes__", [])]
    assert any("stands, and no answer" in each for each in said)
    own.rollback()
    if how == "ROLLBACK":
        assert (rows(), replays.plain.record(KEY)) == (0, None)
    else:
        assert rows() == 1
        with pytest.raises(InDoubtError):
            replays.plain.execute(KEY, PARAMS, lambda: "again", wait_timeout=0)
        assert replays.plain.resolve(KEY, response="r")


def test_a_handler_that_goes_back_to_a_savepoint_from_before(
    replays: Replays, own: Own, paying: Any
) -> None:
    async def goes_back(own: Own) -> Any:
        await own.ask("ROLLBACK TO before")
        return "r"

    own.execute("SAVEPOINT before")
    with pytest.raises(ClaimLostError):
        own.joined(replays, goes_back)
    own.rollback()
    assert replays.plain.record(KEY) is None


def test_a_handler_that_closes_the_connection(
    replays: Replays, own: Own, rows: Any, paying: Any
) -> None:
    async def closes(own: Own) -> Any:
        await paying()(own)
        await own._close()
        return "r"

    with pytest.raises(Exception, match=r"lost|ended or undone|closed"):
        own.joined(replays, closes)
    assert (rows(), replays.plain.record(KEY)) == (0, None)


# What is refused before the handler.


def test_a_transaction_that_commits_each_statement(
    replays: Replays, connect: Any, kind: str, rows: Any, paying: Any
) -> None:
    psycopgs = kind.startswith("psycopg")
    own = connect(**({"autocommit": True} if psycopgs else {"isolation_level": "AUTOCOMMIT"}))
    with pytest.raises(ConfigError, match="commits each statement by itself"):
        own.joined(replays, never)
    own.rollback()
    if psycopgs:
        own.execute("BEGIN")
        assert not own.joined(replays, paying()).replayed
        own.execute("COMMIT")
        assert (rows(), replays.plain.lookup(KEY, PARAMS).response) == (1, "r")


def test_a_transaction_that_has_failed(replays: Replays, own: Own, paying: Any) -> None:
    with pytest.raises(Exception, match="division by zero"):
        own.execute("SELECT 1 / 0")
    with pytest.raises(ConfigError, match="has failed"):
        own.joined(replays, never)
    own.rollback()
    assert not own.joined(replays, paying()).replayed


def test_a_transaction_that_only_reads(replays: Replays, own: Own, paying: Any) -> None:
    own.execute("SET TRANSACTION READ ONLY")
    with pytest.raises(ConfigError, match="read-only"):
        own.joined(replays, never)
    own.rollback()
    assert not own.joined(replays, paying()).replayed


def test_a_closed_connection(replays: Replays, own: Own, kind: str) -> None:
    own.run(own._close())
    if "session" in kind:
        assert own.joined(replays, one).response == 1, "a closed session begins anew"
    else:
        with pytest.raises(ConfigError, match="closed"):
            own.joined(replays, never)


async def one(own: Own) -> int:
    return 1


# Waiting for others.


def waits(postgres: Any, times: int = 1) -> bool:
    """Whether so many connections wait for another one's transaction."""
    asked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
    return bool(postgres.server.execute(asked) >= [(times,)])


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_duplicate_waits_for_the_others_end(
    replays: Replays, connect: Any, own: Own, rows: Any, paying: Any, end: str, postgres: Any
) -> None:
    own.joined(replays, paying())

    def call(mine: Own) -> Any:
        outcome = mine.joined(replays, paying(), wait_timeout=None)
        mine.commit()
        return outcome.replayed

    callers = [Caller(call, connect()) for _ in range(3)]
    until(lambda: waits(postgres, 3))
    getattr(own, end)()
    expected = [True] * 3 if end == "commit" else [False, True, True]
    assert sorted(caller.result() for caller in callers) == expected
    assert rows() == 1


@pytest.mark.parametrize("wait_timeout", [0, "50ms"])
def test_its_time_to_wait_ends(
    replays: Replays,
    connect: Any,
    own: Own,
    paying: Any,
    wait_timeout: Any,
    events: list[str],
) -> None:
    own.joined(replays, paying())
    events.clear()
    mine = connect()
    mine.execute("SET lock_timeout = '7s'")
    with pytest.raises(InFlightError, match="has not ended"):
        mine.joined(replays, never, wait_timeout=wait_timeout)
    assert events == ["in_flight"]
    assert mine.execute("SHOW lock_timeout") == [("7s",)]
    own.commit()
    assert mine.joined(replays, never).replayed


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_snapshot_that_is_too_old_is_the_callers_to_renew(
    replays: Replays, connect: Any, own: Own, rows: Any, paying: Any, level: str, kind: str
) -> None:
    own.joined(replays, paying())
    mine = connect()

    def begin() -> None:
        mine.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        mine.execute("SELECT 1")  # the snapshot

    begin()
    own.commit()
    with pytest.raises(Exception, match="could not serialize access") as raised:
        mine.joined(replays, never)
    assert isinstance(driver_error(raised.value), psycopg.errors.SerializationFailure)
    assert type(raised.value).__module__.split(".")[0] == (
        "psycopg" if kind.startswith("psycopg") else "sqlalchemy"
    )
    assert raised.value.__cause__ is not raised.value
    mine.rollback()
    begin()
    assert mine.joined(replays, never).replayed
    mine.rollback()
    begin()
    assert not mine.joined(replays, paying(), key=("payer", "2")).replayed
    mine.commit()
    assert rows() == 2


def test_two_who_wait_for_each_other(
    replays: Replays, connect: Any, own: Own, rows: Any, paying: Any, postgres: Any
) -> None:
    """``own`` holds a row of the ledger and asks for the key, ``other`` holds the key and asks for the row."""
    postgres.server.execute(f"INSERT INTO {postgres.name}.ledger VALUES ('before', 0)")
    lock = f"SELECT 1 FROM {postgres.name}.ledger WHERE payment = 'before' FOR UPDATE"
    other = connect()
    other.execute("SET deadlock_timeout = '20s'")
    own.execute("SET deadlock_timeout = '500ms'")
    own.execute(lock)
    other.joined(replays, paying())

    def ask(mine: Own, call: Any) -> str:
        try:
            call()
        except Exception as error:
            assert isinstance(driver_error(error), psycopg.errors.DeadlockDetected)
            mine.rollback()
            return "undone"
        mine.commit()
        return "done"

    asking = Caller(ask, own, lambda: own.joined(replays, paying()))
    until(lambda: waits(postgres))
    locking = Caller(ask, other, lambda: other.execute(lock))
    assert sorted([asking.result(), locking.result()]) == ["done", "undone"]
    own.joined(replays, paying())
    own.commit()
    assert (rows(), replays.plain.lookup(KEY, PARAMS).response) == (2, "r")


# The connection is as it was.


def test_the_callers_own_settings_stay(
    replays: Replays, connect: Any, paying: Any, own: Own
) -> None:
    async def looks(own: Own) -> Any:
        assert await shown(own) == expected
        return "r"

    async def shown(own: Own) -> Any:
        names = ("lock_timeout", "synchronous_commit", "search_path")
        return [(await own.ask(f"SHOW {name}"))[0][0] for name in names]

    own.execute("SET search_path = pg_temp")
    own.execute("SET LOCAL lock_timeout = '3s'")
    own.execute("SET synchronous_commit = off")
    expected = ["3s", "off", "pg_temp"]
    assert not own.joined(replays, looks).replayed
    assert own.run(shown(own)) == expected
    assert own.joined(replays, never).replayed
    assert own.run(shown(own)) == expected
    own.commit()
    assert own.run(shown(own)) == ["0", "off", "pg_temp"]


def test_a_plain_request_for_the_key_waits_and_shares_nothing(
    replays: Replays, own: Own, paying: Any, postgres: Any
) -> None:
    own.joined(replays, paying())
    assert replays.plain.lookup(KEY, PARAMS) is None
    plain = Caller(replays.plain.execute, KEY, PARAMS, lambda: "plain")
    until(lambda: waits(postgres))
    own.commit()
    outcome = plain.result()
    assert (outcome.response, outcome.replayed) == ("r", True)


def test_many_at_once(replays: Replays, connect: Any, rows: Any, paying: Any) -> None:
    """Each key once, though each is asked for four times at a time."""

    def ask(mine: Own) -> int:
        ran = 0
        for number in range(10):
            outcome = mine.joined(replays, paying(), key=("payer", str(number)), wait_timeout=None)
            mine.commit()
            ran += not outcome.replayed
        return ran

    callers = [Caller(ask, connect()) for _ in range(4)]
    assert sum(caller.result() for caller in callers) == 10
    assert rows() == 10
    assert PATIENCE
