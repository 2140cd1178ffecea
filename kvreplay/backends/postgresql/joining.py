"""Change entries in a transaction that the caller began: one commit for both.

The block is a savepoint, set before anything else. What fails inside of it is undone by it, and
the caller's transaction goes on. What the server says of a conflict between transactions comes out
as the driver's own exception: only who began the transaction can run it again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from kvreplay.backends.postgresql.callers import (
    PsycopgCaller,
    SQLAlchemyCaller,
    Where,
    another_database,
    caller_of,
    driver_error,
    ended_by_handler,
    where,
)
from kvreplay.backends.postgresql.calls import Calls
from kvreplay.backends.postgresql.clock import ServerClock, ticks
from kvreplay.backends.postgresql.errors import changed_by_others, failure, is_conflict
from kvreplay.backends.postgresql.opening import Place
from kvreplay.backends.postgresql.operations import Operation, Operations, Rows
from kvreplay.backends.postgresql.session import drive
from kvreplay.backends.postgresql.statements import Asked, Statements, milliseconds

__all__ = ["Bounds", "Joined", "joined", "meant", "not_here", "release_failure"]

T = TypeVar("T")


class Bounds:
    """How long a block still waits for others, and the parameters of its changes.

    Args:
        limit: seconds; ``None``: without a limit.
    """

    def __init__(self, limit: float | None, place: Place) -> None:
        self.limit = limit
        self._until = None if limit is None else time.monotonic() + limit
        self._turn = place.turn

    def of(self, given: dict[str, Any], after: str) -> dict[str, Any]:
        """Return the parameters of a change."""
        left = None if self._until is None else self._until - time.monotonic()
        return {"wait": milliseconds(left), "after": after, "turn": self._turn, **given}


def meant(error: Exception, bounds: Bounds) -> Exception:
    """Return what an error of the driver means for the caller."""
    own = driver_error(error)
    if own is None or is_conflict(own):
        return error
    if isinstance(own, errors.LockNotAvailable):
        return changed_by_others(bounds.limit)
    lost = isinstance(own, psycopg.OperationalError) and own.sqlstate is None
    return failure(own, changing=False, lost=lost)


def not_here(error: Exception) -> bool:
    """Say whether the store's tables are not in the database that was asked."""
    return isinstance(driver_error(error), errors.UndefinedTable | errors.InvalidSchemaName)


def release_failure(error: Exception, bounds: Bounds) -> Exception:
    """Return what it means that a savepoint could not be released."""
    gone = errors.InvalidSavepointSpecification | errors.NoActiveSqlTransaction
    return ended_by_handler() if isinstance(driver_error(error), gone) else meant(error, bounds)


@contextlib.contextmanager
def joined(
    connection: object, limit: float | None, place: Place, clock: ServerClock
) -> Iterator[Joined]:
    """Set a savepoint on a caller's connection, and change entries in it."""
    caller, bounds = caller_of(connection), Bounds(limit, place)
    begun = False
    try:
        try:
            caller.begin()
            begun = True
            statements = Statements(place.schema, joined=True)
            asked_at = ticks()
            row = caller.say(statements.where.text)[0]
        except Exception as error:
            raise (another_database() if not_here(error) else meant(error, bounds)) from error
        transaction = Joined(caller, where(row, place), bounds, clock, Operations(statements))
        clock.told(row[-1], asked_at)
        yield transaction
        try:
            caller.release()
        except Exception as error:
            raise release_failure(error, bounds) from error
    except BaseException:
        if begun:
            with contextlib.suppress(Exception):  # without a connection the server undoes it
                caller.roll_back()
        raise


class Joined(Calls):
    """The store's calls inside a caller's transaction: a ``JoinedTransaction``."""

    def __init__(
        self,
        caller: PsycopgCaller | SQLAlchemyCaller,
        found: Where,
        bounds: Bounds,
        clock: ServerClock,
        operations: Operations,
    ) -> None:
        super().__init__(operations)
        self.sees_commits = found.sees_commits
        self._caller = caller
        self._after = found.lock_timeout
        self._bounds = bounds
        self._clock = clock

    def undo(self) -> None:
        """Undo all that was changed since the block began."""
        try:
            self._caller.undo()
        except Exception as error:
            raise release_failure(error, self._bounds) from error

    def _run(self, operation: Operation[T]) -> T:
        return drive(operation, self._execute)

    def _execute(self, asked: Asked) -> Rows:
        statement, given = asked
        asked_at = ticks()
        if statement.changes:
            given = self._bounds.of(given, self._after)
        try:
            rows = self._caller.say(statement.text, given)
        except Exception as error:
            raise meant(error, self._bounds) from error
        if statement.changes and rows:
            self._clock.told(rows[0][-1], asked_at)
        return rows
