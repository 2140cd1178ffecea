"""Open a store: make its tables if there are none, or refuse; and greet each new connection."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any, Final

import attrs
import psycopg
from psycopg import errors, sql

from kvreplay.backends.postgresql.clock import ServerClock, ticks
from kvreplay.backends.postgresql.errors import another_store, cannot_connect, failure
from kvreplay.backends.postgresql.links import AsyncLink, Link
from kvreplay.backends.postgresql.statements import ENTRIES, META, NOW, milliseconds
from kvreplay.backends.postgresql.timeline import NO_TIMELINE, TIMELINE, Timeline, is_standby
from kvreplay.errors import ConfigError, CorruptStoreError, StoreError, StoreNotFoundError
from kvreplay.store import Durability

__all__ = ["Place", "greeted", "open_place"]

_FORMAT: Final = "1"
_MAKING: Final = 0x6B767265706C6179  # the advisory lock of whoever makes tables: "kvreplay"
# No code comes with the refusal of a connection. In another language it is one of those.
_NO_DATABASE: Final = re.compile('FATAL: +database ".*" does not exist')
_ROOM: Final = "make it by CREATE SCHEMA, or name another one by schema="

_GREETING: Final = """
    SELECT (SELECT value FROM {meta} WHERE name = 'id'), pg_backend_pid(),
        current_setting('synchronous_commit'), {timeline},
        set_config('lock_timeout', %(wait)s, pg_backend_pid() <> %(pid)s),
        {now}"""


@attrs.frozen(repr=False, kw_only=True)
class Place:
    """Where a store is, and what its sessions keep to; durations in seconds.

    Attributes:
        turn: the advisory lock that is the store's write lock.
        meta: the name of the table that says which store this is, quoted for a statement with
            parameters.
    """

    conninfo: str
    schema: str
    id: str
    database: int
    lock_timeout: float
    reply_timeout: float
    pool_size: int
    durability: Durability
    timeline: str
    """How a server is asked for its timeline."""

    turn: int = attrs.field(init=False)
    meta: str = attrs.field(init=False)

    @turn.default
    def _turn_of(self) -> int:
        return int.from_bytes(uuid.UUID(self.id).bytes[:8], signed=True)

    @meta.default
    def _meta_of(self) -> str:
        return sql.Identifier(self.schema, META).as_string().replace("%", "%%")

    def greeting(self, link: Link | AsyncLink) -> tuple[str, dict[str, Any]]:
        """Return what a new connection is asked; ``greeted`` looks at the answer.

        A statement waits for the lock of its table before it can bound that wait itself. So the
        bound is a setting of the session too, but not behind a pooler: others would inherit it.
        """
        given = {"wait": milliseconds(self.lock_timeout), "pid": link.pgconn.backend_pid}
        return _GREETING.format(meta=self.meta, timeline=self.timeline, now=NOW), given


def greeted(
    link: Link | AsyncLink, row: Sequence[Any] | None, place: Place, timeline: Timeline
) -> None:
    """Look whether a new connection leads to this store, and how it is to be used.

    Raises:
        CorruptStoreError: it leads to another store, or to none.
        StoreUnavailableError: it leads to a standby, or to an old primary.
    """
    if row is None or row[0] != place.id:
        raise another_store()
    if row[1] != link.pgconn.backend_pid:
        link.prepare_threshold = None  # a pooler: the next transaction may be another session
    if row[2] != "off":
        link.synchronous_commit = row[2]
    timeline.saw(link, row[3])


def open_place(
    conninfo: str,
    *,
    schema: str | None,
    create: bool,
    durability: Durability,
    lock_timeout: float,
    reply_timeout: float,
    pool_size: int,
    clock: ServerClock,
) -> Place:
    """Look for the store on a connection of its own, and make it if that is wanted.

    The clock is told the server's time: it may be asked before there is another connection.
    """
    try:
        link = Link.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        if _NO_DATABASE.search(str(error)):
            raise StoreNotFoundError(
                "the database does not exist on this server; nothing was made: make it by CREATE"
                " DATABASE"
            ) from error
        raise cannot_connect(error) from error
    link.answer_within = lock_timeout + reply_timeout
    try:
        with link.cursor() as cursor:
            timeline = _way_to_ask_for_the_timeline(cursor)
            found, database, fsync = _look(cursor, schema, clock)
            if durability == "full" and fsync != "on":
                raise ConfigError(
                    "this PostgreSQL server runs with fsync=off, so that no change survives a power"
                    ' cut; nothing was opened: set fsync=on, or open it with durability="process"'
                )
            if found is None:
                raise StoreNotFoundError(
                    "no schema of the search_path exists; nothing was made: " + _ROOM
                )
            id_ = _id_in(cursor, found)
            if id_ is None and not create:
                raise StoreNotFoundError(
                    f'there is no store in the schema "{found}", and create is false; nothing was'
                    " made: kvreplay init makes one"
                )
            if id_ is None:
                id_ = _make(cursor, found, lock_timeout)
    except psycopg.Error as error:
        raise failure(error, changing=False, lost=link.closed) from error
    finally:
        link.close()
    return Place(
        conninfo=conninfo,
        schema=found,
        id=id_,
        database=database,
        lock_timeout=lock_timeout,
        reply_timeout=reply_timeout,
        pool_size=pool_size,
        durability=durability,
        timeline=timeline,
    )


def _way_to_ask_for_the_timeline(cursor: psycopg.Cursor[Any]) -> str:
    """Return it, unless this server is a standby. Those of some providers cannot tell."""
    try:
        row = cursor.execute(f"SELECT {TIMELINE}").fetchone()
    except psycopg.DatabaseError:
        if cursor.connection.closed:
            raise
        return NO_TIMELINE
    if row is None or row[0] is None:
        raise is_standby()
    return TIMELINE


def _look(
    cursor: psycopg.Cursor[Any], schema: str | None, clock: ServerClock
) -> tuple[str | None, int, str]:
    asked_at = ticks()
    row = cursor.execute(
        "SELECT current_schema(), oid::bigint, current_setting('fsync'),"
        f" {NOW}"
        " FROM pg_catalog.pg_database WHERE datname = current_database()"
    ).fetchone()
    assert row is not None  # the database that this is connected to
    clock.told(row[3], asked_at)
    return schema or row[0], row[1], row[2]


def _id_in(cursor: psycopg.Cursor[Any], schema: str) -> str | None:
    """Return the id of the store in a schema; ``None``: there is none."""
    meta = sql.Identifier(schema, META)
    # Not to_regclass(): it may remember that there was none before another session made it.
    if cursor.execute(_THERE, (schema, META)).fetchone() is None:
        return None
    query = sql.SQL("SELECT name, value FROM {} WHERE name IN ('format', 'id')").format(meta)
    told = dict(cursor.execute(query).fetchall())
    if told.get("format") != _FORMAT or "id" not in told:
        raise CorruptStoreError(
            f'the tables in the schema "{schema}" are of another version of kvreplay, or of'
            " something else; nothing was changed: upgrade kvreplay, or name another schema"
        )
    id_: str = told["id"]
    return id_


def _make(cursor: psycopg.Cursor[Any], schema: str, lock_timeout: float) -> str:
    """Make the tables, unless somebody is faster; return the store's id."""
    names = {
        "schema": sql.Identifier(schema),
        "entries": sql.Identifier(schema, ENTRIES),
        "meta": sql.Identifier(schema, META),
        "due": sql.Identifier(f"{ENTRIES}_due"),
        "created": sql.Identifier(f"{ENTRIES}_created"),
    }
    try:
        with cursor.connection.transaction():
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true), pg_advisory_xact_lock(%s)",
                (milliseconds(lock_timeout), _MAKING),
            )
            id_ = _id_in(cursor, schema)
            if id_ is not None:
                return id_
            named = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %s"
            if cursor.execute(named, (schema,)).fetchone() is None:
                cursor.execute(sql.SQL("CREATE SCHEMA {schema}").format(**names))
            for statement in _TABLES:
                cursor.execute(sql.SQL(statement).format(**names))
            id_ = str(uuid.uuid4())
            insert = sql.SQL("INSERT INTO {meta} VALUES ('format', {format}), ('id', {id})")
            cursor.execute(insert.format(**names, format=_FORMAT, id=id_))
    except errors.InsufficientPrivilege as error:
        raise StoreError(
            f'the role may not make the tables in the schema "{schema}"; nothing was made: grant'
            " CREATE on the schema, or run kvreplay init as a role that may"
        ) from error
    except errors.ReadOnlySqlTransaction as error:
        raise StoreNotFoundError(
            f'there is no store in the schema "{schema}", and this server only reads, as a standby'
            " does; nothing was made: name the primary"
        ) from error
    return id_


_THERE: Final = """
    SELECT 1 FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s"""

_TABLES: Final = (
    """CREATE TABLE {entries} (
        primary_namespace text COLLATE "C" NOT NULL,
        secondary_namespace text COLLATE "C" NOT NULL,
        key text COLLATE "C" NOT NULL,
        value bytea NOT NULL,
        created bigint GENERATED BY DEFAULT AS IDENTITY NOT NULL CHECK (created > 0),
        expires_at bigint CHECK (expires_at >= 0),
        PRIMARY KEY (primary_namespace, secondary_namespace, key),
        CONSTRAINT legal_names CHECK (
            primary_namespace || secondary_namespace || key !~ '[^A-Za-z0-9_-]'
            AND greatest(length(primary_namespace), length(secondary_namespace), length(key))
                <= 120
            AND key <> '' AND (primary_namespace <> '' OR secondary_namespace = '')))""",
    """CREATE INDEX {due} ON {entries} (primary_namespace, expires_at)
        WHERE expires_at IS NOT NULL""",
    """CREATE INDEX {created} ON {entries}
        (primary_namespace, secondary_namespace, created DESC, key)""",
    """CREATE TABLE {meta} (name text COLLATE "C" PRIMARY KEY, value text NOT NULL)""",
)
