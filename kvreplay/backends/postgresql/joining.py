"""Change entries in a transaction that the caller began: one commit for both.

The block is a savepoint, set before anything else. What fails inside of it is undone by it, and
the caller's transaction goes on. What the server says of a conflict between transactions comes out
as the driver's own exception: only who began the transaction can run it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg
from psycopg import errors

from kvreplay.backends.driving import drive
from kvreplay.backends.postgresql.callers import (
    PsycopgCaller,
    SQLAlchemyCaller,
    Where,
    another_database,
    caller_of,
    driver_error,
    ended_by_handler,
    is_drivers,
    where,
)
from kvreplay.backends.postgresql.calls import Calls
from kvreplay.backends.postgresql.clock import ServerClock, ticks
from kvreplay.backends.postgresql.errors import (
    changed_by_others,
    failure,
    is_conflict,
    table_is_locked,
)
from kvreplay.backends.postgresql.opening import Place
from kvreplay.backends.postgresql.operations import Operation, Operations, Rows
from kvreplay.backends.postgresql.statements import Asked, milliseconds
from kvreplay.errors import ClaimLostError, StoreError
from kvreplay.store.locks import this_process

__all__ = ["Bounds", "Joined", "after_undoing", "is_gone", "joined", "meant", "not_here"]

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

    @property
    def left(self) -> str:
        """The bound of a statement."""
        return milliseconds(None if self._until is None else self._until - time.monotonic())

    def of(self, given: dict[str, Any], after: str) -> dict[str, Any]:
        """Return the parameters of a change."""
        return {"wait": self.left, "after": after, "turn": self._turn, **given}


def meant(error: Exception, bounds: Bounds, lost: bool) -> Exception:
    """Return what an error of the driver means for the caller.

    What the caller's own rows have caused comes out as it is: a Session writes them only now.
    """
    own = driver_error(error)
    if (
        own is None
        or is_conflict(own)
        or isinstance(own, psycopg.IntegrityError | psycopg.DataError)
    ):
        return error
    if isinstance(own, errors.LockNotAvailable):
        return changed_by_others(bounds.limit)
    if is_gone(error):
        return ended_by_handler()
    return failure(own, changing=False, lost=lost)


def not_here(error: Exception) -> bool:
    """Say whether the store's tables are not in the database that was asked."""
    return isinstance(driver_error(error), errors.UndefinedTable | errors.InvalidSchemaName)


def is_gone(undone: BaseException | None) -> bool:
    """Say whether a block cannot be undone since its savepoint is gone."""
    gone = errors.InvalidSavepointSpecification | errors.NoActiveSqlTransaction
    own = None if undone is None else driver_error(undone)
    return isinstance(undone, ClaimLostError) or isinstance(own, gone)


def after_undoing(error: BaseException, undone: BaseException | None) -> BaseException:
    """Return what is raised of a block that has failed.

    Args:
        undone: why it could not be undone; ``None``: it is undone, or the server does so.
    """
    if undone is None or isinstance(error, ClaimLostError):
        return error
    if is_gone(undone):
        meaning: Exception = ended_by_handler()
    else:
        meaning = StoreError(
            "what was changed in the block could not be undone: it is still in your transaction;"
            " roll that back"
        )
    if isinstance(error, Exception):
        return meaning
    error.add_note(str(meaning))
    return error


def joined(
    connection: object,
    limit: float | None,
    place: Place,
    clock: ServerClock,
    operations: Operations,
) -> Generator[Joined, None, None]:
    """Set a savepoint on a caller's connection, and change entries in it.

    Args:
        operations: those of statements that are ``joined``.
    """
    caller, bounds = caller_of(connection), Bounds(limit, place)
    process, has_begun, ends = this_process(), False, False
    try:
        try:
            asked_at = ticks()
            own, row = _enter(caller.begin, caller, bounds, operations)
        except Exception as error:
            meaning = (
                another_database() if not_here(error) else meant(error, bounds, caller.is_closed)
            )
            if meaning is error:
                raise
            raise meaning from error
        transaction = Joined(caller, where(own, row, place), bounds, clock, operations)
        clock.told(row[-1], asked_at)
        has_begun = True
        yield transaction
        ends = True
        transaction.do(caller.release)
    except BaseException as error:
        if not process[0]:
            raise  # in a forked child it is the parent's connection
        try:
            undone = _undone(caller)
        except BaseException:  # an interrupt, and nobody knows what is undone
            caller.close()
            raise
        if (ends or not has_begun) and is_gone(undone):
            undone = None  # the savepoint is not set yet, or released
        raised = after_undoing(error, undone)
        if raised is error:
            raise
        raise raised from error


def _enter(
    set_savepoint: Callable[..., str],
    caller: PsycopgCaller | SQLAlchemyCaller,
    bounds: Bounds,
    operations: Operations,
) -> tuple[str, tuple[Any, ...]]:
    """Set the savepoint and lock the table; return the caller's own bound, and where it is."""
    statements = operations.statements
    try:
        own = set_savepoint(*statements.gate(bounds.left))
        [row] = caller.say(statements.where.text, {"after": own})
    except Exception as error:
        if isinstance(driver_error(error), errors.LockNotAvailable):
            raise table_is_locked(bounds.limit) from error
        raise
    return own, row


def _undone(caller: PsycopgCaller | SQLAlchemyCaller) -> Exception | None:
    """Undo a block, or return why it cannot be undone; a server without a client does so."""
    try:
        if caller.is_stuck:
            caller.close()
        elif caller.is_set:
            if caller.is_ended:
                return ended_by_handler()
            caller.roll_back()
    except Exception as error:
        if not is_drivers(error):
            raise
        return None if caller.is_closed else error
    return None


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
        self.do(_enter, self._caller.undo, self._caller, self._bounds, self._operations)

    def do(self, call: Callable[..., T], *args: Any) -> T:
        """Make a call of the caller's connection, if the transaction is still there."""
        if self._caller.is_ended:
            raise ended_by_handler()
        try:
            return call(*args)
        except Exception as error:
            meaning = meant(error, self._bounds, self._caller.is_closed)
            if meaning is error:
                raise
            raise meaning from error

    def _run(self, operation: Operation[T]) -> T:
        return drive(operation, self._execute)

    def _execute(self, asked: Asked) -> Rows:
        statement, given = asked
        asked_at = ticks()
        if not statement.changes:
            return self.do(self._caller.say, statement.text, given)
        given = self._bounds.of(given, self._after)
        rows: Rows = self.do(self._caller.say, statement.text, given)
        if rows:  # a trigger may keep a row away
            self._clock.told(rows[0][-1], asked_at)
        return rows
