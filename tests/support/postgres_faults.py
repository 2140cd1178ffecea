"""What the tests of PostgreSQL's faults have in common: both faces of a store, and other clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from kvreplay import open_store
from kvreplay.testing.blocking import Blocking
from support.waiting import until

__all__ = ["A_LITTLE", "FACES", "Opener", "held", "rows_of", "until_idle", "until_waiting"]

FACES = ("blocking", "awaited")

A_LITTLE = 5.0
"""Seconds, beyond its bound, that a call may take on a machine that is busy."""


class Opener:
    """``opener(url, lock_timeout="1s")`` opens a store, and returns the face that is tested."""

    def __init__(self, face: str) -> None:
        self._face = face
        self._opened: list[Any] = []

    def __call__(self, url: str, **options: Any) -> Any:
        store = open_store(url + "".join(f"&{name}={of}" for name, of in options.items()))
        self._opened.append(store)
        if self._face == "blocking":
            return store
        awaited = Blocking(lambda: store.awaited)  # type: ignore[attr-defined]
        self._opened.append(awaited)
        return awaited

    def close(self) -> None:
        while self._opened:
            self._opened.pop().close()


@contextmanager
def held(server: Any, statement: str) -> Iterator[psycopg.Connection[Any]]:
    """Another client's transaction: it has made this statement, and is undone at the end."""
    connection = psycopg.connect(server.url)
    try:
        connection.execute(statement.encode())
        yield connection
    finally:
        connection.close()


def until_waiting(server: Any, clients: int, name: str = "kvreplay") -> None:
    """Wait until so many clients of this ``application_name`` wait for a lock of another one."""
    text = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND application_name = %s"
    )
    until(lambda: server.execute(text, name) == [(clients,)])


def rows_of(schema: Any) -> dict[str, bytes]:
    """What is committed, by a client of its own: the values by their keys."""
    return dict(schema.server.execute(f"SELECT key, value FROM {schema.name}.kvreplay_entries"))


def until_idle(schema: Any) -> None:
    """Wait until the clients whose ``application_name`` is that of the schema ask for nothing."""
    text = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name = %s"
        " AND (state <> 'idle' OR backend_xid IS NOT NULL)"
    )
    until(lambda: not schema.server.execute(text, schema.name))
