"""Joined transactions on PostgreSQL, when something breaks: a lost COMMIT, a fork, a pool full of waiters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("sqlalchemy")

from interrupts.depths import run_steps  # noqa: E402
from kvreplay import InFlightError, State, StoreUnavailableError, open_store  # noqa: E402
from support.cutting_proxy import CuttingProxy, Direction  # noqa: E402
from support.own_transactions import ASYNC_KINDS, KINDS, Own, Replays, driver_error  # noqa: E402
from support.replaying import Caller  # noqa: E402
from support.waiting import until  # noqa: E402

KEY = ("payer", "payment-1")
PARAMS = 1000


@pytest.fixture
def store(postgres: Any) -> Iterator[Any]:
    with open_store(f"{postgres.url}&pool_size=2&lock_timeout=500ms") as store:
        table = "(payment text, msat int)"
        postgres.server.execute(f"CREATE TABLE {postgres.name}.ledger {table}")
        yield store


@pytest.fixture
def replays(store: Any) -> Replays:
    return Replays(store, wait_timeout=30)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def connect(postgres: Any, store: Any) -> Iterator[Callable[..., Own]]:
    opened: list[Own] = []

    def connect(kind: str = "psycopg", url: str = postgres.server.url, **options: Any) -> Own:
        opened.append(Own(kind, url, **options))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.fixture
def pay(postgres: Any) -> Any:
    async def pay(own: Own) -> str:
        await own.ask(f"INSERT INTO {postgres.name}.ledger VALUES ('payment-1', 1000)")
        return "r"

    return pay


def rows(postgres: Any) -> int:
    [(count,)] = postgres.server.execute(f"SELECT count(*) FROM {postgres.name}.ledger")
    return int(count)


# A COMMIT whose answer never comes.


@pytest.mark.parametrize("direction", ["to server", "to client"])
def test_a_commit_that_is_lost(
    replays: Replays, connect: Any, pay: Any, postgres: Any, kind: str, direction: Direction
) -> None:
    """The caller gets the driver's error; the same request again tells what has become of it."""
    with CuttingProxy(postgres.server.tcp_url) as proxy:
        own = connect(kind, proxy.url)
        assert not own.joined(replays, pay).replayed
        proxy.cut(direction, after=0)
        with pytest.raises(Exception, match="connection") as raised:
            own.commit()
        assert isinstance(driver_error(raised.value), psycopg.OperationalError)
        assert proxy.cuts == 1
    again = connect(kind)
    outcome = again.joined(replays, pay)
    again.commit()
    assert outcome.replayed == (direction == "to client")
    assert (rows(postgres), replays.plain.lookup(KEY, PARAMS).response) == (1, "r")


def test_a_retry_waits_for_a_transaction_that_is_cut_off_and_open(
    replays: Replays, connect: Any, pay: Any, postgres: Any
) -> None:
    """Its server does not know yet that its client has gone."""
    with CuttingProxy(postgres.server.tcp_url) as proxy:
        own = connect(url=proxy.url)
        own.joined(replays, pay)
        proxy.stall()
        again = connect()
        with pytest.raises(InFlightError):
            again.joined(replays, pay, wait_timeout="50ms")
        waiting = Caller(again.joined, replays, pay, wait_timeout=None)
        until(lambda: waits(postgres))
        proxy.cut_all()
        assert not waiting.result().replayed
    again.commit()
    assert rows(postgres) == 1


@pytest.mark.parametrize("direction", ["to server", "to client"])
def test_the_connection_is_cut_at_any_byte(
    replays: Replays, connect: Any, pay: Any, postgres: Any, direction: Direction
) -> None:
    """Nothing is ever half there: not before the commit, and afterwards both."""
    with CuttingProxy(postgres.server.tcp_url) as proxy:
        own = connect(url=proxy.url)
        before = proxy.passed()
        own.joined(replays, pay, key=("payer", "whole"))
        own.commit()
        passed = proxy.passed() - before
        size = passed.to_server if direction == "to server" else passed.to_client
        for after in range(0, size, 97):
            own, key = connect(url=proxy.url), ("payer", f"{after:04}")
            was = rows(postgres)
            proxy.cut(direction, after=after)
            try:
                own.joined(replays, pay, key=key)
                own.commit()
            except Exception as error:
                assert not isinstance(error, InFlightError)
            assert proxy.cuts == after // 97 + 1
            again = connect()
            outcome = again.joined(replays, pay, key=key)
            assert rows(postgres) == was + outcome.replayed
            again.commit()
            assert rows(postgres) == was + 1
            own.close()
            again.close()


def waits(postgres: Any, times: int = 1) -> bool:
    asked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
    return bool(postgres.server.execute(asked) >= [(times,)])


def test_the_server_ends_the_session_of_a_handler(
    replays: Replays, connect: Any, pay: Any, postgres: Any, kind: str
) -> None:
    async def ended(own: Own) -> Any:
        await pay(own)
        [(pid,)] = await own.ask("SELECT pg_backend_pid()")
        postgres.server.execute("SELECT pg_terminate_backend(%s, 10000)", pid)
        return "r"

    with pytest.raises(StoreUnavailableError, match="nothing was changed"):
        connect(kind).joined(replays, ended)
    own = connect(kind)
    assert not own.joined(replays, pay).replayed
    own.commit()
    assert rows(postgres) == 1


# A pool full of waiters.


def test_a_pool_whose_connections_all_wait_heals(
    replays: Replays, store: Any, connect: Any, pay: Any, postgres: Any
) -> None:
    """Plain requests wait for the open transaction, as long as the store's lock_timeout is."""
    replays.plain.execute(("payer", "hit"), 1, lambda: "hit")
    own = connect()
    for number in range(4):
        own.joined(replays, pay, key=("payer", str(number)))

    def ask(number: int) -> Any:
        return replays.plain.execute(("payer", str(number)), PARAMS, lambda: "plain")

    callers = [Caller(ask, number) for number in range(4)]
    until(lambda: waits(postgres, 2))
    began = time.monotonic()
    try:
        assert replays.plain.execute(("payer", "hit"), 1, lambda: "never").replayed
    except StoreUnavailableError:  # no connection came back in time
        assert time.monotonic() - began >= 0.5
    for caller in callers:
        with pytest.raises(StoreUnavailableError):
            caller.result()
    assert replays.plain.execute(("payer", "hit"), 1, lambda: "never").replayed
    own.commit()
    assert [ask(number).response for number in range(4)] == ["r"] * 4


# A fork.


@pytest.mark.parametrize("end", ["return", "raise"])
def test_a_child_that_comes_out_of_the_handler_leaves_its_parents_transaction_alone(
    replays: Replays, connect: Any, pay: Any, postgres: Any, end: str
) -> None:
    own = connect()
    parent = os.getpid()

    async def forks(own: Own) -> Any:
        await pay(own)
        if (child := os.fork()) == 0:
            if end == "raise":
                raise LookupError
            return "of the child"
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await own.ask("SELECT 1")
        return "r"

    try:
        outcome = own.joined(replays, forks)
    except BaseException as error:
        if os.getpid() != parent:
            expected = LookupError if end == "raise" else InFlightError
            os._exit(0 if type(error) is expected else 1)
        raise
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert outcome.response == "r"
    own.commit()
    assert (rows(postgres), replays.plain.lookup(KEY, PARAMS).response) == (1, "r")


# Cancelled.


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("where", ["in the handler", "while it waits"])
@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_a_cancelled_task_undoes_its_block(
    replays: Replays, connect: Any, pay: Any, postgres: Any, kind: str, where: str, times: int
) -> None:
    """Even if another cancellation strikes while it undoes."""
    other, own = connect(), connect(kind)
    began: list[Any] = []

    async def held(given: Any) -> None:
        await pay(own)
        began.append(given)
        await asyncio.Event().wait()

    async def cancelled() -> None:
        asked = replays.awaited.execute_in_transaction
        task = asyncio.create_task(
            asked(KEY, PARAMS, held, connection=own.given, wait_timeout=None)
        )
        waiting = where == "while it waits"
        while not (task.done() or began or (waiting and await asyncio.to_thread(waits, postgres))):
            await asyncio.sleep(0)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task

    if where == "while it waits":
        other.joined(replays, pay)
    own.run(cancelled())
    if times == 1 and (where == "in the handler" or kind == "psycopg async"):
        own.execute("SELECT 1")  # it can go on
        own.commit()
    else:
        # psycopg may have closed it, and SQLAlchemy gives up one that was cancelled in a statement.
        with contextlib.suppress(Exception):
            own.commit()
    other.rollback()
    assert (rows(postgres), replays.plain.record(KEY)) == (0, None)
    again = connect(kind)
    assert not again.joined(replays, pay).replayed
    again.commit()
    assert rows(postgres) == 1


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("what", ["a first request", "a hit", "a failure", "a final failure"])
@pytest.mark.parametrize("kind", ASYNC_KINDS)
def test_a_task_is_cancelled_at_each_of_its_awaits(
    store: Any, pay: Any, postgres: Any, kind: str, what: str, times: int
) -> None:
    """Whoever swallows that and commits gets the row and the answer, or neither; and nobody waits for the key."""
    final = (LookupError,) if what == "a final failure" else ()
    replays = Replays(store, wait_timeout=30, store_errors=final)

    async def handler(own: Own) -> str:
        await pay(own)
        if what in ("a failure", "a final failure"):
            raise LookupError("refused")
        return "r"

    def ask(at: int, key: tuple[str, str]) -> int:
        """Cancel it at this step; return how many there were, and check what is left."""
        own, steps = Own(kind, postgres.server.url), 0
        if what == "a hit":
            replays.plain.execute(key, PARAMS, lambda: "r")

        def enter(step: Callable[[], Any]) -> Any:
            nonlocal steps
            steps += 1
            if at <= steps < at + times:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()  # at the await that ends this step
            return step()

        asked = replays.awaited.execute_in_transaction
        request = asked(key, PARAMS, lambda given: handler(own), connection=own.given)
        with contextlib.suppress(asyncio.CancelledError, LookupError):
            own.run(run_steps(request, enter))
        with contextlib.suppress(Exception):  # it may be closed
            own.commit()
        [(paid,)] = postgres.server.execute(f"SELECT count(*) FROM {postgres.name}.ledger")
        record = replays.plain.record(key)
        if what == "a first request":
            assert paid == (record is not None)
            assert record is not None or steps >= at
        else:
            assert paid == 0
        if record is not None:
            assert record.state is (State.FAILED if final else State.COMPLETED)
        assert (record is not None) or what != "a hit"
        again = Own("psycopg", postgres.server.url)
        if record is None or not final:
            assert again.joined(replays, pay, key=key).replayed == bool(record)
            again.rollback()
        own.close()
        again.close()
        postgres.server.execute(f"DELETE FROM {postgres.name}.ledger")
        return steps

    at = 1
    while ask(at, ("payer", str(at))) >= at:
        at += 1
    assert at > 5
