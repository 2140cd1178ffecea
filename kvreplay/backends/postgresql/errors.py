"""What psycopg raises becomes the store's own errors: what happened, and whether to try again."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg import errors

from kvreplay.errors import (
    CorruptStoreError,
    InFlightError,
    OutcomeUnknownError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)

__all__ = [
    "CONFLICTS",
    "another_store",
    "cannot_connect",
    "changed_by_others",
    "failure",
    "is_conflict",
    "no_connection",
    "table_is_locked",
    "unconfirmed",
]

CONFLICTS: Final = (errors.SerializationFailure, errors.DeadlockDetected)
"""SQLSTATE 40001 and 40P01: the transaction was undone, and is worth another try as a whole."""

_GONE: Final = (errors.UndefinedTable, errors.InvalidSchemaName)
_UNAVAILABLE: Final = ("53", "57")
"""Classes of SQLSTATE: the server lacks something now; an operator has broken it off."""


def is_conflict(error: BaseException) -> bool:
    """Say whether a single statement may simply be made again: nothing was changed by it."""
    return isinstance(error, CONFLICTS)


def no_connection(waited: float, why: BaseException | None) -> StoreError:
    """Return the error for a call that got no connection.

    Args:
        waited: seconds.
        why: why the latest one could not be made; ``None``: none has failed.
    """
    if isinstance(why, CorruptStoreError):
        return CorruptStoreError(str(why))
    if isinstance(why, _GONE):
        return failure(why, changing=False, lost=False)
    because = "the server has not answered, or others use all of the pool"
    if why is not None:
        because = _said(why)
    return StoreUnavailableError(
        f"no connection to PostgreSQL within {waited:.3g} s: {because}; nothing was done: try again"
        " later"
    )


def another_store() -> CorruptStoreError:
    """Return the error for tables that are not those of the store that was opened."""
    return CorruptStoreError(
        "the database under this URL holds another store now, or none; nothing was done: bring the"
        " former one back, or open the store again"
    )


def cannot_connect(why: psycopg.Error) -> StoreUnavailableError:
    """Return the error for a store that cannot be opened: libpq has no SQLSTATE for the reason."""
    return StoreUnavailableError(
        f"no connection to PostgreSQL: {_said(why)}; nothing was done: mend the URL, or try again"
        " when the server answers"
    )


def unconfirmed() -> OutcomeUnknownError:
    """Return the error for a commit whose wait for a standby was broken off."""
    return OutcomeUnknownError(
        "the change is committed on this server, but the wait for its synchronous standby was"
        " broken off: after a failover it may be gone; read again before deciding"
    )


def changed_by_others(waited: float | None) -> InFlightError:
    """Return the error for a joined change that waited in vain."""
    limit = "its time to wait" if waited is None else f"{waited:.3g} s"
    return InFlightError(
        f"another transaction has changed this key, and has not ended within {limit}; nothing ran"
        " here, and that transaction goes on: ask again later",
        1.0,
    )


def table_is_locked(waited: float | None) -> StoreUnavailableError:
    """Return the error for a block that waited in vain for the store's tables."""
    limit = "its time to wait" if waited is None else f"{waited:.3g} s"
    return StoreUnavailableError(
        "another transaction has locked a table of this store, and has not ended within"
        f" {limit}; nothing was changed: ask again later. pg_stat_activity shows who it is"
    )


def failure(error: psycopg.Error, *, changing: bool, lost: bool) -> StoreError:
    """Return what the caller is told of a statement, or of a commit, that failed.

    Args:
        changing: it could have changed something.
        lost: the connection is gone, so that the server's last word is not known.
    """
    if lost and changing:
        return OutcomeUnknownError(
            "the connection to PostgreSQL was lost, or the server did not answer in time, while a"
            " change was made: it may or may not have happened; read again before deciding"
        )
    if lost:
        return StoreUnavailableError(
            "the connection to PostgreSQL was lost, or the server did not answer in time; nothing"
            " was changed: try again"
        )
    if isinstance(error, errors.LockNotAvailable):
        return StoreUnavailableError(
            "another transaction holds what this call needs, and has not ended within"
            " lock_timeout; nothing was changed, and nothing will be: try again. pg_stat_activity"
            " shows who it is"
        )
    if isinstance(error, errors.DiskFull):
        return StoreFullError(
            "PostgreSQL's disk is full; nothing was written: make room on the server"
        )
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return StoreUnavailableError(
            "this PostgreSQL server only reads: it is a standby, or default_transaction_read_only"
            " is set; nothing was changed: name the primary, or several servers and"
            " target_session_attrs=read-write"
        )
    if isinstance(error, _GONE):
        return CorruptStoreError(
            "the tables of this store are gone from the database; nothing was changed: restore"
            " them, or open the store again to begin an empty one"
        )
    if isinstance(error, errors.UndefinedObject):  # which only a change asks for: statements.py
        return another_store()
    if isinstance(error, errors.InsufficientPrivilege):
        return StoreError(
            f"PostgreSQL refused: {_said(error)}; nothing was changed: grant the role what"
            " docs/postgresql.md lists"
        )
    if isinstance(error, CONFLICTS):
        return StoreUnavailableError(
            "PostgreSQL undid this transaction in favour of another one, again and again; nothing"
            " was changed: try again"
        )
    if isinstance(error, errors.InFailedSqlTransaction):
        return StoreError(
            "an earlier statement has failed, so that PostgreSQL has aborted this transaction;"
            " nothing was changed: let its exception out of the handler, or make the statement in a"
            " savepoint of its own"
        )
    if error.sqlstate is not None and error.sqlstate.startswith(_UNAVAILABLE):
        return StoreUnavailableError(
            f"PostgreSQL cannot do this now: {_said(error)}; nothing was changed: try again"
        )
    return StoreError(f"PostgreSQL refused: {_said(error)}; nothing was changed")


def _said(error: BaseException) -> str:
    """Return what the server or libpq says, on one line, without the statement and its values.

    A detail could show a key.
    """
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return f"{error.diag.message_primary} ({error.sqlstate})"
    return " ".join(str(error).split()) or type(error).__name__
