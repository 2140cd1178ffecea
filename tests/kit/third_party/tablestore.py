"""A backend as somebody else would write it: one table in a SQLite file.

It imports the contract and its driver, nothing else of kvreplay's, and keeps no connection
between calls: so any thread and any forked child may use a store.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import ClassVar

from kvreplay.errors import KeyNotFoundError, OutcomeUnknownError, StoreError, StoreUnavailableError
from kvreplay.store import (
    Closing,
    ForkSafeLock,
    SweepResult,
    check_change,
    check_name,
    check_namespace,
    check_sweep,
    check_value,
)

PAGE = 100

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    p TEXT NOT NULL, s TEXT NOT NULL, k TEXT NOT NULL, value BLOB NOT NULL, expires_at INTEGER,
    PRIMARY KEY (p, s, k)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS due ON entries (p, expires_at) WHERE expires_at IS NOT NULL;
"""

HERE = "p = ? AND s = ? AND k = ?"

# A fork waits for it, so no child is ever in the middle of SQLite.
INSIDE_SQLITE = ForkSafeLock()
os.register_at_fork(before=INSIDE_SQLITE.acquire, after_in_parent=INSIDE_SQLITE.release)


class TableStore(Closing):
    """An ``ExpiringKVStore``; several processes may have it open."""

    LOCATION: ClassVar[str] = "path"
    OPTIONS: ClassVar[dict[str, str]] = {"timeout": "duration"}
    reads_are_local: ClassVar[bool] = True

    def __init__(self, path: str | Path, *, timeout: float = 60.0) -> None:
        self._path, self._timeout = os.path.abspath(path), timeout
        with self._connection() as connection:
            connection.executescript(SCHEMA)

    @property
    def identity(self) -> tuple[str, int, int]:
        """Equal for all stores on one file, by whatever path."""
        file = os.stat(self._path)
        return ("table", file.st_dev, file.st_ino)

    @property
    def owners_file(self) -> str:
        return f"{self._path}-owners"

    def __repr__(self) -> str:
        return f"<TableStore {'closed' if self._closed else 'open'}>"

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        check_name(primary_namespace, secondary_namespace, key)
        with self._connection() as connection:
            found = _find(connection, (primary_namespace, secondary_namespace, key))
        if found is None:
            raise KeyNotFoundError("no entry under that name")
        return found

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        with self._change() as connection:
            _put(connection, (primary_namespace, secondary_namespace, key), value, None)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        check_name(primary_namespace, secondary_namespace, key)
        with self._change() as connection:
            _put(connection, (primary_namespace, secondary_namespace, key), None, None)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        check_namespace(primary_namespace, secondary_namespace)
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT k FROM entries WHERE p = ? AND s = ?",
                (primary_namespace, secondary_namespace),
            )
            return [key for (key,) in rows]

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        page: list[tuple[str, str, str]] = [("", "", "")]  # it is before every address
        while page:
            with self._connection() as connection:
                page = connection.execute(
                    "SELECT p, s, k FROM entries WHERE (p, s, k) > (?, ?, ?)"
                    f" ORDER BY p, s, k LIMIT {PAGE}",
                    page[-1],
                ).fetchall()
            yield from page

    def check_and_put(
        self,
        primary_namespace: str,
        secondary_namespace: str,
        key: str,
        *,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None = None,
    ) -> bytes | None:
        check_name(primary_namespace, secondary_namespace, key)
        check_change(expected, value, expires_at)
        address = (primary_namespace, secondary_namespace, key)
        with self._change() as connection:
            found = _find(connection, address)
            if found == expected:
                _put(connection, address, value, expires_at)
            return found

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        check_sweep(primary_namespace, now, limit)
        with self._change() as connection:
            due = connection.execute(
                "SELECT p, s, k FROM entries WHERE p = ? AND expires_at <= ? LIMIT ?",
                (primary_namespace, min(now, 2**63 - 1), limit + 1),
            ).fetchall()
            connection.executemany(f"DELETE FROM entries WHERE {HERE}", due[:limit])
            removed = len(due[:limit])
            return SweepResult(removed, removed, more=len(due) > limit)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with INSIDE_SQLITE:
            self._check_open()
            try:
                with closing(
                    sqlite3.connect(self._path, timeout=self._timeout, isolation_level=None)
                ) as connection:
                    connection.execute("PRAGMA synchronous = EXTRA")  # survives a power cut
                    yield connection
            except sqlite3.OperationalError as error:
                raise StoreUnavailableError("SQLite refused; nothing was changed") from error
            except sqlite3.Error as error:
                raise StoreError("SQLite failed; nothing was changed") from error

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction; whatever is raised in it, closing its connection rolls it back."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            try:
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise OutcomeUnknownError("SQLite failed in a commit: read again") from error


def _find(connection: sqlite3.Connection, address: tuple[str, str, str]) -> bytes | None:
    row = connection.execute(f"SELECT value FROM entries WHERE {HERE}", address).fetchone()
    return None if row is None else row[0]


def _put(
    connection: sqlite3.Connection,
    address: tuple[str, str, str],
    value: bytes | None,
    expires_at: int | None,
) -> None:
    if value is None:
        connection.execute(f"DELETE FROM entries WHERE {HERE}", address)
    else:
        connection.execute(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", (*address, value, expires_at)
        )
