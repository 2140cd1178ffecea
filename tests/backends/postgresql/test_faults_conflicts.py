"""Dead-locks, and a sweep that fails half-way: what the caller is told is true."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from kvreplay.backends.postgresql.operations import Operations
from kvreplay.backends.postgresql.statements import Statements
from kvreplay.errors import OutcomeUnknownError, StoreUnavailableError
from kvreplay.store import SweepResult
from kvreplay.testing.threads import Running, at_once
from support.postgres import Schema
from support.postgres_faults import Opener, rows_of, until_waiting

pytestmark = pytest.mark.any_python

K = ("p", "s", "k")
TURN = (
    "SELECT pg_advisory_xact_lock(('x' || left(replace(value, '-', ''), 16))::bit(64)::bigint)"
    " FROM {}.kvreplay_meta WHERE name = 'id'"
)


def deadlocks(schema: Schema) -> int:
    text = "SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()"
    ((count,),) = schema.server.execute(text)
    return int(count)


def test_our_own_calls_never_lock_each_other_out(schema: Schema, opened: Opener) -> None:
    """Each takes the turn before any row, and one row, or, alone, many."""
    store = opened(schema.url, lock_timeout="30s")
    before = deadlocks(schema)

    def change(*keys: str) -> None:
        for n in range(10):
            with store.transaction() as transaction:
                for key in keys:
                    transaction.write("p", "s", key, b"%d" % n)

    def swap(*keys: str) -> None:
        for n in range(20):
            for key in keys:
                seen = store.check_and_put("p", "s", key, expected=None, value=b"0", expires_at=5)
                store.check_and_put("p", "s", key, expected=seen, value=b"%d" % n, expires_at=5)

    def sweep() -> None:
        for _ in range(20):
            store.sweep("p", 10, 2)

    at_once(
        *(lambda: change("a", "b"), lambda: change("b", "a"), sweep),
        *(lambda: swap("a", "b"), lambda: swap("b", "a")),
    )
    assert deadlocks(schema) == before


def test_a_change_that_a_deadlock_undid_is_made_again(schema: Schema, opened: Opener) -> None:
    store = opened(schema.url, lock_timeout="30s")
    store.write(*K, b"v")
    with psycopg.connect(schema.server.url) as other:
        other.execute("SET deadlock_timeout = '1h'")  # so that it is not the one that is undone
        other.execute(f"SELECT FROM {schema.name}.kvreplay_entries FOR UPDATE".encode())
        change = Running(lambda: store.check_and_put(*K, expected=b"v", value=b"w"))
        until_waiting(schema.server, 1)
        other.execute(TURN.format(schema.name).encode())
        until_waiting(schema.server, 1)
        assert not change.over
    assert change.result() == b"v"
    assert rows_of(schema) == {"k": b"w"}
    assert "deadlock detected" in schema.server.log


def test_a_sweep_that_cannot_look_whether_more_is_due_says_so() -> None:
    lost = StoreUnavailableError("the connection was lost")
    sweep = Operations(Statements("public")).sweep("p", 10, 1)
    next(sweep)
    sweep.send([(1, 1)])
    with pytest.raises(StopIteration) as end:
        sweep.throw(lost)
    assert end.value.value == SweepResult(visited=1, removed=1, more=True)


@pytest.mark.parametrize("removed", [0, 1000])
def test_a_sweep_that_fails(removed: int) -> None:
    sweep = Operations(Statements("public")).sweep("p", 10, 2000)
    next(sweep)
    if removed:
        sweep.send([(1000, 1000)])
    kind: Any = OutcomeUnknownError if removed else StoreUnavailableError
    with pytest.raises(kind):
        sweep.throw(StoreUnavailableError("the connection was lost; nothing was changed"))
