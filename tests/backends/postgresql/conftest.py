"""Both faces of the store, and a server that a test may kill, stop, freeze and change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay import open_store
from support.postgres import Schema, Server, new_schema
from support.postgres_faults import FACES, Opener


@pytest.fixture(params=FACES)
def opened(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """``opened(url)`` opens a store: one test goes over blocking and over awaited calls."""
    opener = Opener(request.param)
    yield opener
    opener.close()


@pytest.fixture
def ledger_store(postgres: Schema) -> Iterator[Any]:
    """A store beside a ledger of the caller's own, in one schema."""
    with open_store(f"{postgres.url}&lock_timeout=10s") as store:
        postgres.server.execute(f"CREATE TABLE {postgres.name}.ledger (payment text, msat int)")
        yield store


@pytest.fixture(scope="session")
def own_servers() -> Iterator[Callable[[int], Server]]:
    """``own_servers(18)``: this process's server of that version."""
    servers: dict[int, Server] = {}

    def server_of(version: int) -> Server:
        server = servers.get(version) or servers.setdefault(version, Server(version))
        if not server.runs:  # a test before this one has failed
            server.start()
        return server

    yield server_of
    for server in servers.values():
        server.close()


@pytest.fixture
def schema(
    request: pytest.FixtureRequest, own_servers: Callable[[int], Server]
) -> Iterator[Schema]:
    """A schema on a server that is this process's own: ``schema.server.kill()``."""
    with new_schema(own_servers(getattr(request, "param", 18))) as schema:
        yield schema
