"""Names, encodings, settings and clocks as they are found in the world: the store works, or says what is wrong."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

psycopg = pytest.importorskip("psycopg")

from kvreplay import KeyNotFoundError, Replay, StoreError, StoreUnavailableError, open_store  # noqa: E402
from support.postgres import VERSIONS  # noqa: E402
from support.postgres_faults import held  # noqa: E402
from support.shared_postgres import shared_server  # noqa: E402

ADDRESS = ("n", "s", "k")
NAMES = (
    "per%cent",
    "per%sent",
    "per%(p)sent",
    "two  spaces",
    'quo"te.d',
    "it's",
    "back\\slash",
    "<meta> {0}",
    "UPPER",
    "ümläut",
    "l" * 63,
)


def changes(store: Any) -> None:
    """Go through each statement that a replay makes, and the walks."""
    put = store.check_and_put
    assert put(*ADDRESS, expected=None, value=b"1") is None
    assert put(*ADDRESS, expected=None, value=b"2") == b"1"
    assert put(*ADDRESS, expected=b"2", value=b"3") == b"1"
    assert put(*ADDRESS, expected=b"1", value=b"1", expires_at=5) == b"1"
    assert store.read_entry(*ADDRESS).expires_at == 5
    assert store.list("n", "s") == store.list_paginated("n", "s").keys == ["k"]
    assert list(store.list_all_keys()) == [ADDRESS]
    assert put(*ADDRESS, expected=b"1", value=None) == b"1"
    assert put(*ADDRESS, expected=b"1", value=None) is None
    with store.transaction() as transaction:
        transaction.write(*ADDRESS, b"4")
    assert store.read(*ADDRESS) == b"4"
    store.remove(*ADDRESS)
    assert store.sweep("n", 9, 10).removed == 0


def pays(store: Any, url: str) -> None:
    """Replay, by itself and in a caller's own transaction."""
    replay = Replay(store, "pay", ttl=60)
    assert replay.execute(("payer", "1"), 5, lambda: 5).response == 5
    assert replay.execute(("payer", "1"), 5, lambda: 6).response == 5
    with psycopg.connect(url) as connection:
        for is_retry in (False, True):
            outcome = replay.execute_in_transaction(
                ("payer", "2"), 5, lambda _: 5, connection=connection
            )
            assert (outcome.response, outcome.replayed) == (5, is_retry)


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Any:
    return shared_server(request.param)


@pytest.fixture
def named(server: Any) -> Iterator[Any]:
    """``named(name)``: a URL with a schema of this name."""
    made: list[str] = []

    def url_of(name: str) -> str:
        made.append(name)
        return f"{server.url}&schema={quote(name)}"

    yield url_of
    for name in made:
        with psycopg.connect(server.url, autocommit=True) as connection:
            schema = psycopg.sql.Identifier(name)
            connection.execute(psycopg.sql.SQL("DROP SCHEMA {} CASCADE").format(schema))


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_schema(server: Any, named: Any, name: str) -> None:
    url = named(name)
    with open_store(url) as store:
        changes(store)
        pays(store, server.url)
    with open_store(f"{url}&create=false") as store:
        assert store.list("pay", "payer")
    assert server.execute("SELECT to_regnamespace(quote_ident(%s)) IS NULL", name) == [(False,)]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding(server: Any, encoding: str) -> None:
    name = f"of_{encoding.lower()}"
    server.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    url = server.url.replace("/postgres?", f"/{name}?")
    try:
        for _ in ("made", "found"):
            with open_store(url) as store:
                changes(store)
        with open_store(url) as store:
            pays(store, url)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    "setting",
    [
        "bytea_output=escape",
        "standard_conforming_strings=off",
        "client_encoding=SQL_ASCII",
        "default_transaction_isolation=serializable",
        r"default_transaction_isolation=repeatable\ read",
        "default_transaction_deferrable=on",
        "plan_cache_mode=force_generic_plan",
        "transform_null_equals=on",
    ],
)
def test_any_setting_of_the_session(server: Any, named: Any, setting: str) -> None:
    options = "&options=" + quote(f"-c {setting}")
    with open_store(named(f"settings {uuid.uuid4()}") + options) as store:
        changes(store)
        pays(store, server.url + options)


def test_waits_that_are_longer_than_postgresql_knows(postgres: Any) -> None:
    with open_store(f"{postgres.url}&lock_timeout=60d") as store:
        changes(store)
        replay = Replay(store, "pay", ttl=60, wait_timeout="60d")
        with psycopg.connect(postgres.server.url) as connection:
            replay.execute_in_transaction(("a", "b"), 1, lambda _: 1, connection=connection)


def test_a_change_that_finds_nothing_puts_the_callers_lock_timeout_back(postgres: Any) -> None:
    with open_store(postgres.url) as store, psycopg.connect(postgres.server.url) as connection:
        connection.execute("SET LOCAL lock_timeout = '7s'")
        with store.join(connection, lock_timeout=1.0) as joined:  # type: ignore[attr-defined]
            for value in (b"2", None):
                assert joined.check_and_put(*ADDRESS, expected=b"1", value=value) is None
                assert connection.execute("SHOW lock_timeout").fetchone() == ("7s",)


def test_a_timeout_of_the_servers_is_no_refusal(postgres: Any) -> None:
    with open_store(postgres.url + "&options=" + quote("-c statement_timeout=100ms")) as store:
        store.write(*ADDRESS, b"1")
        with held(postgres.server, f"SELECT FROM {postgres.name}.kvreplay_entries FOR UPDATE"):
            with pytest.raises(StoreUnavailableError, match="statement timeout"):
                store.write(*ADDRESS, b"2")
        assert store.read(*ADDRESS) == b"1"


def test_the_servers_time_is_known_before_the_first_call(
    postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep by a wrong clock would remove answers before their time, and retries would run again."""
    monkeypatch.setattr("time.time_ns", lambda: 0)
    with open_store(postgres.url) as store:
        (told,) = postgres.server.execute("SELECT extract(epoch FROM now()) * 1000")
        assert abs(store.clock.now_ms() - told[0]) < 60_000  # type: ignore[attr-defined]


def test_a_broken_off_wait_for_a_standby_is_not_told_of_another_call(postgres: Any) -> None:
    with open_store(postgres.url) as store:
        session: Any = store._session  # type: ignore[attr-defined]
        lease = session.lease(5.0)
        lease.link.unconfirmed = True  # by a call that was broken off
        session.keep(lease)
        with pytest.raises(KeyNotFoundError):
            store.read(*ADDRESS)


def test_a_change_that_a_trigger_prevents_is_not_acknowledged(postgres: Any) -> None:
    with open_store(postgres.url) as store:
        store.write(*ADDRESS, b"1")
        postgres.server.execute(
            f"CREATE FUNCTION {postgres.name}.no() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RETURN NULL; END$$"
        )
        postgres.server.execute(
            f"CREATE TRIGGER no BEFORE UPDATE ON {postgres.name}.kvreplay_entries"
            f" FOR EACH ROW EXECUTE FUNCTION {postgres.name}.no()"
        )
        with pytest.raises(StoreError, match="trigger"):
            store.check_and_put(*ADDRESS, expected=b"1", value=b"2")  # type: ignore[attr-defined]
        assert store.read(*ADDRESS) == b"1"


def test_an_insert_that_a_trigger_prevents_is_not_acknowledged(postgres: Any) -> None:
    with open_store(postgres.url) as store:
        postgres.server.execute(
            f"CREATE FUNCTION {postgres.name}.no() RETURNS trigger LANGUAGE plpgsql AS"
            " $$BEGIN RETURN NULL; END$$"
        )
        postgres.server.execute(
            f"CREATE TRIGGER no BEFORE INSERT ON {postgres.name}.kvreplay_entries"
            f" FOR EACH ROW EXECUTE FUNCTION {postgres.name}.no()"
        )
        with pytest.raises(StoreError, match="trigger"):
            store.check_and_put(*ADDRESS, expected=None, value=b"2")  # type: ignore[attr-defined]
        with pytest.raises(StoreError, match="trigger"):
            store.write(*ADDRESS, b"2")
        with pytest.raises(KeyNotFoundError):
            store.read(*ADDRESS)


@pytest.mark.parametrize("odd", [True, False])
def test_a_callers_own_loader_of_bytea_is_told_before_the_handler(postgres: Any, odd: bool) -> None:
    class Text(psycopg.adapt.Loader):  # type: ignore[name-defined,misc]
        format = psycopg.pq.Format.BINARY

        def load(self, data: Any) -> str:
            return bytes(data).decode("latin-1")

    ran: list[Any] = []
    with (
        open_store(postgres.url) as store,
        psycopg.connect(postgres.server.url) as connection,
    ):
        replay = Replay(store, "ns", ttl=60)

        def pay(own: Any) -> str:
            ran.append(own)
            return "paid"

        if odd:
            connection.adapters.register_loader("bytea", Text)
            with pytest.raises(StoreError, match="loader of your own"):
                replay.execute_in_transaction(("s", "k"), {}, pay, connection=connection)
        else:
            replay.execute_in_transaction(("s", "k"), {}, pay, connection=connection)
        connection.commit()
        assert len(ran) == (not odd)
        assert (replay.lookup(("s", "k"), {}) is None) is odd
