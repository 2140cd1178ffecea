"""One PostgreSQL server of a version for all processes of a test session (``support.shared_servers``).

::

    server = shared_server(18)                    # server.url, server.tcp_url, server.execute(…)
    with new_schema(server) as schema: ...        # of support.postgres: one a test

Nobody may kill, stop or change this server: a test that does so starts a ``Server`` of its own.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from support.postgres import Server, execute, programs_of
from support.shared_servers import keep, shared

__all__ = ["SharedServer", "shared_server"]

_SETTINGS = {"max_connections": 300}


@attrs.frozen
class SharedServer:
    """What a test may know of the server."""

    version: int
    url: str
    tcp_url: str

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, outside of any transaction; return its rows."""
        return execute(self.url, statement, *parameters)


@functools.cache
def shared_server(version: int = 18) -> SharedServer:
    """Start it, unless it runs. The test is skipped if this machine has no such version."""
    programs_of(version)
    return SharedServer(**shared(f"postgresql-{version}", __name__, str(version)))


def serve() -> None:
    keep(_server)


@contextmanager
def _server() -> Iterator[dict[str, Any]]:
    version = int(sys.argv[1])
    with Server(version, settings=_SETTINGS) as server:
        yield {"version": version, "url": server.url, "tcp_url": server.tcp_url}
