"""As ``joining.py``, awaited."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from psycopg import errors

from kvreplay.backends.driving import drive_awaited
from kvreplay.backends.postgresql.callers import (
    AsyncPsycopgCaller,
    AsyncSQLAlchemyCaller,
    Where,
    another_database,
    async_caller_of,
    driver_error,
    ended_by_handler,
    is_drivers,
    where,
)
from kvreplay.backends.postgresql.calls import AsyncCalls
from kvreplay.backends.postgresql.clock import ServerClock, ticks
from kvreplay.backends.postgresql.errors import table_is_locked
from kvreplay.backends.postgresql.joining import (
    Bounds,
    after_undoing,
    is_gone,
    meant,
    not_here,
)
from kvreplay.backends.postgresql.opening import Place
from kvreplay.backends.postgresql.operations import Operation, Operations, Rows
from kvreplay.backends.postgresql.statements import Asked
from kvreplay.store.locks import this_process

__all__ = ["joined"]

T = TypeVar("T")


@contextlib.asynccontextmanager
async def joined(
    connection: object,
    limit: float | None,
    place: Place,
    clock: ServerClock,
    operations: Operations,
) -> AsyncIterator[AsyncJoined]:
    """Set a savepoint on a caller's connection, and change entries in it."""
    caller, bounds = async_caller_of(connection), Bounds(limit, place)
    process, has_begun, ends = this_process(), False, False
    try:
        try:
            asked_at = ticks()
            own, row = await _enter(caller.begin, caller, bounds, operations)
        except Exception as error:
            meaning = (
                another_database() if not_here(error) else meant(error, bounds, caller.is_closed)
            )
            if meaning is error:
                raise
            raise meaning from error
        transaction = AsyncJoined(caller, where(own, row, place), bounds, clock, operations)
        clock.told(row[-1], asked_at)
        has_begun = True
        yield transaction
        ends = True
        await transaction.do(caller.release)
    except BaseException as error:
        if not process[0]:
            raise  # in a forked child it is the parent's connection
        try:
            undone = await _undone(caller)
        except BaseException:  # an interrupt, and nobody knows what is undone
            await caller.close()
            raise
        if (ends or not has_begun) and is_gone(undone):
            undone = None  # the savepoint is not set yet, or released
        raised = after_undoing(error, undone)
        if raised is error:
            raise
        raise raised from error


async def _enter(
    set_savepoint: Callable[..., Awaitable[str]],
    caller: AsyncPsycopgCaller | AsyncSQLAlchemyCaller,
    bounds: Bounds,
    operations: Operations,
) -> tuple[str, tuple[Any, ...]]:
    """Set the savepoint and lock the table; return the caller's own bound, and where it is."""
    statements = operations.statements
    try:
        own = await set_savepoint(*statements.gate(bounds.left))
        [row] = await caller.say(statements.where.text, {"after": own})
    except Exception as error:
        if isinstance(driver_error(error), errors.LockNotAvailable):
            raise table_is_locked(bounds.limit) from error
        raise
    return own, row


async def _undone(caller: AsyncPsycopgCaller | AsyncSQLAlchemyCaller) -> Exception | None:
    """Undo a block, or return why it cannot be undone; a server without a client does so."""
    try:
        if caller.is_stuck:
            await caller.close()
        elif caller.is_set:
            if caller.is_ended:
                return ended_by_handler()
            await caller.roll_back()
    except Exception as error:
        if not is_drivers(error):
            raise
        return None if caller.is_closed else error
    return None


class AsyncJoined(AsyncCalls):
    """The store's calls inside a caller's transaction: an ``AsyncJoinedTransaction``."""

    def __init__(
        self,
        caller: AsyncPsycopgCaller | AsyncSQLAlchemyCaller,
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

    async def undo(self) -> None:
        """Undo all that was changed since the block began."""
        await self.do(_enter, self._caller.undo, self._caller, self._bounds, self._operations)

    async def do(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Make a call of the caller's connection, if the transaction is still there."""
        if self._caller.is_ended:
            raise ended_by_handler()
        try:
            return await call(*args)
        except Exception as error:
            meaning = meant(error, self._bounds, self._caller.is_closed)
            if meaning is error:
                raise
            raise meaning from error

    async def _run(self, operation: Operation[T]) -> T:
        return await drive_awaited(operation, self._execute)

    async def _execute(self, asked: Asked) -> Rows:
        statement, given = asked
        asked_at = ticks()
        if not statement.changes:
            return await self.do(self._caller.say, statement.text, given)
        given = self._bounds.of(given, self._after)
        rows: Rows = await self.do(self._caller.say, statement.text, given)
        if rows:  # a trigger may keep a row away
            self._clock.told(rows[0][-1], asked_at)
        return rows
