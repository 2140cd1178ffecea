"""What is said to PostgreSQL: each statement is written once, for blocking and awaited calls.

Each is one round trip, and outside of a transaction it is a transaction of its own. Every change

* first bounds its wait for locks, inside the statement: nothing is left of it in the session, so
  that it works behind a pooler such as PgBouncer;
* takes the store's turn, shared: an advisory lock, which ``transaction()`` takes alone; and fails
  if the tables are those of another store now;
* tells the server's time, in its last column.

**How a check-and-put stays right.** Two clients change one row at once. Under READ COMMITTED a
statement sees the rows of its own beginning. One that *reads beside* its write would believe what
it read, and two clients would swap out the same value. So each of these reads by the lock itself:

* ``PUT_NEW`` inserts, and on a conflict updates nothing of the other's row, which locks it and
  returns it as it is *now*. ``xmax`` is 0 only in a row that was inserted.
* ``SWAP`` and ``DROP`` lock the row first (``cur``), which waits for others and then shows its
  newest version. Only what was locked is compared and changed.

If a row was removed and made again in *one* transaction of somebody else, ``SWAP`` and ``DROP``
find none although there is one. So who finds none reads, and tries again if that finds what was
expected.

In a name the ``%`` is doubled, since each statement is made with parameters, even if it has none.
"""

from __future__ import annotations

import re
from typing import Any, Final

import attrs
from psycopg import sql

from kvreplay.backends._support import SCAN_BYTES

__all__ = [
    "BEGIN",
    "ENTRIES",
    "META",
    "NOW",
    "WALK",
    "Asked",
    "Statement",
    "Statements",
    "milliseconds",
]

ENTRIES: Final = "kvreplay_entries"
META: Final = "kvreplay_meta"

NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
"""The server's time, in microseconds since the epoch."""

WALK: Final = 1000
"""How many entries a walk takes in one statement."""


@attrs.frozen(eq=False)
class Statement:
    """A statement.

    Attributes:
        changes: if its answer is lost, nobody knows whether it happened.
    """

    text: str
    changes: bool = False


BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"


def milliseconds(wait: float | None) -> str:
    """Return a bound of ``lock_timeout``, given in seconds; ``None``: no limit."""
    return "0" if wait is None else f"{min(max(1, int(wait * 1000)), _LONGEST)}ms"


Asked = tuple[Statement, dict[str, Any]]
"""A statement, and its parameters by name."""

_LONGEST: Final = 2**31 - 1  # milliseconds: 24 days, the longest that PostgreSQL takes
_HERE: Final = "(t.primary_namespace, t.secondary_namespace, t.key) = (%(p)s, %(s)s, %(k)s)"
_NAMESPACE: Final = "primary_namespace = %(p)s AND secondary_namespace = %(s)s"
_BOUND: Final = "set_config('lock_timeout', %(wait)s, true)"
_DURABLY: Final = "set_config('synchronous_commit', %(commit)s, true)"
# Puts back the caller's own bound of a transaction; in one of our own it changes nothing.
_AFTER: Final = "set_config('lock_timeout', %(after)s, true)"


class Statements:
    """The statements on the tables of one schema.

    Args:
        joined: inside a transaction of somebody else, whose commit is not ours to weaken.
    """

    def __init__(self, schema: str, *, joined: bool = False) -> None:
        named = {
            f"<{name}>": sql.Identifier(schema, table).as_string().replace("%", "%%")
            for name, table in (("entries", ENTRIES), ("meta", META))
        }
        # There is no such setting: to ask for it is an error, and nothing is done.
        same = """coalesce(
            (SELECT %(turn)s::bigint FROM <meta> WHERE name = 'id' AND value = %(id)s),
            current_setting('kvreplay.another_store')::bigint)"""
        turn = f"{_BOUND}, pg_advisory_xact_lock_shared(%(turn)s::bigint)"
        if not joined:  # else all of this was seen to, when the block began
            turn = f"{_BOUND}, pg_advisory_xact_lock_shared({same}), {_DURABLY}"
        bounded = f"WITH turn AS MATERIALIZED (SELECT {turn})"
        first = "(SELECT true FROM turn) IS NOT NULL"
        locked = f"""{bounded},
            cur AS MATERIALIZED (
                SELECT t.value FROM <entries> AS t WHERE {_HERE} AND {first} FOR UPDATE OF t)"""
        # A row even if it has found none: only that puts the caller's bound back.
        ends = f"""SELECT cur.value, EXISTS (SELECT FROM changed), {_AFTER}, {NOW}
            FROM turn LEFT JOIN cur ON true"""

        def look(text: str, *, changes: bool = False) -> Statement:
            line = " ".join(text.split())
            return Statement(re.sub("<(?:entries|meta)>", lambda at: named[at[0]], line), changes)

        def change(text: str) -> Statement:
            return look(text, changes=True)

        self.alone = look(f"SELECT {_BOUND}, {_DURABLY}, pg_advisory_xact_lock({same})")
        self.read = look(f"SELECT value FROM <entries> AS t WHERE {_HERE}")
        self.read_entry = look(f"SELECT value, expires_at FROM <entries> AS t WHERE {_HERE}")
        self.keys = look(f"SELECT key FROM <entries> WHERE {_NAMESPACE}")
        self.all_keys = look(f"""
            SELECT primary_namespace, secondary_namespace, key FROM <entries>
            WHERE (primary_namespace, secondary_namespace, key) > (%(p)s, %(s)s, %(k)s)
            ORDER BY primary_namespace, secondary_namespace, key LIMIT {WALK}""")
        self.scan = look(f"""
            SELECT primary_namespace, secondary_namespace, key, value, expires_at FROM (
                SELECT *, sum(octet_length(value)) OVER (
                    ORDER BY primary_namespace, secondary_namespace, key
                    ROWS UNBOUNDED PRECEDING) - octet_length(value) AS before
                FROM (
                    SELECT primary_namespace, secondary_namespace, key, value, expires_at
                    FROM <entries>
                    WHERE (primary_namespace, secondary_namespace, key) > (%(p)s, %(s)s, %(k)s)
                    ORDER BY primary_namespace, secondary_namespace, key LIMIT {WALK}) AS page
                ) AS summed
            WHERE before < {SCAN_BYTES}
            ORDER BY primary_namespace, secondary_namespace, key""")
        self.page, self.page_with_values = (
            look(f"""
                SELECT key, created, {value} FROM <entries>
                WHERE {_NAMESPACE} AND created <= %(created)s::bigint
                AND NOT (created = %(created)s::bigint AND key <= %(k)s)
                ORDER BY created DESC, key ASC LIMIT %(limit)s::bigint""")
            for value in ("NULL", "value")
        )
        insert = f"""
            INSERT INTO <entries> AS t
            (primary_namespace, secondary_namespace, key, value, expires_at)
            SELECT %(p)s, %(s)s, %(k)s, %(value)s, %(expires_at)s::bigint
            FROM (SELECT {turn} OFFSET 0) AS turn
            ON CONFLICT (primary_namespace, secondary_namespace, key) DO UPDATE"""
        self.put_new = change(f"""
            {insert} SET key = EXCLUDED.key RETURNING t.value, t.xmax = 0, {_AFTER}, {NOW}""")
        self.write = change(f"""
            {insert} SET value = EXCLUDED.value, expires_at = EXCLUDED.expires_at
            RETURNING {_AFTER}, {NOW}""")
        self.swap = change(f"""{locked},
            changed AS (
                UPDATE <entries> AS t SET value = %(value)s, expires_at = %(expires_at)s::bigint
                FROM cur WHERE {_HERE} AND cur.value = %(expected)s RETURNING 1)
            {ends}""")
        self.drop = change(f"""{locked},
            changed AS (
                DELETE FROM <entries> AS t USING cur
                WHERE {_HERE} AND cur.value = %(expected)s RETURNING 1)
            {ends}""")
        self.remove = change(f"""{bounded},
            changed AS (DELETE FROM <entries> AS t WHERE {_HERE} AND {first} RETURNING 1)
            SELECT count(*), {_AFTER}, {NOW} FROM changed""")
        self.sweep = change(f"""{bounded},
            due AS MATERIALIZED (
                SELECT t.primary_namespace, t.secondary_namespace, t.key FROM <entries> AS t
                WHERE t.primary_namespace = %(p)s AND t.expires_at <= %(now)s::bigint AND {first}
                ORDER BY t.expires_at LIMIT %(limit)s::bigint FOR UPDATE OF t SKIP LOCKED),
            changed AS (
                DELETE FROM <entries> AS t USING due
                WHERE (t.primary_namespace, t.secondary_namespace, t.key)
                    = (due.primary_namespace, due.secondary_namespace, due.key) RETURNING 1)
            SELECT (SELECT count(*) FROM due), (SELECT count(*) FROM changed), {_AFTER}, {NOW}""")
        self.is_due = look("""
            SELECT 1 FROM <entries> WHERE primary_namespace = %(p)s
            AND expires_at <= %(now)s::bigint LIMIT 1 FOR UPDATE SKIP LOCKED""")
        # Of a caller's transaction: is it this store's database, can it write, and does it see what
        # others commit? It puts back what `gate` has changed.
        self.where = look(f"""
            SELECT (SELECT value FROM <meta> WHERE name = 'id'),
                (SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database()),
                current_setting('transaction_read_only'),
                current_setting('transaction_isolation'), {_AFTER}, {NOW}""")
        self._lock = look("LOCK TABLE <entries> IN ROW EXCLUSIVE MODE").text

    def gate(self, wait: str) -> tuple[str, str]:
        """Return what takes the table's lock for a caller's transaction, within a bound.

        A statement waits for the locks of its tables before any of it runs, so none can bound that
        by itself. All changes take this lock; once it is there, they do not wait for it.

        Returns:
            Two statements, without parameters. The first has one row: the caller's own bound.
        """
        bound = f"set_config('lock_timeout', '{wait}', true)"
        return f"SELECT current_setting('lock_timeout'), {bound}", self._lock
