"""As ``transaction.py``, awaited."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import psycopg

from kvreplay.backends.driving import drive_awaited
from kvreplay.backends.postgresql.aio_session import AsyncSession, say
from kvreplay.backends.postgresql.calls import AsyncCalls
from kvreplay.backends.postgresql.errors import failure, unconfirmed
from kvreplay.backends.postgresql.kept import Lease
from kvreplay.backends.postgresql.links import AsyncLink
from kvreplay.backends.postgresql.operations import Operation, Operations, Rows
from kvreplay.backends.postgresql.session import asked_with
from kvreplay.backends.postgresql.statements import BEGIN, Asked, milliseconds
from kvreplay.backends.postgresql.transaction import swallowed
from kvreplay.errors import StoreError

__all__ = ["AsyncTransaction"]

T = TypeVar("T")


class AsyncTransaction(AsyncCalls):
    """The store's calls inside a transaction of the store's own."""

    def __init__(
        self, lease: Lease[AsyncLink], operations: Operations, session: AsyncSession
    ) -> None:
        super().__init__(operations)
        self._lease = lease
        self._session = session
        self.task = asyncio.current_task()

    async def begin(self) -> None:
        """Begin it, and take the store's turn alone."""
        place, link = self._session.place, self._lease.link
        try:
            await self._say(BEGIN)
            alone = self._operations.statements.alone, dict[str, Any]()
            given = asked_with(alone, place.lock_timeout, "0", link, place)
            await self._say(alone[0].text, given)
        except psycopg.Error as error:
            raise failure(error, changing=False, lost=link.closed) from error

    async def commit(self) -> None:
        """Commit it, unless one of its statements has failed."""
        link = self._lease.link
        if link.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
            raise swallowed()
        try:
            await self._say("COMMIT")
        except psycopg.Error as error:
            raise failure(error, changing=True, lost=link.closed) from error
        if link.unconfirmed:
            raise unconfirmed()

    async def roll_back(self) -> None:
        """Undo it, as far as there is a connection; without one the server does so."""
        link = self._lease.link
        if not link.closed and link.info.transaction_status:
            try:
                await self._say("ROLLBACK")
            except psycopg.Error:
                await link.close()

    async def _say(self, text: str, given: dict[str, Any] | None = None) -> None:
        place, link = self._session.place, self._lease.link
        link.answer_within = place.lock_timeout + place.reply_timeout
        link.unconfirmed = False
        await self._lease.cursor.execute(text, given, prepare=False)

    async def _run(self, operation: Operation[T]) -> T:
        if self.task is None or self.task is not asyncio.current_task():
            raise StoreError(
                "this transaction has ended, or belongs to another task; nothing was done"
            )
        return await drive_awaited(operation, self._execute)

    async def _execute(self, asked: Asked) -> Rows:
        place, clock = self._session.place, self._session.clock
        wait = place.lock_timeout
        try:
            return await say(self._lease, asked, wait, milliseconds(wait), place, clock)
        except psycopg.Error as error:
            lost = self._lease.link.closed
            raise failure(error, changing=False, lost=lost) from error
