"""A server that is killed, or stopped, and comes back: idle connections, and calls that are in flight."""

from __future__ import annotations

from typing import Any

import psycopg_pool.base
import pytest

from kvreplay.backends.postgresql import kept
from kvreplay.errors import OutcomeUnknownError, StoreUnavailableError
from kvreplay.testing.threads import Running
from support.postgres import Schema, Server
from support.postgres_faults import Opener, held, rows_of, until_waiting, use_connections

pytestmark = pytest.mark.any_python

K = ("p", "s", "k")


WAYS = pytest.mark.parametrize(
    ("schema", "how"),
    [(18, "kill"), (18, "fast"), (18, "immediate"), (15, "kill")],
    indirect=["schema"],
)


def stop(server: Server, how: Any) -> None:
    if how == "kill":
        server.kill()
    else:
        server.stop(how)


@WAYS
@pytest.mark.parametrize("where", ["kept", "in the pool"])
def test_no_call_fails_for_an_idle_connection(
    schema: Schema, opened: Opener, how: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(schema.url)
    store.write(*K, b"v")
    if where == "in the pool":  # whither it goes after some seconds
        monkeypatch.setattr(kept, "_KEEP", 0.0)
    use_connections(store, schema, 3)
    stop(schema.server, how)
    schema.server.start()
    assert store.check_and_put(*K, expected=b"v", value=b"w") == b"v"
    assert store.read(*K) == b"w"
    assert rows_of(schema) == {"k": b"w"}


@WAYS
def test_a_read_in_flight_is_asked_again_and_a_change_is_not(
    schema: Schema, opened: Opener, how: str
) -> None:
    store = opened(schema.url)
    store.write(*K, b"v")
    with held(schema.server, f"LOCK TABLE {schema.name}.kvreplay_entries"):
        read = Running(lambda: store.read(*K))
        change = Running(lambda: store.check_and_put(*K, expected=b"v", value=b"w"))
        until_waiting(schema.server, 2)
        stop(schema.server, how)
    schema.server.start()
    assert read.result() == b"v"
    with pytest.raises(OutcomeUnknownError, match="may or may not have happened"):
        change.result()
    assert store.read(*K) == b"v"
    assert store.check_and_put(*K, expected=b"v", value=b"w") == b"v"
    assert rows_of(schema) == {"k": b"w"}


@WAYS
def test_a_transaction_in_flight_is_undone(schema: Schema, opened: Opener, how: str) -> None:
    store = opened(schema.url)
    store.write(*K, b"v")
    with (
        pytest.raises(StoreUnavailableError, match="nothing was changed"),
        store.transaction() as transaction,
    ):
        transaction.write(*K, b"lost")
        stop(schema.server, how)
        schema.server.start()
        transaction.write(*K, b"lost, too")
    assert store.read(*K) == b"v"
    with store.transaction() as transaction:
        transaction.write(*K, b"w")
    assert rows_of(schema) == {"k": b"w"}


def test_the_first_call_after_a_long_outage_succeeds(
    schema: Schema, opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it was: the pool does not wait longer and longer before it tries again."""
    monkeypatch.setattr(psycopg_pool.base.AttemptWithBackoff, "DELAY_BACKOFF", 100.0)
    store = opened(schema.url, lock_timeout="2s")
    store.write(*K, b"v")
    other = opened(schema.url, lock_timeout="2s")  # it has made no connection yet, or one
    schema.server.stop()
    for call in (lambda: store.write(*K, b"lost"), lambda: store.read(*K)):
        with pytest.raises(StoreUnavailableError, match=r"No such file.*; nothing was done"):
            call()
    waiting = Running(lambda: other.read(*K))
    schema.server.start()
    assert waiting.result() == b"v"
    assert store.check_and_put(*K, expected=b"v", value=b"w") == b"v"
