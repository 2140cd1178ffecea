"""PostgreSQL stores of one test: each has a schema of its own, and the test's role, which is no superuser.

A store has a path, as those of other engines do, so that the same tests run on it. Nothing is at that path: its
name is a part of the schema's name, and the folder around it has a file ``server``, for other processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from kvreplay import open_store
from kvreplay.backends.postgresql import PostgreSQLStore
from support.postgres import execute

__all__ = ["FAULTS", "FOREIGN", "open_at", "role_of", "schema_at", "url_at"]

Fault = Callable[[Any, Path], AbstractContextManager[object]]


@contextmanager
def role_of(postgres: Any, folder: Path) -> Iterator[None]:
    """Let there be a role with the name of a test's schema, for the stores in this folder."""
    server, name = postgres.server, postgres.name
    with psycopg.connect(server.url) as admin:
        admin.execute("SELECT pg_advisory_xact_lock(1)")  # many tests begin at once
        if not admin.execute("SELECT FROM pg_roles WHERE rolname = 'makers'").rowcount:
            admin.execute("CREATE ROLE makers")
            admin.execute("GRANT CREATE ON DATABASE postgres TO makers")
        admin.execute(f"CREATE ROLE {name} LOGIN IN ROLE makers")
    told = {"admin": server.url, "url": server.url.replace("postgres@", f"{name}@"), "name": name}
    (folder / "server").write_text(json.dumps(told), encoding="utf-8")
    yield
    _end_sessions(server.url, name)
    with psycopg.connect(server.url, autocommit=True) as admin:
        owned = "SELECT nspname FROM pg_namespace WHERE nspowner = %s::regrole"
        for (schema,) in admin.execute(owned, [name]).fetchall():  # one by one: each has its locks
            admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
        admin.execute(f"DROP ROLE {name}")


def schema_at(path: Path) -> str:
    """The schema of the store at this path."""
    return f"{_told(path)['name']}_{path.name}"


def url_at(path: Path) -> str:
    """The URL of the store at this path."""
    return f"{_told(path)['url']}&schema={schema_at(path)}&pool_size=3"


def open_at(path: Path) -> PostgreSQLStore:
    """Open the store at this path, in any process."""
    store = open_store(url_at(path))
    assert isinstance(store, PostgreSQLStore)
    return store


def _told(path: Path) -> dict[str, str]:
    told: dict[str, str] = json.loads((path.parent / "server").read_text(encoding="utf-8"))
    return told


def _end_sessions(admin: str, role: str) -> None:
    execute(
        admin,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = %s",
        role,
    )


# How reading can fail.


def _undone(do: str, undo: str) -> Fault:
    """A statement of the administrator's, and the one that undoes it."""

    @contextmanager
    def fault(store: Any, path: Path) -> Iterator[None]:
        told, names = _told(path), {"schema": schema_at(path), "role": _told(path)["name"]}
        execute(told["admin"], do.format(**names))
        try:
            yield
        finally:
            execute(told["admin"], undo.format(**names))

    return fault


@contextmanager
def sessions_ended(store: Any, path: Path) -> Iterator[None]:
    """The server ends all sessions, as it does when it stops; new ones are welcome."""
    told = _told(path)
    _end_sessions(told["admin"], told["name"])
    yield


@contextmanager
def only_reads(store: Any, path: Path) -> Iterator[None]:
    """All sessions that begin from now on are read-only."""
    told = _told(path)
    execute(told["admin"], f"ALTER ROLE {told['name']} SET default_transaction_read_only = on")
    _end_sessions(told["admin"], told["name"])
    try:
        yield
    finally:
        execute(told["admin"], f"ALTER ROLE {told['name']} RESET default_transaction_read_only")
        _end_sessions(told["admin"], told["name"])


FAULTS: dict[str, Fault] = {
    "the table is renamed": _undone(
        "ALTER TABLE {schema}.kvreplay_entries RENAME TO away",
        "ALTER TABLE {schema}.away RENAME TO kvreplay_entries",
    ),
    "a column is renamed": _undone(
        "ALTER TABLE {schema}.kvreplay_entries RENAME value TO away",
        "ALTER TABLE {schema}.kvreplay_entries RENAME away TO value",
    ),
    "the schema is renamed": _undone(
        "ALTER SCHEMA {schema} RENAME TO {schema}_away",
        "ALTER SCHEMA {schema}_away RENAME TO {schema}",
    ),
    "the schema is denied": _undone(
        "REVOKE ALL ON SCHEMA {schema} FROM {role}", "GRANT ALL ON SCHEMA {schema} TO {role}"
    ),
    "the table is denied": _undone(
        "REVOKE ALL ON {schema}.kvreplay_entries FROM {role}",
        "GRANT ALL ON {schema}.kvreplay_entries TO {role}",
    ),
    "the table can only be read": _undone(
        "REVOKE INSERT, UPDATE, DELETE ON {schema}.kvreplay_entries FROM {role}",
        "GRANT ALL ON {schema}.kvreplay_entries TO {role}",
    ),
    "the sessions are ended": sessions_ended,
    "the server only reads": only_reads,
}


# What others leave.

_TOO_LONG = "N" * 121
_ILLEGAL = ("a.b", "a/b", "a b", " ", "ключ", _TOO_LONG, "a\n", "\n", "ä", "[empty]")


def plant_rows(path: Path) -> None:
    """Rows that another program puts into the table: those whose names are illegal are refused."""
    schema = schema_at(path)
    insert = (
        f"INSERT INTO {schema}.kvreplay_entries (primary_namespace, secondary_namespace, key, value,"
        " created, expires_at) VALUES (%s, %s, %s, '', %s, %s)"
    )
    addresses = [
        (("p", "s", name), (name, "s", "k"), ("p", name, "k"), ("", "", name)) for name in _ILLEGAL
    ]
    refused = [(*each, 1, 1) for some in addresses for each in some]
    refused += [
        ("", "s", "k", 1, 1),
        ("p", "s", "", 1, 1),
        ("p", "s", "k", -1, 1),
        ("p", "s", "k", 0, 1),
    ]
    refused += [("p", "s", "k", 1, -1)]
    with psycopg.connect(_told(path)["admin"], autocommit=True) as connection:
        for row in refused:
            with pytest.raises(psycopg.errors.CheckViolation):
                connection.execute(insert, row)
        legal = ("N" * 120, "N" * 120, "N" * 120, 2**63 - 1, 2**63 - 1)
        connection.execute(insert, legal)
        connection.execute(f"DELETE FROM {schema}.kvreplay_entries WHERE key = %s", [legal[2]])


def plant_beside(path: Path) -> None:
    """Columns, indexes, tables and facts of somebody else."""
    schema = schema_at(path)
    for statement in (
        "ALTER TABLE {}.kvreplay_entries ADD COLUMN note text DEFAULT 'foreign'",
        "CREATE INDEX ON {}.kvreplay_entries (note)",
        "CREATE TABLE {}.kvreplay_other AS SELECT 1 AS foreign_key",
        "INSERT INTO {}.kvreplay_meta VALUES ('foreign', 'foreign')",
    ):
        execute(_told(path)["admin"], statement.format(schema))


FOREIGN: dict[str, Callable[[Path], None]] = {
    "rows": plant_rows,
    "columns and tables": plant_beside,
}
