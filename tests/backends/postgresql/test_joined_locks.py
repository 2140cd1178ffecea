"""Somebody locks the store's tables while a transaction is joined: it is told so in time, and can go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("sqlalchemy")

from kvreplay import StoreUnavailableError  # noqa: E402
from support.final_failures import Declined  # noqa: E402
from support.own_transactions import KINDS, Own, Replays  # noqa: E402
from support.postgres_faults import held  # noqa: E402
from support.replaying import Caller  # noqa: E402
from support.waiting import until  # noqa: E402

LOCKS = ("kvreplay_entries", "kvreplay_entries IN SHARE MODE", "kvreplay_meta")
"""For the second, which ``CREATE INDEX`` takes, only changes wait."""


@pytest.fixture
def store(ledger_store: Any) -> Any:
    return ledger_store


@pytest.fixture
def replays(store: Any) -> Replays:
    return Replays(store, store_errors=(Declined,), wait_timeout=30)


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest, postgres: Any, store: Any) -> Iterator[Own]:
    """A transaction that has a row of the caller's own, and a bound of its own for locks."""
    own = Own(str(request.param), postgres.server.url)
    own.execute(f"INSERT INTO {postgres.name}.ledger VALUES ('before', 1)")
    own.execute("SET LOCAL lock_timeout = '7s'")
    yield own
    own.close()


@pytest.fixture
def pay(postgres: Any) -> Any:
    async def pay(own: Own) -> str:
        assert await own.ask("SHOW lock_timeout") == [("7s",)]
        await own.ask(f"INSERT INTO {postgres.name}.ledger VALUES ('paid', 1)")
        return "r"

    return pay


def check_goes_on(own: Own, replays: Replays, pay: Any, postgres: Any) -> None:
    """The caller's transaction has its own bound, can be used, and commits all that is in it."""
    assert own.execute("SHOW lock_timeout") == [("7s",)]
    assert not own.joined(replays, pay).replayed
    assert own.execute("SHOW lock_timeout") == [("7s",)]
    own.commit()
    ledger = postgres.server.execute(f"SELECT payment FROM {postgres.name}.ledger")
    assert sorted(ledger) == [("before",), ("paid",)]
    assert own.joined(replays, pay).replayed
    assert own.execute("SHOW lock_timeout") == [("0",)]


def waits(postgres: Any) -> bool:
    """Whether somebody waits for the lock of a table."""
    asked = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation::regclass::text LIKE %s"
    return bool(postgres.server.execute(asked, f"{postgres.name}.%"))


@pytest.mark.parametrize("wait_timeout", [0, "50ms"])
@pytest.mark.parametrize("lock", LOCKS)
def test_a_locked_table_is_told_in_time(
    own: Own, replays: Replays, pay: Any, postgres: Any, lock: str, wait_timeout: Any
) -> None:
    async def never(own: Own) -> Any:
        raise AssertionError("the handler ran")

    with (
        held(postgres.server, f"LOCK TABLE {postgres.name}.{lock}"),
        pytest.raises(StoreUnavailableError, match="has locked a table") as raised,
    ):
        own.joined(replays, never, wait_timeout=wait_timeout)
    assert postgres.name not in str(raised.value)
    check_goes_on(own, replays, pay, postgres)


@pytest.mark.parametrize("lock", LOCKS)
def test_who_waits_for_a_table_goes_on_when_it_is_free(
    own: Own, replays: Replays, pay: Any, postgres: Any, lock: str
) -> None:
    with held(postgres.server, f"LOCK TABLE {postgres.name}.{lock}"):
        waiting = Caller(check_goes_on, own, replays, pay, postgres)
        until(lambda: waits(postgres))
    waiting.result()


def test_a_final_failure_lets_somebody_have_the_table(
    own: Own, replays: Replays, pay: Any, postgres: Any
) -> None:
    """To undo the handler's rows gives the lock back. The failure is not stored then, and nothing is half there."""
    locker = psycopg.connect(postgres.server.url)
    locking: list[Caller] = []

    async def declined(own: Own) -> Any:
        await pay(own)
        lock = f"LOCK TABLE {postgres.name}.kvreplay_entries"
        locking.append(Caller(locker.execute, lock))
        until(lambda: waits(postgres))
        raise Declined("funds")

    with pytest.raises(StoreUnavailableError, match="has locked a table"):
        own.joined(replays, declined, wait_timeout="300ms")
    locking[0].result()
    locker.close()
    check_goes_on(own, replays, pay, postgres)


def test_the_caller_asks_the_server_no_more_than_it_must(postgres: Any, store: Any) -> None:
    """One round trip for each: savepoint and lock, where it is, read, claim, handler, answer, end."""
    from support.cutting_proxy import CuttingProxy

    replays = Replays(store)

    async def one(own: Own) -> int:
        await own.ask("SELECT 1")
        return 1

    with CuttingProxy(postgres.server.tcp_url) as proxy:
        own = Own("psycopg", proxy.url)
        own.execute("SELECT 1")  # which begins the transaction
        counted = []
        for _ in range(2):
            before = proxy.passed()
            own.joined(replays, one)
            counted.append((proxy.passed() - before).round_trips)
        own.close()
    assert counted == [7, 4]
