"""No way to the server, or something else at its end: when a store is opened, and when it connects again later."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.errors import StoreError, StoreNotFoundError, StoreUnavailableError
from support.postgres import Schema, free_port
from support.postgres_faults import A_LITTLE, Opener, rows_of
from support.waiting import until

pytestmark = pytest.mark.any_python

K = ("p", "s", "k")
SECRET = "hunter2"
PLAIN = "sslmode=disable&gssencmode=disable"


@contextmanager
def service(answer: bytes) -> Iterator[int]:
    """Something else that listens on a port: it reads a request and answers this."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if connection.recv(1000):
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def refusal(url: str, kind: type[StoreError]) -> str:
    """Open a store in vain, and return what is said: in time, on one line, and without the password."""
    began = time.monotonic()
    with pytest.raises(kind) as raised:
        open_store(url)
    assert time.monotonic() - began < 2 + A_LITTLE
    for error in (raised.value, raised.value.__cause__):
        assert SECRET not in f"{error} {error!r}"
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)
    assert re.search("; nothing was (done|made)", str(raised.value))
    return str(raised.value)


def at(port: int, database: str = "postgres", user: str = "postgres", query: str = PLAIN) -> str:
    return f"postgresql://{user}:{SECRET}@127.0.0.1:{port}/{database}?reply_timeout=2s&{query}"


def test_nobody_listens() -> None:
    assert "Connection refused" in refusal(at(free_port()), StoreUnavailableError)


def test_there_is_no_such_socket() -> None:
    url = f"postgresql://postgres:{SECRET}@/postgres?host=/nowhere"
    assert "No such file or directory" in refusal(url, StoreUnavailableError)


def test_there_is_no_such_name() -> None:
    url = at(5432).replace("127.0.0.1", "no-such-host.invalid")
    assert "no-such-host.invalid" in refusal(url, StoreUnavailableError)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, b"R\0\0\0\x08\0\0\0\0", b"", b"E"]
)
def test_something_else_listens(answer: bytes) -> None:
    with service(answer) as port:
        refusal(at(port), StoreUnavailableError)


def test_a_server_without_tls_that_was_required(schema: Schema) -> None:
    url = at(schema.server.port, query="sslmode=require")
    assert "SSL" in refusal(url, StoreUnavailableError)


def test_there_is_no_such_database(schema: Schema) -> None:
    said = refusal(at(schema.server.port, "elsewhere"), StoreNotFoundError)
    assert "CREATE DATABASE" in said


def test_there_is_no_such_role(schema: Schema) -> None:
    said = refusal(at(schema.server.port, user="nobody_knows_me"), StoreUnavailableError)
    assert 'role "nobody_knows_me" does not exist' in said


def test_the_server_stands_still(schema: Schema) -> None:
    with schema.server.frozen():
        refusal(at(schema.server.port), StoreUnavailableError)
    open_store(schema.tcp_url).close()


@pytest.fixture
def guarded(schema: Schema) -> Iterator[str]:
    """The URL for a role that needs its password."""
    server = schema.server
    rules = server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{before}")
    server.execute("SELECT pg_reload_conf()")
    server.execute(f"CREATE ROLE guarded LOGIN PASSWORD '{SECRET}'")
    server.execute(f"CREATE SCHEMA {schema.name} AUTHORIZATION guarded")
    yield at(server.port, user="guarded") + f"&schema={schema.name}"
    server.execute("DROP OWNED BY guarded CASCADE")
    server.execute("DROP ROLE guarded")
    rules.write_text(before)
    server.execute("SELECT pg_reload_conf()")


LATER = {
    "another password": (
        "ALTER ROLE guarded PASSWORD 'another'",
        f"ALTER ROLE guarded PASSWORD '{SECRET}'",
        "password authentication failed",
    ),
    "too many connections": (
        "ALTER ROLE guarded CONNECTION LIMIT 0",
        "ALTER ROLE guarded CONNECTION LIMIT -1",
        "too many connections",
    ),
    "no login": (
        "ALTER ROLE guarded NOLOGIN",
        "ALTER ROLE guarded LOGIN",
        "not permitted to log in",
    ),
}


def is_cut_off(store: Any, schema: Schema) -> bool:
    """End the store's connections; say whether it makes no other one. It may have been making one."""
    schema.server.execute(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = 'guarded'"
    )
    try:
        store.read(*K)
    except StoreUnavailableError:
        return True
    return False


@pytest.mark.parametrize("case", LATER)
def test_a_role_that_is_let_in_no_more(
    schema: Schema, guarded: str, opened: Opener, case: str
) -> None:
    worse, better, why = LATER[case]
    store = opened(guarded, lock_timeout="0.7s")
    store.write(*K, b"v")
    schema.server.execute(worse)
    until(lambda: is_cut_off(store, schema))
    assert why in refusal(guarded, StoreUnavailableError)
    for call in (lambda: store.read(*K), lambda: store.write(*K, b"lost")):
        with pytest.raises(StoreUnavailableError, match=f"{why}.*; nothing was done") as raised:
            call()
        assert SECRET not in f"{raised.value!r} {raised.value.__cause__}"
        assert "\n" not in str(raised.value)
    schema.server.execute(better)
    assert store.read(*K) == b"v"
    store.write(*K, b"w")
    assert rows_of(schema) == {"k": b"w"}
