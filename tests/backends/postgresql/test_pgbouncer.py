"""A store behind the real PgBouncer: its connections to the server are anybody's between two transactions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from kvreplay import OutcomeUnknownError, Replay, StoreUnavailableError, open_store
from kvreplay.testing import StoreContract
from support.pgbouncer import PgBouncer
from support.postgres import Schema, execute, new_schema
from support.postgres_faults import Opener
from support.postgres_stores import open_at
from support.replaying import Handler, never
from support.shared_postgres import shared_server
from support.swaps import last_values, read_swaps, swapping, wrongs

pytestmark = pytest.mark.any_python

K = ("p", "s", "k")


@pytest.fixture(scope="module")
def poolers() -> Iterator[dict[str, PgBouncer]]:
    with ExitStack() as stack:
        yield {
            "transaction": stack.enter_context(PgBouncer(shared_server())),
            "session": stack.enter_context(PgBouncer(shared_server(), "session")),
        }


@contextmanager
def one_connection(schema: Schema, **settings: Any) -> Iterator[PgBouncer]:
    """A pooler that has one connection to the server, for all."""
    with PgBouncer(schema.server, settings={"default_pool_size": 1, **settings}) as pooler:
        yield pooler


class TestPostgreSQLStoreBehindPgBouncer(StoreContract):
    open = staticmethod(open_at)
    # They take long, and make the same calls, one after the other.
    test_histories_agree_with_a_dictionary: Any = None

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path, poolers: dict[str, PgBouncer]) -> Iterator[None]:
        with new_schema(shared_server()) as schema:
            told = {"url": poolers["transaction"].url, "name": schema.name}
            (tmp_path / "server").write_text(json.dumps(told), encoding="utf-8")
            yield
            made = "SELECT nspname FROM pg_namespace WHERE nspname LIKE %s"
            for (name,) in schema.server.execute(made, f"{schema.name}%"):
                schema.server.execute(f"DROP SCHEMA {name} CASCADE")


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_no_value_is_swapped_out_twice(
    postgres: Schema, poolers: dict[str, PgBouncer], tmp_path: Path, mode: str
) -> None:
    url = postgres.of(poolers[mode].url)
    with open_store(f"{url}&pool_size=2") as store, ExitStack() as stack:
        crew = [
            stack.enter_context(swapping(f"{url}&pool_size=4", tmp_path, face, face=face, calls=60))
            for face in ("sync", "async")
        ]
        for each in crew:
            each.tell()
        for each in crew:
            assert each.says() == []
        swaps = read_swaps(tmp_path)
        assert wrongs(swaps, last_values(store)) == []
        assert sum(swap.is_made for swap in swaps) > 60


def use(store: Any) -> None:
    """Make each kind of call more often than psycopg lets pass before it prepares a statement."""
    for n in range(8):
        store.write(*K, b"%d" % n)
        store.read(*K)
        assert store.check_and_put(*K, expected=b"%d" % n, value=b"swapped") == b"%d" % n
        store.sweep("p", 1, 10)
        store.list("p", "s")
        store.remove(*K, lazy=True)


def test_nothing_of_a_session_stays_behind(postgres: Schema, opened: Opener) -> None:
    """Clients that share one connection do not meet each other's statements, settings and locks."""
    with one_connection(postgres) as pooler:
        url = postgres.of(pooler.url)
        before = session_of(pooler)
        for durability in ("full", "process"):
            one, two = opened(url, durability=durability), opened(url, durability=durability)
            for store in (one, two, one):
                use(store)
                with store.transaction() as txn:
                    txn.write(*K, b"in a transaction")
            assert two.read(*K) == b"in a transaction"
        assert session_of(pooler) == before
        assert before["prepared"] == before["locks"] == 0
        with psycopg.connect(
            pooler.url, autocommit=True
        ) as other:  # whose statements would be seen
            for _ in range(8):
                other.execute("SELECT 1")
            other.execute("SET lock_timeout = '7s'")
        assert session_of(pooler) == {**before, "prepared": 1, "lock_timeout": "7s"}


def session_of(pooler: PgBouncer) -> dict[str, Any]:
    with psycopg.connect(pooler.url, autocommit=True, prepare_threshold=None) as client:
        row = client.execute("""
            SELECT pg_backend_pid(), (SELECT count(*) FROM pg_prepared_statements),
            (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
            current_setting('lock_timeout'), current_setting('synchronous_commit')""").fetchone()
    assert row is not None
    names = ("pid", "prepared", "locks", "lock_timeout", "synchronous_commit")
    return dict(zip(names, row, strict=True))


def test_a_caller_s_transaction_is_joined(postgres: Schema, poolers: dict[str, PgBouncer]) -> None:
    pooler = poolers["transaction"]
    with open_store(postgres.of(pooler.url)) as store:
        replay = Replay(store, "ns", ttl="1h")
        execute(postgres.server.url, f"CREATE TABLE {postgres.name}.ledger (amount int)")

        def pay(connection: Any) -> str:
            connection.execute(f"INSERT INTO {postgres.name}.ledger VALUES (1)")
            return "paid"

        with psycopg.connect(pooler.url) as connection:
            for end in (connection.rollback, connection.commit):
                done = replay.execute_in_transaction(("lsp", "k"), 1, pay, connection=connection)
                assert not done.replayed
                end()
            again = replay.execute_in_transaction(("lsp", "k"), 1, never, connection=connection)
            assert again.replayed
        assert execute(postgres.server.url, f"SELECT * FROM {postgres.name}.ledger") == [(1,)]


def test_options_are_refused_by_the_pooler(postgres: Schema, poolers: dict[str, PgBouncer]) -> None:
    """And its words come through."""
    options = "&options=-c%20work_mem%3D1MB"
    with pytest.raises(StoreUnavailableError, match="unsupported startup parameter.*options"):
        open_store(postgres.of(poolers["transaction"].url) + options)
    open_store(postgres.url + options).close()


def test_a_pooler_that_is_restarted(postgres: Schema, opened: Opener) -> None:
    with one_connection(postgres) as pooler:
        store, handler = opened(postgres.of(pooler.url)), Handler("done")
        replay = Replay(store, "ns", ttl="1h")
        replay.execute(("lsp", "k"), 1, handler)
        pooler.restart()
        assert replay.execute(("lsp", "k"), 1, never).replayed
        store.write(*K, b"v")


def test_who_waits_in_vain_for_the_pooler(postgres: Schema, opened: Opener) -> None:
    """The pooler then ends the connection. It says why, but whether a change was made is not asked of it."""
    with one_connection(postgres, query_wait_timeout=1) as pooler:
        store = opened(postgres.of(pooler.url), lock_timeout="2s")
        store.write(*K, b"before")
        with psycopg.connect(pooler.url) as holder:
            holder.execute("SELECT 1")
            with pytest.raises(OutcomeUnknownError):
                store.write(*K, b"lost")
            with pytest.raises(StoreUnavailableError, match="query_wait_timeout"):
                store.read(*K)
        assert store.read(*K) == b"before"
