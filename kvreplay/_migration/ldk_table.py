"""ldk-node's table in PostgreSQL, as either side of a migration.

A running node holds an advisory lock on it. It is held here meanwhile, so that no node runs beside
a migration. Nothing of ours is made in the database but, for a destination, that table as ldk-node
makes it, and nothing is stored that ldk-node does not know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from kvreplay._migration.ldk_rows import LdkRows, Rows
from kvreplay.errors import (
    ConfigError,
    CorruptStoreError,
    OutcomeUnknownError,
    StoreError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from kvreplay.store import Change, Entry, SweepResult, check_change, check_name, check_value

__all__ = ["LdkTable"]

_VERSION: Final = "1"  # the comment on the table
_NAMES: Final = "primary_namespace = ? AND secondary_namespace = ? AND key = ?"
_LOOK: Final = """
    SELECT current_database(), pg_backend_pid(), pg_is_in_recovery(), c.oid::bigint,
        (SELECT nspname FROM pg_namespace AS n WHERE n.oid = c.relnamespace),
        obj_description(c.oid, 'pg_class'), (SELECT system_identifier FROM pg_control_system())
    FROM (SELECT to_regclass(?) AS found) AS asked LEFT JOIN pg_class AS c ON c.oid = found"""


class LdkTable(LdkRows):
    """The entries of that table, in the order of their creation. Its node must not run.

    Args:
        url: libpq's, of the server itself.
        table: its name, as the node's configuration has it: ``NAME``, or ``SCHEMA.NAME``.
        writable: it is a destination, and is made if it is missing.

    Raises:
        ConfigError: the table's name is none, or the URL leads to a pooler or a standby.
        StoreNotFoundError: there is no such table.
        CorruptStoreError: it is of another version.
        StoreUnavailableError: its node runs, or the server cannot be reached.
    """

    def __init__(self, url: str, table: str, *, writable: bool) -> None:
        parts = table.split(".")
        if len(parts) > 2 or not all(parts) or not set("?%\0").isdisjoint(table):
            raise ConfigError(
                "the table of ldk-node is NAME or SCHEMA.NAME; nothing was opened: write its name"
                " as the node's configuration has it"
            )
        super().__init__(sql.Identifier(*parts).as_string(), f"the table {table}")
        self._connection = _connected(url)
        try:
            found = self._look(table)
            if found is None and not writable:
                raise StoreNotFoundError(
                    f"there is no table {table} in this database; nothing was read: check the"
                    " database and the name (ldk-node's own default is ldk_data)"
                )
            if found is None:
                self._make(table)
                self._look(table)
            if not writable:
                self._run("SET default_transaction_read_only = on")
        except BaseException:  # an interrupt too: nothing stays open
            self.close()
            raise

    def _look(self, table: str) -> int | None:
        """Lock the table, and return its number; ``None``: there is none."""
        database, pid, standby, found, schema, version, system = self._run(_LOOK, (self._table,))[0]
        if pid != self._connection.info.backend_pid:
            raise ConfigError(
                "this URL leads to a pooler, where ldk-node's lock cannot be held; nothing was"
                " done: name the server itself"
            )
        if standby:
            raise ConfigError(
                "this server is a standby, which does not show whether the node runs; nothing was"
                " done: name the primary"
            )
        bare = table.rpartition(".")[2]
        for name in sorted({table, bare, bare if schema is None else f"{schema}.{bare}"}):
            lock = _lock_of(database, name)
            if not self._run("SELECT pg_try_advisory_lock(?)", (lock,))[0][0]:
                raise StoreUnavailableError(
                    f"ldk-node uses the table {table} now; nothing was done: stop the node, and"
                    " try again"
                )
        if found is not None and version != _VERSION:
            raise CorruptStoreError(
                f"{table} is no table of ldk-node with version {_VERSION} (its comment says"
                f" {version}); nothing was changed: check the name, or upgrade kvreplay"
            )
        self.identity = ("ldk-node", system, database, found)
        number: int | None = found
        return number

    def _make(self, table: str) -> None:
        index = sql.Identifier(f"idx_{table}_paginated").as_string()
        with self._changing(), self._connection.transaction():
            self._run(
                f"CREATE TABLE {self._table} (primary_namespace TEXT NOT NULL, secondary_namespace"
                " TEXT NOT NULL DEFAULT '', key TEXT NOT NULL CHECK (key <> ''), value BYTEA,"
                " sort_order BIGSERIAL CHECK (sort_order >= 0),"
                " PRIMARY KEY (primary_namespace, secondary_namespace, key))"
            )
            self._run(f"COMMENT ON TABLE {self._table} IS '{_VERSION}'")
            self._run(
                f"CREATE INDEX {index} ON {self._table}"
                " (primary_namespace, secondary_namespace, sort_order DESC, key ASC)"
            )

    def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        """Return the value; see :class:`kvreplay.InspectableKVStore`. None has an expiry."""
        return Entry(self.read(primary_namespace, secondary_namespace, key), None)

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        """Create or replace; see :meth:`kvreplay.KVStoreSync.write`."""
        check_name(primary_namespace, secondary_namespace, key)
        check_value(value)
        with self._changing():
            self._put((primary_namespace, secondary_namespace, key), value)

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        """Remove if present; see :meth:`kvreplay.KVStoreSync.remove`."""
        check_name(primary_namespace, secondary_namespace, key)
        with self._changing():
            self._drop((primary_namespace, secondary_namespace, key))

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
        """Compare and put; see :meth:`kvreplay.AtomicKVStore.check_and_put`."""
        change = Change(primary_namespace, secondary_namespace, key, expected, value, expires_at)
        return self.check_and_put_each([change])[0]

    def check_and_put_each(self, changes: Sequence[Change]) -> list[bytes | None]:
        """Make all these changes in one transaction; see :class:`kvreplay.BatchingKVStore`.

        Raises:
            ConfigError: an entry has an expiry.
        """
        for each in changes:
            check_name(each.primary_namespace, each.secondary_namespace, each.key)
            check_change(each.expected, each.value, each.expires_at)
            if each.expires_at is not None:
                raise ConfigError(
                    "an entry has an expiry, which ldk-node's table cannot keep; this batch was not"
                    " written: migrate a store without replay records, or into a store of ours"
                )
        with self._changing(), self._connection.transaction():
            return [self._check_and_put(each) for each in changes]

    def _check_and_put(self, change: Change) -> bytes | None:
        # Nobody comes between: whoever changes the table holds the lock.
        address = (change.primary_namespace, change.secondary_namespace, change.key)
        rows = self._run(f"SELECT value FROM {self._table} WHERE {_NAMES}", address)
        found = self._bytes(rows[0][0]) if rows else None
        if found == change.expected:
            if change.value is None:
                self._drop(address)
            else:
                self._put(address, change.value)
        return found

    def _put(self, address: tuple[str, str, str], value: bytes) -> None:
        self._run(
            f"INSERT INTO {self._table} (primary_namespace, secondary_namespace, key, value)"
            " VALUES (?, ?, ?, ?) ON CONFLICT (primary_namespace, secondary_namespace, key)"
            " DO UPDATE SET value = EXCLUDED.value",
            (*address, value),
        )

    def _drop(self, address: tuple[str, str, str]) -> None:
        self._run(f"DELETE FROM {self._table} WHERE {_NAMES}", address)

    def sweep(self, primary_namespace: str, now: int, limit: int) -> SweepResult:
        """Remove nothing: no entry has an expiry."""
        return SweepResult(0, 0, more=False)

    def close(self) -> None:
        """Close the connection; the node may run again."""
        with suppress(psycopg.Error):  # a connection that is lost keeps no lock
            # Asked for, since the server may notice the end of a connection a little later.
            self._connection.execute("SELECT pg_advisory_unlock_all()")
        self._connection.close()

    def _run(self, statement: str, arguments: tuple[object, ...] = ()) -> Rows:
        try:
            cursor = self._connection.execute(statement.replace("?", "%s"), arguments)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            raise StoreError(
                f"PostgreSQL cannot do this: {_said(error)}; nothing was changed"
            ) from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Tell what is not known: whether a change was made whose answer never came."""
        try:
            yield
        except (StoreError, psycopg.Error) as error:
            if not self._connection.closed and isinstance(error, StoreError):
                raise
            raise OutcomeUnknownError(
                "a change of ldk-node's table was not confirmed: it may or may not have happened;"
                " migrate again, which goes on"
            ) from error


def _connected(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    try:
        conninfo_to_dict(url)
    except psycopg.Error:  # it may show a part of the password
        raise ConfigError(
            "libpq cannot read the URL; nothing was opened: a special character in a name or a"
            " password is percent-encoded, such as %40 for @"
        ) from None
    try:
        return psycopg.connect(url, autocommit=True)
    except psycopg.Error as error:
        raise StoreUnavailableError(
            f"no connection to PostgreSQL: {_said(error)}; nothing was done: check the URL, and"
            " that the server runs"
        ) from error


def _lock_of(database: str, table: str) -> int:
    """Return the number of ldk-node's lock: a hash of both names, each behind its length."""
    names = b"".join(
        len(name).to_bytes(8, "big") + name for name in (database.encode(), table.encode())
    )
    hashed = hashlib.sha256(b"ldk-node:postgres-store" + names).digest()
    return int.from_bytes(hashed[:8], "big", signed=True)


def _said(error: psycopg.Error) -> str:
    """Return what the server says, without a detail that could show a key."""
    return error.diag.message_primary or " ".join(str(error).split())
