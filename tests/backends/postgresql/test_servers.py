"""The servers that the tests of this engine start: each can do what those tests rely on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from support.postgres import VERSIONS, Server
from support.shared_postgres import shared_server


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(request.param) as server:
        yield server


def test_a_server_answers_by_its_socket_and_by_tcp(server: Server) -> None:
    for url in (server.url, server.tcp_url):
        with psycopg.connect(url) as connection:
            assert connection.info.server_version // 10_000 == server.version


def test_what_was_committed_survives_a_kill(server: Server) -> None:
    server.execute("CREATE TABLE kept AS SELECT 1 AS it")
    with psycopg.connect(server.tcp_url) as open_one:
        open_one.execute("INSERT INTO kept VALUES (2)")
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            open_one.execute("SELECT 1")
    assert not server.runs
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.tcp_url)
    server.start()
    assert server.execute("SELECT it FROM kept") == [(1,)]


def test_schemas(postgres: Any) -> None:
    with psycopg.connect(shared_server().url) as connection:
        connection.execute(f"CREATE SCHEMA {postgres.name}")
