"""How entries lie in the tables, and the steps that change them inside a transaction.

The transaction is each step's last argument: a step is passed on as a ``partial`` without it.

Another program may have put something else there. A row whose names are not legal texts is not
shown, nor swept. A value that is no blob is damaged, and that is told.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import attrs

from kvreplay.backends._support import SCAN_BYTES
from kvreplay.backends.sqlite.errors import is_no_text, lost_row
from kvreplay.backends.sqlite.schema import NODE_TABLE
from kvreplay.errors import CorruptStoreError, StoreError
from kvreplay.store import MAX_NAME_LENGTH, SweepResult, check_namespace
from kvreplay.store.names import are_names

__all__ = [
    "ALL_KEYS",
    "IDENTIFIED",
    "IDENTITY",
    "KEYS",
    "OF_ADDRESSES",
    "OF_KEYS",
    "PAGE",
    "PAGE_AFTER",
    "SCAN",
    "VALUE",
    "WALK",
    "Address",
    "Identity",
    "Transaction",
    "check_and_put",
    "checked",
    "delete",
    "delete_if",
    "first_few",
    "legal_rows",
    "namespace",
    "put",
    "sweep",
]

Address = tuple[str, str, str]
Identity = tuple[int, int]
"""The ``sort_order`` and the ``rowid`` of an entry; see ``removals.py``."""

WALK: Final = 1000
"""How many entries a walk takes from one snapshot."""

_MAX: Final = 2**63 - 1
_HERE: Final = "primary_namespace = ? AND secondary_namespace = ? AND key = ?"
_NAMESPACE: Final = "primary_namespace = ? AND secondary_namespace = ?"


def _legal(name: str) -> str:
    """Return the condition of a legal name, or of an empty one.

    A text may have a NUL, at which ``length`` and ``GLOB`` end.
    """
    return (
        f"typeof({name}) = 'text' AND length({name}) <= {MAX_NAME_LENGTH}"
        f" AND length({name}) = length(CAST({name} AS BLOB))"
        f" AND {name} NOT GLOB '*[^-A-Za-z0-9_]*'"
    )


VALUE: Final = f"SELECT value FROM {NODE_TABLE} WHERE {_HERE}"
IDENTIFIED: Final = f"""
    SELECT value, expires_at, sort_order, {NODE_TABLE}.rowid
    FROM {NODE_TABLE} LEFT JOIN kvreplay_expiry
    USING (primary_namespace, secondary_namespace, key, sort_order) WHERE {_HERE}"""
KEYS: Final = f"SELECT key{{identity}} FROM {NODE_TABLE} WHERE {_NAMESPACE} AND {{such}}"
IDENTITY: Final = ", sort_order, rowid"
ALL_KEYS: Final = f"""
    SELECT primary_namespace, secondary_namespace, key{{identity}} FROM {NODE_TABLE}
    WHERE (primary_namespace, secondary_namespace, key) > (?, ?, ?) AND {{such}}
    ORDER BY primary_namespace, secondary_namespace, key LIMIT {WALK}"""
SCAN: Final = f"""
    SELECT primary_namespace, secondary_namespace, key,
        CASE typeof(value) WHEN 'blob' THEN value END, expires_at, sort_order, {NODE_TABLE}.rowid
    FROM {NODE_TABLE} LEFT JOIN kvreplay_expiry
    USING (primary_namespace, secondary_namespace, key, sort_order)
    WHERE (primary_namespace, secondary_namespace, key) > (?, ?, ?) AND {{such}}
    ORDER BY primary_namespace, secondary_namespace, key LIMIT {WALK}"""
PAGE: Final = f"""
    SELECT key, {{value}}, sort_order, rowid FROM {NODE_TABLE} WHERE {_NAMESPACE} AND {{such}}
    ORDER BY sort_order DESC, key ASC LIMIT ?"""
PAGE_AFTER: Final = f"""
    SELECT key, {{value}}, sort_order, rowid FROM {NODE_TABLE} WHERE {_NAMESPACE}
    AND sort_order <= ? AND NOT (sort_order = ? AND key <= ?) AND {{such}}
    ORDER BY sort_order DESC, key ASC LIMIT ?"""

_FIND: Final = f"SELECT value, sort_order FROM {NODE_TABLE} WHERE {_HERE}"
_FIND_ORDER: Final = f"SELECT NULL, sort_order FROM {NODE_TABLE} WHERE {_HERE}"
_INSERT: Final = f"""
    INSERT INTO {NODE_TABLE} (primary_namespace, secondary_namespace, key, value, sort_order)
    VALUES (?, ?, ?, ?, ?)"""
_UPDATE: Final = f"UPDATE {NODE_TABLE} SET value = ? WHERE {_HERE}"
_UPDATE_ANEW: Final = f"""
    UPDATE {NODE_TABLE} SET value = ?, rowid = (SELECT max(rowid) + 1 FROM {NODE_TABLE})
    WHERE {_HERE}"""
_DELETE: Final = f"DELETE FROM {NODE_TABLE} WHERE {_HERE}"
_SET_EXPIRY: Final = "INSERT OR REPLACE INTO kvreplay_expiry VALUES (?, ?, ?, ?, ?)"
_DROP_EXPIRY: Final = f"DELETE FROM kvreplay_expiry WHERE {_HERE}"
_DUE: Final = """
    SELECT primary_namespace, secondary_namespace, key, sort_order FROM kvreplay_expiry
    WHERE primary_namespace = ? AND expires_at <= ? AND {such} ORDER BY expires_at LIMIT ?"""
_LAST_ORDER: Final = "SELECT value FROM kvreplay_meta WHERE name = 'last_order'"
_SET_LAST_ORDER: Final = "UPDATE kvreplay_meta SET value = ? WHERE name = 'last_order'"


@lru_cache(maxsize=1024)
def namespace(primary_namespace: str, secondary_namespace: str) -> tuple[str, str]:
    """Check a namespace, and return it."""
    check_namespace(primary_namespace, secondary_namespace)
    return primary_namespace, secondary_namespace


def legal_rows(
    run: Callable[[str, tuple[Any, ...]], list[Any]], sql: str, args: tuple[Any, ...], such: Such
) -> list[Any]:
    """Return the rows with legal names of a query that has a place for the condition."""
    try:
        rows = run(sql.format(such="1"), args)
        if such.are_legal(rows):
            return rows
    except (sqlite3.Error, StoreError) as error:
        if not is_no_text(error):
            raise
    return run(sql.format(such=such.condition), args)


def _are_keys(rows: list[Any]) -> bool:
    return are_names([row[0] for row in rows])


def _are_addresses(rows: list[Any]) -> bool:
    namespaces = {row[:2] for row in rows}
    return are_names([row[2] for row in rows]) and all(
        secondary == "" if primary == "" else are_names((primary, secondary or "_"))
        for primary, secondary in namespaces
    )


@attrs.frozen
class Such:
    """Rows with legal names: the condition in SQL, and the look at rows, which is much faster."""

    condition: str
    are_legal: Callable[[list[Any]], bool]


OF_KEYS: Final = Such(f"key <> '' AND {_legal('key')}", _are_keys)
"""Of rows that begin with the key."""

OF_ADDRESSES: Final = Such(
    f"{OF_KEYS.condition} AND {_legal('primary_namespace')} AND {_legal('secondary_namespace')}"
    " AND (secondary_namespace = '' OR primary_namespace <> '')",
    _are_addresses,
)
"""Of rows that begin with the whole address."""


def first_few(found: sqlite3.Cursor) -> list[Any]:
    """Return the first rows of a scan: as many as have about ``SCAN_BYTES`` of values."""
    rows, room = list[Any](), SCAN_BYTES
    for row in found:
        rows.append(row)
        if type(row[3]) is bytes:
            room -= len(row[3])
        if room <= 0:
            break
    return rows


def checked(value: object, path: str) -> bytes:
    """Return a value that was read from the store at ``path``.

    Raises:
        CorruptStoreError: it is no blob: another program has written it.
    """
    if type(value) is not bytes:
        raise CorruptStoreError(
            f"an entry of the SQLite store {path} holds a {type(value).__name__}, and not bytes:"
            " another program has written it; nothing was changed: write or remove that entry"
        )
    return value


class Transaction:
    """A write transaction, and the creation numbers that it gives.

    They never go back, even if the newest entry is removed: the last one is stored.

    Args:
        anew: an update gives an entry another identity.
    """

    __slots__ = ("_first", "last", "path", "run", "update")

    def __init__(
        self, connection: sqlite3.Connection | sqlite3.Cursor, path: str, *, anew: bool
    ) -> None:
        self.path = path
        self.run = connection.execute
        self.update = _UPDATE_ANEW if anew else _UPDATE
        if (last := self.run(_LAST_ORDER).fetchone()) is None:
            raise lost_row(path)
        self._first: int = last[0]
        self.last: int = self._first  # that was given

    def rows(self, sql: str, args: tuple[Any, ...]) -> list[Any]:
        """Return all rows of a query."""
        return self.run(sql, args).fetchall()

    def next_order(self) -> int:
        """Return the number of a new entry."""
        self.last += 1
        return self.last

    def finish(self) -> None:
        """Store the last number, before the commit."""
        if self.last != self._first:
            self.run(_SET_LAST_ORDER, (self.last,))


def put(address: Address, value: bytes, txn: Transaction) -> None:
    """Create or replace an entry, which then does not expire."""
    # The value is not asked for: it may be a text that cannot be decoded.
    _put(address, txn.run(_FIND_ORDER, address).fetchone(), value, None, txn)


def delete(address: Address, txn: Transaction) -> None:
    """Remove an entry if it is there."""
    if txn.run(_DELETE, address).rowcount:
        txn.run(_DROP_EXPIRY, address)


def delete_if(address: Address, identity: Identity, txn: Transaction) -> None:
    """Remove an entry if it is there with this identity."""
    if txn.run(f"{_DELETE} AND sort_order = ? AND rowid = ?", (*address, *identity)).rowcount:
        txn.run(_DROP_EXPIRY, address)


def check_and_put(
    address: Address,
    expected: bytes | None,
    value: bytes | None,
    expires_at: int | None,
    txn: Transaction,
) -> bytes | None:
    """Change an entry if it is as expected; return what was found."""
    old = txn.run(_FIND, address).fetchone()
    found = None if old is None else checked(old[0], txn.path)
    if found == expected:
        if value is not None:
            _put(address, old, value, expires_at, txn)
        elif old is not None:
            delete(address, txn)
    return found


def _put(
    address: Address, old: Any, value: bytes, expires_at: int | None, txn: Transaction
) -> None:
    """Put an entry, which keeps its creation number if there is an old one, and its expiry."""
    if old is None:
        order = txn.next_order()
        txn.run(_INSERT, (*address, value, order))
    else:
        order = old[1]
        txn.run(txn.update, (value, *address))
    if expires_at is not None:
        txn.run(_SET_EXPIRY, (*address, order, expires_at))
    elif old is not None:
        txn.run(_DROP_EXPIRY, address)


def sweep(primary_namespace: str, now: int, limit: int, txn: Transaction) -> SweepResult:
    """Remove due entries of one primary namespace, the longest due first."""
    until = max(min(now, _MAX), -_MAX)
    args = (primary_namespace, until, min(limit, _MAX - 1) + 1)
    due = legal_rows(txn.rows, _DUE, args, OF_ADDRESSES)
    removed = 0
    for *address, order in due[:limit]:
        removed += txn.run(f"{_DELETE} AND sort_order = ?", (*address, order)).rowcount
        txn.run(_DROP_EXPIRY, address)
    return SweepResult(min(len(due), limit), removed, more=len(due) > limit)
