"""ldk-node's table in PostgreSQL as either side: made and locked here as ldk-node makes and locks it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import (
    ConfigError,
    CorruptStoreError,
    DestinationNotEmptyError,
    OutcomeUnknownError,
    Progress,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
    migrate,
    open_store,
)
from support.extras import needs_postgresql
from support.migrations import LDK, MARK, content, fill, node_file, order

# The tests of ldk-node's lock take it by the table's bare name, which all have in common.
pytestmark = [needs_postgresql, pytest.mark.xdist_group("ldk_data")]

CREATE = """CREATE TABLE {table} (
    primary_namespace TEXT NOT NULL,
    secondary_namespace TEXT NOT NULL DEFAULT '',
    key TEXT NOT NULL CHECK (key <> ''),
    value BYTEA,
    sort_order BIGSERIAL CHECK (sort_order >= 0),
    PRIMARY KEY (primary_namespace, secondary_namespace, key))"""
# The first eight bytes of a SHA-256 over both names, each behind its length.
LOCK = """SELECT {function}(('x' || encode(substr(sha256('ldk-node:postgres-store'::bytea
    || int8send(octet_length(current_database())) || current_database()::text::bytea
    || int8send(octet_length(%s)) || %s::bytea), 1, 8), 'hex'))::bit(64)::bigint)"""


class Node:
    """Where a node's table is, and what a running node does there."""

    def __init__(self, schema: Any) -> None:
        self.server = schema.server
        self.table = f"{schema.name}.ldk_data"
        self.url = f"{schema.server.url}&table={self.table}"
        self.server.execute(f"CREATE SCHEMA {schema.name}")

    def make(self, comment: str = "1") -> None:
        self.server.execute(CREATE.format(table=self.table))
        self.server.execute(f"COMMENT ON TABLE {self.table} IS '{comment}'")
        for address, value in LDK.items():
            self.put(*address, value)

    def put(self, primary: str, secondary: str, key: str, value: bytes | None) -> None:
        self.server.execute(
            f"INSERT INTO {self.table} (primary_namespace, secondary_namespace, key, value)"
            " VALUES (%s, %s, %s, %s)",
            *(primary, secondary, key, value),
        )

    def rows(self) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self.server.execute(
            "SELECT primary_namespace, secondary_namespace, key, value"
            f" FROM {self.table} ORDER BY sort_order"
        )
        return rows

    @contextlib.contextmanager
    def running(self, name: str | None = None) -> Iterator[bool]:
        """Try to run, and say whether that went well; ``name``: of the table, as it is configured."""
        import psycopg

        name = name or self.table
        with psycopg.connect(self.server.url, autocommit=True) as connection:
            lock = LOCK.format(function="pg_try_advisory_lock")
            [(can,)] = connection.execute(lock, (name, name))
            yield can
            connection.execute("SELECT pg_advisory_unlock_all()")


@pytest.fixture
def node(postgres: Any) -> Node:
    return Node(postgres)


def test_a_table_is_read_and_not_changed(node: Node, tmp_path: Path) -> None:
    node.make()
    node.server.execute(f"UPDATE {node.table} SET value = value")  # an update moves no entry
    before = node.rows()
    done = migrate(node.url, f"lmdb:{tmp_path}/one")
    assert (done.entries, done.ordered) == (len(LDK), True)
    with open_store(f"lmdb:{tmp_path}/one") as store:
        assert {each: entry.value for each, entry in content(store).items()} == LDK
    assert node.rows() == before
    with node.running() as can:
        assert can


def test_its_order_comes_along(node: Node, tmp_path: Path) -> None:
    node.server.execute(CREATE.format(table=node.table))
    node.server.execute(f"COMMENT ON TABLE {node.table} IS '1'")
    for number in range(1_050):  # more than a page
        node.put("p", "s", f"k{number * 11 % 1_050}", b"v")
    migrate(node.url, f"sqlite:{tmp_path}/file")
    with open_store(f"sqlite:{tmp_path}/file") as store:
        found = order(store)
    expected = [f"k{number * 11 % 1_050}" for number in reversed(range(1_050))]
    assert found == {("p", "s"): expected[:1_000]}  # one page of them


def test_a_destination_is_made_as_ldk_node_makes_it(node: Node, tmp_path: Path) -> None:
    node_file(tmp_path / "file", 3)
    migrate(f"sqlite:{tmp_path}/file", node.url)
    assert {row[:3]: row[3] for row in node.rows()} == LDK
    schema = node.table.partition(".")[0]
    tables = node.server.execute(
        "SELECT relname, obj_description(oid, 'pg_class') FROM pg_class"
        " WHERE relnamespace = %s::regnamespace AND relkind = 'r'",
        schema,
    )
    assert tables == [("ldk_data", "1")]
    indexes = node.server.execute("SELECT indexname FROM pg_indexes WHERE schemaname = %s", schema)
    assert {name for (name,) in indexes} == {"ldk_data_pkey", f"idx_{node.table}_paginated"}
    columns = "column_name, data_type, is_nullable, column_default"
    asked = (
        f"SELECT {columns} FROM information_schema.columns WHERE table_schema = %s"
        " AND table_name = %s ORDER BY ordinal_position"
    )
    made = node.server.execute(asked, schema, "ldk_data")
    node.server.execute(CREATE.format(table=f"{schema}.theirs"))
    theirs = node.server.execute(asked, schema, "theirs")
    assert [row[:3] for row in made] == [row[:3] for row in theirs]
    node.put("later", "s", "k", b"v")  # ldk-node goes on with the order
    assert node.rows()[-1][:3] == ("later", "s", "k")
    back = migrate(node.url, f"sqlite:{tmp_path}/back")
    assert back.entries == len(LDK) + 1


def test_no_node_runs_beside_a_migration(node: Node, tmp_path: Path) -> None:
    node.make()
    one = f"sqlite:{tmp_path}/one"
    for name in (node.table, "ldk_data"):  # as another search_path would have it
        with node.running(name) as can:
            assert can
            for source, destination in ((node.url, one), (f"lmdb:{tmp_path}/two", node.url)):
                open_store(f"lmdb:{tmp_path}/two").close()
                with pytest.raises(StoreUnavailableError, match="ldk-node uses the table"):
                    migrate(source, destination)
    assert not (tmp_path / "one").exists()

    def looking(progress: Progress) -> None:
        with node.running() as can:
            assert not can
        looked.append(progress.step)

    looked: list[str] = []
    migrate(node.url, one, on_progress=looking)
    assert set(looked) == {"look", "copy", "verify"}


class Stopped(Exception):
    """The migration ends here."""


def stopping(progress: Progress) -> None:
    if progress.step == "verify":
        raise Stopped


def test_as_a_source_it_goes_on(node: Node, tmp_path: Path) -> None:
    node.make()
    with pytest.raises(Stopped):
        migrate(node.url, f"lmdb:{tmp_path}/one", on_progress=stopping)
    assert migrate(node.url, f"lmdb:{tmp_path}/one").copied == 0


def test_as_a_destination_it_goes_on_and_is_mended(node: Node, tmp_path: Path) -> None:
    node_file(tmp_path / "file", 3)
    source = f"sqlite:{tmp_path}/file"
    with pytest.raises(Stopped):
        migrate(source, node.url, on_progress=stopping)
    assert MARK in [row[:3] for row in node.rows()]
    node.server.execute(f"UPDATE {node.table} SET value = 'another' WHERE key = 'manager'")
    node.put("gone", "s", "k", b"v")
    done = migrate(source, node.url)
    assert (done.copied, done.removed) == (1, 1)
    assert {row[:3]: row[3] for row in node.rows()} == LDK


def test_a_used_destination_loses_nothing(node: Node, tmp_path: Path) -> None:
    node_file(tmp_path / "file", 3)
    source = f"sqlite:{tmp_path}/file"
    node.make()
    node.put("mine", "s", "k", b"mine")
    before = node.rows()
    with pytest.raises(DestinationNotEmptyError):
        migrate(source, node.url)
    assert migrate(source, node.url, into_used=True).copied == 0
    assert node.rows() == before
    node.server.execute(f"UPDATE {node.table} SET value = 'another' WHERE key = 'manager'")
    before = node.rows()
    with pytest.raises(DestinationNotEmptyError, match="another entry"):
        migrate(source, node.url, into_used=True)
    assert [row for row in node.rows() if row[:3] != MARK] == before


def test_an_expiry_that_would_be_lost_is_refused(node: Node, tmp_path: Path) -> None:
    with open_store(f"lmdb:{tmp_path}/one") as store:
        fill(store)
    with pytest.raises(ConfigError, match="an entry has an expiry, which"):
        migrate(f"lmdb:{tmp_path}/one", node.url)
    assert [row[:3] for row in node.rows()] == [MARK]


def test_a_table_that_is_not_there_is_not_made(node: Node, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="there is no table"):
        migrate(node.url, f"lmdb:{tmp_path}/one")
    assert node.server.execute("SELECT to_regclass(%s)", node.table) == [(None,)]
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("comment", ["2", "0", "of another program"])
def test_another_version_is_refused(node: Node, comment: str, tmp_path: Path) -> None:
    node.make(comment)
    before = node.rows()
    open_store(f"lmdb:{tmp_path}/one").close()
    with pytest.raises(CorruptStoreError, match="version 1"):
        migrate(node.url, f"lmdb:{tmp_path}/two")
    with pytest.raises(CorruptStoreError, match="version 1"):
        migrate(f"lmdb:{tmp_path}/one", node.url)
    assert node.rows() == before


@pytest.mark.parametrize(
    ("column", "value"), [("key", "a.b"), ("primary_namespace", "a b"), ("value", None)]
)
def test_a_foreign_row_is_refused(
    node: Node, column: str, value: str | None, tmp_path: Path
) -> None:
    """It may be data that would be left behind."""
    node.make()
    node.server.execute(f"UPDATE {node.table} SET {column} = %s WHERE key = 'a_0'", value)
    with pytest.raises(CorruptStoreError) as caught:
        migrate(node.url, f"lmdb:{tmp_path}/one")
    assert str(value) not in str(caught.value) or value is None


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("table=a.b.c", "is NAME or SCHEMA.NAME"),
        ("table=a%25b", "is NAME or SCHEMA.NAME"),
        ("table=", "is NAME or SCHEMA.NAME"),
        ("table=ldk_data&schema=replay", '"schema" is for our own tables'),
        ("table=ldk_data&pool_size=5", '"pool_size" is for our own tables'),
        ("table=ldk_data&tabel=x", 'no option "tabel"'),
    ],
)
def test_what_is_asked_for_wrongly_is_said(postgres: Any, query: str, says: str) -> None:
    url = f"{postgres.server.url}&{query}".replace("postgres@", "postgres:hunter2@")
    for source, destination in ((url, "memory:"), (f"{postgres.server.url}&table=x", url)):
        if destination == url:
            source = postgres.url
            open_store(source).close()
        with pytest.raises(ConfigError) as caught:
            migrate(source, destination)
        assert says in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_a_pooler_is_refused(node: Node, tmp_path: Path) -> None:
    """The lock would stay with the pooler's own connection, and keep the node from starting."""
    from support.pgbouncer import PgBouncer

    node.make()
    with PgBouncer(node.server) as pooler:
        for url in (pooler.url, pooler.tcp_url):
            with pytest.raises(ConfigError, match="leads to a pooler"):
                migrate(f"{url}&table={node.table}", f"lmdb:{tmp_path}/one")
    with node.running() as can:
        assert can


def test_only_a_migration_knows_the_table(postgres: Any) -> None:
    with pytest.raises(ConfigError, match='has no option "table"'):
        open_store(f"{postgres.server.url}&table=ldk_data")


def test_a_connection_that_is_lost_is_told(node: Node, tmp_path: Path) -> None:
    from kvreplay._migration.ldk_table import LdkTable

    node.make()
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lost'"
    url = f"{node.server.url}&application_name=lost"
    with contextlib.closing(LdkTable(url, node.table, writable=True)) as table:
        assert table.read("", "", "manager") == LDK["", "", "manager"]
        node.server.execute(ended)
        with pytest.raises(OutcomeUnknownError):
            table.write("p", "s", "k", b"v")
        with pytest.raises(StoreError):
            table.read("", "", "manager")
    with contextlib.closing(LdkTable(url, node.table, writable=False)) as table:
        with pytest.raises(StoreError, match="read-only transaction"):
            table.write("p", "s", "k", b"v")


def test_a_server_that_cannot_be_reached_shows_no_password(tmp_path: Path) -> None:
    for url, error in (
        ("postgresql://u:hunter2@127.0.0.1:1/db?table=ldk_data", StoreUnavailableError),
        ("postgresql://u@h/db?table=ldk_data&password=hunter2=", ConfigError),
    ):
        with pytest.raises(error) as caught:
            migrate(url, f"lmdb:{tmp_path}/one")
        assert "hunter2" not in str(caught.value)
