"""As ``joining.py``, awaited."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from kvreplay.backends.postgresql.aio_session import drive
from kvreplay.backends.postgresql.callers import (
    AsyncPsycopgCaller,
    AsyncSQLAlchemyCaller,
    Where,
    another_database,
    async_caller_of,
    ended_by_handler,
    where,
)
from kvreplay.backends.postgresql.calls import AsyncCalls
from kvreplay.backends.postgresql.clock import ServerClock, ticks
from kvreplay.backends.postgresql.joining import Bounds, after_undoing, meant, not_here
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
    process, begun = this_process(), False
    try:
        try:
            await caller.begin()
            begun = True
            asked_at = ticks()
            row = (await caller.say(operations.statements.where.text, {}))[0]
        except Exception as error:
            meaning = (
                another_database() if not_here(error) else meant(error, bounds, caller.is_closed)
            )
            if meaning is error:
                raise
            raise meaning from error
        transaction = AsyncJoined(caller, where(row, place), bounds, clock, operations)
        clock.told(row[-1], asked_at)
        yield transaction
        await transaction.do(caller.release)
    except BaseException as error:
        if not begun or not process[0]:
            raise  # in a forked child it is the parent's connection
        try:
            undone = await _undone(caller)
        except BaseException:  # another cancellation
            undone = await _undone(caller)
            after_undoing(error, undone)
            raise
        ends = after_undoing(error, undone)
        if ends is error:
            raise
        raise ends from error


async def _undone(caller: AsyncPsycopgCaller | AsyncSQLAlchemyCaller) -> Exception | None:
    """Undo a block, or return why it cannot be undone; a server without a client does so."""
    try:
        if caller.is_ended:
            return ended_by_handler()
        await caller.roll_back()
    except Exception as error:
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
        await self.do(self._caller.undo)

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
        return await drive(operation, self._execute)

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
