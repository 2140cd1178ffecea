"""Another client holds a lock: a call that waits in vain says so in time, and never happens later."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvreplay.errors import StoreUnavailableError
from kvreplay.testing.threads import Running
from support.postgres_faults import A_LITTLE, Opener, held, rows_of, until_idle, until_waiting

pytestmark = pytest.mark.any_python

K = ("p", "s", "k")
WAIT = 0.3  # seconds: the stores' lock_timeout

LOCKS = {
    "the row": "SELECT FROM {schema}.kvreplay_entries FOR UPDATE",
    "the store's turn": "SELECT pg_advisory_xact_lock("
    "('x' || left(replace(value, '-', ''), 16))::bit(64)::bigint)"
    " FROM {schema}.kvreplay_meta WHERE name = 'id'",
    "the table": "LOCK TABLE {schema}.kvreplay_entries IN ACCESS EXCLUSIVE MODE",
}


def change_in_transaction(store: Any) -> None:
    with store.transaction() as transaction:
        transaction.write(*K, b"w")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "write": lambda store: store.write(*K, b"w"),
    "remove": lambda store: store.remove(*K),
    "new": lambda store: store.check_and_put(*K, expected=None, value=b"w"),
    "swap": lambda store: store.check_and_put(*K, expected=b"v", value=b"w"),
    "drop": lambda store: store.check_and_put(*K, expected=b"v", value=None),
    "transaction": change_in_transaction,
}


@pytest.fixture
def store(postgres: Any, opened: Opener) -> Any:
    return opening(postgres, opened)


def opening(postgres: Any, opened: Opener, **options: Any) -> Any:
    options = {"lock_timeout": f"{WAIT}s", "reply_timeout": "10s", **options}
    store = opened(f"{postgres.url}&application_name={postgres.name}", **options)
    store.write(*K, b"v")
    return store


@contextmanager
def locked(postgres: Any, lock: str) -> Iterator[Any]:
    with held(postgres.server, LOCKS[lock].format(schema=postgres.name)) as holder:
        yield holder


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_waits_in_vain_never_happens(
    postgres: Any, store: Any, lock: str, change: str
) -> None:
    with locked(postgres, lock):
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="nothing was changed, and nothing will be"):
            CHANGES[change](store)
        assert time.monotonic() - began < 2 * WAIT + A_LITTLE
    until_idle(postgres)
    assert rows_of(postgres) == {"k": b"v"}
    CHANGES[change](store)
    assert rows_of(postgres) != {"k": b"v"} or change == "new"


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_waits_for_some_time_happens(
    postgres: Any, opened: Opener, lock: str, change: str
) -> None:
    store = opening(postgres, opened, lock_timeout="60s")
    with locked(postgres, lock):
        waiting = Running(lambda: CHANGES[change](store))
        until_waiting(postgres.server, 1, postgres.name)
        assert rows_of(postgres) == {"k": b"v"} if lock != "the table" else not waiting.over
    waiting.result()
    assert rows_of(postgres) != {"k": b"v"} or change == "new"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_read_waits_for_the_lock_of_the_table_only(postgres: Any, store: Any, lock: str) -> None:
    with locked(postgres, lock):
        if lock == "the table":
            with pytest.raises(StoreUnavailableError):
                store.read(*K)
        else:
            assert store.read(*K) == b"v"
    assert store.read(*K) == b"v"


def test_a_pool_whose_connections_all_wait_lets_others_end_in_time(
    postgres: Any, opened: Opener
) -> None:
    store = opening(postgres, opened, pool_size=2)
    with locked(postgres, "the row"):
        began = time.monotonic()
        changes = [Running(lambda: store.write(*K, b"w")) for _ in range(6)]
        for each in changes:
            with pytest.raises(StoreUnavailableError):
                each.result()
        assert time.monotonic() - began < 2 * WAIT + A_LITTLE
    until_idle(postgres)
    assert store.read(*K) == b"v"
    assert [Running(lambda: store.write(*K, b"w")).result() for _ in range(6)] == [None] * 6
