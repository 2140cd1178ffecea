"""What is said of a server that refuses, and what class of error that is."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
import pytest

from kvreplay import (
    InFlightError,
    Replay,
    StoreError,
    StoreUnavailableError,
    open_store,
)
from support.postgres import Schema, execute


@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("&user=nobody_such", 'role "nobody_such" does not exist'),
        ("&sslmode=requir", 'invalid sslmode value: "requir"'),
    ],
)
def test_a_store_that_cannot_be_opened_says_why_and_waits_for_nothing(
    postgres: Schema, added: str, says: str
) -> None:
    with pytest.raises(StoreUnavailableError, match=says) as raised:
        open_store(postgres.url + added)
    assert "within" not in str(raised.value), "it has not waited"
    assert "nothing was done: mend the URL" in str(raised.value)
    open_store(postgres.url).close()


def test_a_callers_connection_that_the_operator_ends_is_unavailable(postgres: Schema) -> None:
    def end_it(connection: psycopg.Connection[Any]) -> None:
        execute(postgres.server.url, "SELECT pg_terminate_backend(%s)", connection.info.backend_pid)

    with open_store(postgres.url) as store:
        replay = Replay(store, "pay", ttl=60)
        with (
            contextlib.closing(psycopg.connect(postgres.server.url)) as connection,
            pytest.raises(StoreUnavailableError, match="57P01|connection to PostgreSQL was lost"),
        ):
            replay.execute_in_transaction(("a", "1"), {}, end_it, connection=connection)
        assert replay.execute(("a", "1"), {}, lambda: "free").response == "free"


def test_a_handler_that_swallows_an_error_of_the_server_is_told_of_savepoints(
    postgres: Schema,
) -> None:
    def swallow(connection: psycopg.Connection[Any]) -> str:
        with contextlib.suppress(psycopg.Error):
            connection.execute("SELECT 1 / 0")
        return "as if nothing had happened"

    def swallow_in_a_savepoint(connection: psycopg.Connection[Any]) -> str:
        with contextlib.suppress(psycopg.Error), connection.transaction():
            connection.execute("SELECT 1 / 0")
        return "nothing has happened"

    with (
        open_store(postgres.url) as store,
        psycopg.connect(postgres.server.url) as connection,
    ):
        replay = Replay(store, "pay", ttl=60)
        with pytest.raises(StoreError, match="in a savepoint of its own"):
            replay.execute_in_transaction(("a", "1"), {}, swallow, connection=connection)
        outcome = replay.execute_in_transaction(
            ("a", "1"), {}, swallow_in_a_savepoint, connection=connection
        )
        assert outcome.response == "nothing has happened"


def test_a_wait_in_vain_is_told_in_few_digits(postgres: Schema) -> None:
    url = postgres.server.url
    with (
        open_store(postgres.url) as store,
        psycopg.connect(url) as first,
        psycopg.connect(url) as second,
    ):
        replay = Replay(store, "pay", ttl=60, wait_timeout=0.2)
        replay.execute_in_transaction(("a", "1"), {}, lambda _: 1, connection=first)
        with pytest.raises(InFlightError, match=r"within 0\.\d{1,3} s;"):
            replay.execute_in_transaction(("a", "1"), {}, lambda _: 2, connection=second)
