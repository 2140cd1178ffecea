"""A store in PostgreSQL as either side of a migration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvreplay import ConfigError, Progress, migrate, open_store
from support.extras import needs_postgresql
from support.migrations import MARK, content, fill, order

pytestmark = needs_postgresql


class Stopped(Exception):
    """The migration ends here."""


def stopping(progress: Progress) -> None:
    if progress.step == "verify":
        raise Stopped


def test_all_comes_along_there_and_back(postgres: Any, tmp_path: Path) -> None:
    one, two = f"lmdb:{tmp_path}/one", f"sqlite:{tmp_path}/two"
    with open_store(one) as store:
        fill(store)
        expected, ordered = content(store), order(store)
    there = migrate(one, postgres.url)
    back = migrate(postgres.url.replace("postgresql:", "postgres:"), two)
    assert (there.entries, there.copied, there.ordered) == (back.entries, back.copied, True)
    for url in (postgres.url, two):
        with open_store(url) as store:
            assert content(store) == expected
            assert order(store) == ordered


def test_a_source_is_told_by_its_store_and_not_by_its_url(postgres: Any, tmp_path: Path) -> None:
    """One URL has many schemas, and one store many URLs."""
    from support.postgres import new_schema

    with new_schema(postgres.server) as other:
        for schema in (postgres, other):
            with open_store(schema.url) as store:
                fill(store)
        destination = f"sqlite:{tmp_path}/file"
        url = postgres.url.replace("postgres@", "postgres:hunter2@")
        with pytest.raises(Stopped):
            migrate(url, destination, on_progress=stopping)
        with open_store(destination) as store:
            assert b"hunter2" not in store.read(*MARK)
        with pytest.raises(ConfigError, match="another source"):
            migrate(other.url, destination)
        assert migrate(postgres.tcp_url, destination).copied == 0
        with pytest.raises(ConfigError, match="one store"):
            migrate(postgres.url, postgres.tcp_url)


def test_a_source_is_never_made(postgres: Any, tmp_path: Path) -> None:
    from kvreplay import StoreNotFoundError

    with pytest.raises(StoreNotFoundError):
        migrate(postgres.url, f"lmdb:{tmp_path}/one")
    rows = postgres.server.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", postgres.name)
    assert rows == []
    assert list(tmp_path.iterdir()) == []
