"""Joined transactions on PostgreSQL: what kind of connection it is, where it leads, and as whom."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

psycopg = pytest.importorskip("psycopg")
sqlalchemy = pytest.importorskip("sqlalchemy")

from psycopg.rows import dict_row  # noqa: E402
from sqlalchemy import orm  # noqa: E402

from kvreplay import ConfigError, StoreError, open_store  # noqa: E402
from support.own_transactions import Own, Replays, sqlalchemy_url  # noqa: E402
from support.replaying import Caller  # noqa: E402
from support.waiting import PATIENCE  # noqa: E402

KEY = ("payer", "payment-1")
PARAMS = 1000


@pytest.fixture
def store(postgres: Any) -> Iterator[Any]:
    with open_store(postgres.url) as store:
        table = "(payment text PRIMARY KEY, msat int)"
        postgres.server.execute(f"CREATE TABLE {postgres.name}.ledger {table}")
        yield store


@pytest.fixture
def replays(store: Any) -> Replays:
    return Replays(store)


@pytest.fixture
def insert(postgres: Any) -> Any:
    return f"INSERT INTO {postgres.name}.ledger VALUES ('payment-1', 1000)"


@pytest.fixture
def joined(replays: Replays, insert: str) -> Callable[..., Any]:
    def pay(connection: Any) -> str:
        connection.execute(insert)
        return "r"

    def joined(connection: Any, handler: Any = pay, **options: Any) -> Any:
        options["connection"] = connection
        return replays.plain.execute_in_transaction(KEY, PARAMS, handler, **options)

    return joined


def never(connection: object) -> Any:
    raise AssertionError("the handler ran")


def rows(postgres: Any) -> int:
    [(count,)] = postgres.server.execute(f"SELECT count(*) FROM {postgres.name}.ledger")
    return int(count)


# Kinds of connections.


def test_what_is_no_connection(joined: Any, replays: Replays, postgres: Any) -> None:
    with pytest.raises(ConfigError, match=r"is a builtins.object; nothing ran: give a connection"):
        joined(object(), never)
    with pytest.raises(ConfigError, match="is a builtins.NoneType"):  # not opened yet, by Django
        joined(None, never)
    with pytest.raises(ConfigError, match="use Replay, or give an asynchronous"):
        with psycopg.connect(postgres.server.url) as blocking:
            asked = replays.awaited.execute_in_transaction
            asyncio.run(asked(KEY, PARAMS, never, connection=blocking))
    awaited = Own("psycopg async", postgres.server.url)
    with pytest.raises(ConfigError, match="AsyncConnection; nothing ran: use AsyncReplay"):
        joined(awaited.given, never)
    awaited.close()


def test_sqlalchemy_with_another_driver_or_database(joined: Any) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as other, pytest.raises(ConfigError, match="uses the driver pysqlite"):
        joined(other, never)
    engine.dispose()
    with orm.Session() as unbound, pytest.raises(ConfigError, match="has no engine"):
        joined(unbound, never)


@pytest.mark.parametrize(
    "options",
    [
        {"row_factory": dict_row},
        {"cursor_factory": psycopg.ClientCursor},
        {"cursor_factory": psycopg.RawCursor},
        {"prepare_threshold": None},
        {"prepare_threshold": 0},
        {"autocommit": True},
        {"options": "-c search_path=pg_catalog -c extra_float_digits=0 -c bytea_output=escape"},
        {"client_encoding": "LATIN1"},
    ],
    ids=lambda options: " ".join(options),
)
def test_a_connection_of_whatever_settings(joined: Any, postgres: Any, options: Any) -> None:
    with psycopg.connect(postgres.server.url, **options) as own:
        with own.transaction():
            assert not joined(own).replayed
            assert joined(own, never).response == "r"
        own.commit()
    assert rows(postgres) == 1


def test_a_pipeline(joined: Any, postgres: Any) -> None:
    def pay(connection: Any) -> Any:
        with connection.pipeline():
            connection.execute(f"INSERT INTO {postgres.name}.ledger VALUES ('1', 1)")
            connection.execute(f"INSERT INTO {postgres.name}.ledger VALUES ('2', 1)")
        return "r"

    with psycopg.connect(postgres.server.url) as own:
        with own.pipeline(), pytest.raises(ConfigError, match="pipeline mode"):
            joined(own, never)
        assert not joined(own, pay).replayed
    assert rows(postgres) == 2


# A Session's objects.


@pytest.fixture
def session(postgres: Any, store: Any) -> Iterator[Any]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(postgres.server.url))
    with orm.Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture
def row(postgres: Any, store: Any) -> Any:
    """The ledger's class."""
    base = orm.declarative_base()

    class Row(base):  # type: ignore[misc, valid-type]
        __tablename__ = "ledger"
        __table_args__ = ({"schema": postgres.name},)
        payment = sqlalchemy.Column(sqlalchemy.Text, primary_key=True)
        msat = sqlalchemy.Column(sqlalchemy.Integer)

    return Row


@pytest.mark.parametrize("flushed", [False, True])
def test_what_a_handler_adds_is_written_with_the_answer_or_forgotten(
    joined: Any, session: Any, row: Any, postgres: Any, flushed: bool
) -> None:
    def pay(session: Any) -> Any:
        session.add(row(payment="payment-1", msat=1))
        if flushed:
            session.flush()
        if fails:
            raise LookupError
        return "r"

    session.add(row(payment="of the caller", msat=0))
    fails = True
    with pytest.raises(LookupError):
        joined(session, pay)
    session.commit()
    assert rows(postgres) == 1
    fails = False
    assert not joined(session, pay).replayed
    assert joined(session, never).replayed
    session.commit()
    assert rows(postgres) == 2


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_row_that_the_database_refuses_is_the_callers_error(
    joined: Any, session: Any, row: Any, postgres: Any, replays: Replays, swallowed: bool
) -> None:
    """Even if the session writes it only when the block ends."""

    def pay(session: Any) -> Any:
        session.add(row(payment="twice", msat=1))
        if swallowed:
            with pytest.raises(sqlalchemy.exc.IntegrityError):
                session.flush()
        return "r"

    session.add(row(payment="twice", msat=0))
    session.commit()
    session.expunge_all()
    with pytest.raises(Exception, match="duplicate key|stands, and no answer"):
        joined(session, pay)
    session.commit()
    assert (rows(postgres), replays.plain.record(KEY)) == (1, None)
    assert not joined(session, lambda session: "r").replayed


def test_rows_of_the_callers_own_that_the_database_refuses(
    joined: Any, session: Any, row: Any
) -> None:
    session.add_all([row(payment="twice", msat=0)])
    session.flush()
    session.expunge_all()
    session.add(row(payment="twice", msat=1))
    with pytest.raises(sqlalchemy.exc.IntegrityError):
        joined(session, never)
    with pytest.raises(ConfigError, match="has failed"):
        joined(session, never)
    session.rollback()
    assert not joined(session, lambda session: "r").replayed


def test_a_scoped_session(joined: Any, session: Any, row: Any, postgres: Any) -> None:
    scoped = orm.scoped_session(orm.sessionmaker(session.get_bind()))

    def pay(given: Any) -> Any:
        assert given is scoped
        given.add(row(payment="1", msat=1))
        return "r"

    assert not joined(scoped, pay).replayed
    scoped.commit()
    scoped.remove()
    assert rows(postgres) == 1


# Where it leads.


@pytest.fixture
def database(postgres: Any) -> Iterator[Callable[[str], str]]:
    """``database("")`` makes one more on the server, or a copy, and returns its URL."""
    names = []

    def make(template: str) -> str:
        names.append(f"{postgres.name}_{len(names)}")
        create = f"CREATE DATABASE {names[-1]} {template}"
        postgres.server.execute(create)
        return str(postgres.server.url).replace("/postgres?", f"/{names[-1]}?")

    yield make
    for name in names:
        postgres.server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def test_another_database(
    joined: Any, database: Any, postgres: Any, store: Any, insert: str
) -> None:
    """One without the tables, one with another store, and a copy with the same one."""
    empty, other = database(""), database("")
    open_store(f"{other}&schema={postgres.name}").close()
    original = database("")
    open_store(f"{original}&schema={postgres.name}").close()
    copy = database(f"TEMPLATE {original.partition('@/')[2].partition('?')[0]}")
    for url in (empty, other):
        with psycopg.connect(url) as own:
            with pytest.raises(ConfigError, match="another database"):
                joined(own, never)
            assert own.execute("SELECT 1").fetchall() == [(1,)]
    with open_store(f"{original}&schema={postgres.name}") as theirs:
        replays = Replays(theirs)
        for url in (copy, original):
            with psycopg.connect(url) as own:
                asked = lambda own=own: replays.plain.execute_in_transaction(  # noqa: E731
                    KEY, PARAMS, lambda own: "r", connection=own
                )
                if url is copy:
                    with pytest.raises(ConfigError, match="another database"):
                        asked()
                else:
                    assert not asked().replayed


def test_a_standby(postgres: Any) -> None:
    from support.postgres import Server, Standby

    with Server() as server:
        with open_store(server.url) as store, Standby(server) as standby:
            with psycopg.connect(standby.url) as own:
                with pytest.raises(ConfigError, match="standby"):
                    asked = Replays(store).plain.execute_in_transaction
                    asked(KEY, PARAMS, never, connection=own)


# As whom.


@pytest.fixture
def role(postgres: Any) -> Iterator[str]:
    """A role that may do nothing but what is public."""
    name = f"{postgres.name}_role"
    postgres.server.execute(f"CREATE ROLE {name} LOGIN")
    yield name
    postgres.server.execute(f"DROP OWNED BY {name}")
    postgres.server.execute(f"DROP ROLE {name}")


def test_another_role_than_the_stores(joined: Any, store: Any, postgres: Any, role: str) -> None:
    schema = postgres.name
    url = str(postgres.server.url).replace("postgres@", f"{role}@")
    grants = [
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT ON {schema}.kvreplay_meta TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.kvreplay_entries TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    ]
    for grant in grants[:3]:
        with psycopg.connect(url) as own:
            with pytest.raises(StoreError, match="grant the role what"):
                joined(own, never)
            assert own.execute("SELECT 1").fetchall() == [(1,)]
        postgres.server.execute(grant)
    postgres.server.execute(grants[3])
    with psycopg.connect(url) as own:
        assert not joined(own, lambda own: "r").replayed


# A store's own.


def test_a_thread_that_holds_the_stores_own_transaction(
    joined: Any, store: Any, postgres: Any
) -> None:
    with psycopg.connect(postgres.server.url) as own:
        with store.transaction(), pytest.raises(StoreError, match="holds a transaction"):
            joined(own, never)
        assert not joined(own).replayed


def test_close_waits_for_it(joined: Any, replays: Replays, postgres: Any) -> None:
    go, began = threading.Event(), threading.Event()

    def held(connection: Any) -> Any:
        began.set()
        assert go.wait(PATIENCE)
        return "r"

    with psycopg.connect(postgres.server.url) as own:
        caller = Caller(joined, own, held)
        assert began.wait(PATIENCE)
        assert replays.plain.close(0) == 1
        go.set()
        assert caller.result().response == "r"


def test_a_closed_store(joined: Any, store: Any, postgres: Any) -> None:
    store.close()
    with psycopg.connect(postgres.server.url) as own, pytest.raises(StoreError, match="closed"):
        joined(own, never)
