"""As ``joining.py``, awaited."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

from kvreplay.backends.postgresql.aio_session import drive
from kvreplay.backends.postgresql.callers import (
    AsyncPsycopgCaller,
    AsyncSQLAlchemyCaller,
    Where,
    another_database,
    async_caller_of,
    where,
)
from kvreplay.backends.postgresql.calls import AsyncCalls
from kvreplay.backends.postgresql.clock import ServerClock, ticks
from kvreplay.backends.postgresql.joining import Bounds, meant, not_here, release_failure
from kvreplay.backends.postgresql.opening import Place
from kvreplay.backends.postgresql.operations import Operation, Operations, Rows
from kvreplay.backends.postgresql.statements import Asked, Statements
from kvreplay.errors import ConfigError

__all__ = ["joined"]

T = TypeVar("T")


@contextlib.asynccontextmanager
async def joined(
    connection: object, limit: float | None, place: Place, clock: ServerClock
) -> AsyncIterator[AsyncJoined]:
    """Set a savepoint on a caller's connection, and change entries in it."""
    caller, bounds = async_caller_of(connection), Bounds(limit, place)
    begun = False
    try:
        try:
            await caller.begin()
            begun = True
            statements = Statements(place.schema, joined=True)
            asked_at = ticks()
            row = (await caller.say(statements.where.text))[0]
        except ConfigError:  # SQLAlchemy's connection shows only now what is wrong with it
            raise
        except Exception as error:
            raise (another_database() if not_here(error) else meant(error, bounds)) from error
        transaction = AsyncJoined(caller, where(row, place), bounds, clock, Operations(statements))
        clock.told(row[-1], asked_at)
        yield transaction
        try:
            await caller.release()
        except Exception as error:
            raise release_failure(error, bounds) from error
    except BaseException:
        if begun:
            with contextlib.suppress(Exception):  # without a connection the server undoes it
                await caller.roll_back()
        raise


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
        try:
            await self._caller.undo()
        except Exception as error:
            raise release_failure(error, self._bounds) from error

    async def _run(self, operation: Operation[T]) -> T:
        return await drive(operation, self._execute)

    async def _execute(self, asked: Asked) -> Rows:
        statement, given = asked
        asked_at = ticks()
        if statement.changes:
            given = self._bounds.of(given, self._after)
        try:
            rows = await self._caller.say(statement.text, given)
        except Exception as error:
            raise meant(error, self._bounds) from error
        if statement.changes and rows:
            self._clock.told(rows[0][-1], asked_at)
        return rows
