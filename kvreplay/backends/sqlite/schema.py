"""The tables: ldk-node's own, exactly as ldk-node makes it, and two of ours beside it.

``ldk_node_data`` holds the entries, so that a node's own ``ldk_node_data.sqlite`` opens here, and
its node opens it afterwards (ldk-node, ``src/io/sqlite_store``). Its ``sort_order`` numbers the
creations. ldk-node counts them in its memory, so both must never use a database at the same time.

``kvreplay_expiry`` holds the expiry of entries that have one, ``kvreplay_meta`` the store's random
id, the version of our own tables, the last creation number that was given, and how often a failed
commit was written over.
"""

from __future__ import annotations

import sqlite3
import uuid
from typing import Final

from kvreplay.errors import CorruptStoreError

__all__ = [
    "NODE_TABLE",
    "NODE_VERSION",
    "add_own_tables",
    "check",
    "is_empty",
    "make",
    "make_wal",
    "renew_id",
]

NODE_TABLE: Final = "ldk_node_data"
NODE_VERSION: Final = 3
_FORMAT: Final = 1
_MAX_ORDER: Final = 2**62  # half of the creation numbers is kept for those to come

_NODE_COLUMNS: Final = ("primary_namespace", "secondary_namespace", "key", "value", "sort_order")
_NODE: Final = (
    f"""CREATE TABLE IF NOT EXISTS {NODE_TABLE} (
            primary_namespace TEXT NOT NULL,
            secondary_namespace TEXT DEFAULT "" NOT NULL,
            key TEXT NOT NULL CHECK (key <> ''),
            value BLOB,
            sort_order INTEGER NOT NULL DEFAULT 0,
            PRIMARY KEY ( primary_namespace, secondary_namespace, key )
        )""",
    f"""CREATE INDEX IF NOT EXISTS idx_{NODE_TABLE}_paginated
        ON {NODE_TABLE} (primary_namespace, secondary_namespace, sort_order DESC, key ASC)""",
    f"PRAGMA user_version = {NODE_VERSION}",
)
_OWN: Final = (
    """CREATE TABLE IF NOT EXISTS kvreplay_meta (
            name TEXT PRIMARY KEY NOT NULL,
            value NOT NULL
        ) WITHOUT ROWID""",
    # An expiry counts only for the entry with its sort_order: not for one that ldk-node has
    # removed and made anew.
    """CREATE TABLE IF NOT EXISTS kvreplay_expiry (
            primary_namespace TEXT NOT NULL,
            secondary_namespace TEXT NOT NULL,
            key TEXT NOT NULL,
            sort_order INTEGER NOT NULL,
            expires_at INTEGER NOT NULL,
            PRIMARY KEY (primary_namespace, secondary_namespace, key)
        ) WITHOUT ROWID""",
    """CREATE INDEX IF NOT EXISTS kvreplay_expiry_due
        ON kvreplay_expiry (primary_namespace, expires_at)""",
)


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the database has no table at all."""
    return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None


def make_wal(connection: sqlite3.Connection, path: str) -> None:
    """Let the database have a write-ahead log, which the file remembers."""
    if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise CorruptStoreError(
            f"the SQLite database {path} cannot have a write-ahead log here: nothing was changed;"
            " give a path on a local file system"
        )


def make(connection: sqlite3.Connection) -> None:
    """Make all tables in an empty database, in the caller's transaction."""
    for statement in _NODE:
        connection.execute(statement)


def add_own_tables(connection: sqlite3.Connection, path: str) -> None:
    """Make our own tables where they are missing, in the caller's transaction.

    The creation numbers go on after the greatest that there is: ldk-node may have given some.

    Raises:
        CorruptStoreError: the greatest is none, so that no number could follow it.
    """
    for statement in _OWN:
        connection.execute(statement)
    for name, value in (
        ("format", _FORMAT),
        ("id", uuid.uuid4().hex),
        ("last_order", 0),
        ("settled", 0),
    ):
        connection.execute("INSERT OR IGNORE INTO kvreplay_meta VALUES (?, ?)", (name, value))
    greatest = connection.execute(f"SELECT max(sort_order) FROM {NODE_TABLE}").fetchone()[0] or 0
    if not isinstance(greatest, int | float) or greatest >= _MAX_ORDER:
        raise CorruptStoreError(
            f"the greatest sort_order in the table {NODE_TABLE} of {path} is no creation number"
            " that another one could follow: another program has written it; nothing was changed:"
            " give that row a smaller one, or restore the file from a backup"
        )
    connection.execute(
        "UPDATE kvreplay_meta SET value = max(value, ?) WHERE name = 'last_order'",
        (int(greatest),),
    )


def renew_id(connection: sqlite3.Connection) -> None:
    """Give a copy of a store an id of its own, by which it is another store."""
    connection.execute("UPDATE kvreplay_meta SET value = ? WHERE name = 'id'", (uuid.uuid4().hex,))


def check(connection: sqlite3.Connection, path: str) -> None:
    """Refuse a database that is not one of this version; change nothing.

    Raises:
        CorruptStoreError: another program's, or of another version; the message says which.
    """
    # All rows at once: an interrupt in a loop over the cursor would keep the connection open.
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()}
    if NODE_TABLE not in names:
        raise CorruptStoreError(
            f"{path} is an SQLite database of another program: it has no table {NODE_TABLE};"
            " nothing was changed; give kvreplay a file of its own"
        )
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version < NODE_VERSION:
        raise CorruptStoreError(
            f"{path} has version {version} of ldk-node's table, and kvreplay uses version"
            f" {NODE_VERSION}: nothing was changed; let a present ldk-node open it once, which"
            " migrates it"
        )
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({NODE_TABLE})").fetchall()]
    if version > NODE_VERSION or sorted(columns) != sorted(_NODE_COLUMNS):
        raise CorruptStoreError(
            f"{path} has a newer or another table than version {NODE_VERSION} of ldk-node's (it"
            f" says version {version}): nothing was changed; use the program that wrote it"
        )
    if f"idx_{NODE_TABLE}_paginated" not in names:
        raise CorruptStoreError(
            f"{path} has lost the index idx_{NODE_TABLE}_paginated of ldk-node's table: nothing was"
            " changed; restore it from a backup"
        )
    if "kvreplay_meta" in names:
        row = connection.execute("SELECT value FROM kvreplay_meta WHERE name = 'format'").fetchone()
        if row is None or row[0] != _FORMAT:
            raise CorruptStoreError(
                f"the SQLite store {path} has another format than this kvreplay knows: nothing was"
                " changed; use the version that wrote it"
            )
